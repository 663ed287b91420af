"""Pretrain: config -> modality, encoder, objective, data -> engine -> checkpoints.

    python train.py --config configs/image_mae.yaml --data path/to/pictures --output_dir runs/mine

`python`, `torchrun` and `deepspeed` all launch it. From Python: `from triptych import pretrain; pretrain(config)`.
"""

import copy
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from triptych.training.command_line import from_command_line, read
from triptych.training.errors import explained, one_line_exit, printed_once
from triptych.training.ranks import Team, announce
from triptych.training.settings import Config


def pretrain(config: Config | dict[str, Any] | str | os.PathLike, data: Any = None) -> dict[str, Any]:
    """Run a configuration: a `Config`, a dictionary of options, or a YAML file. Returns the last figures.

    `data`: samples in memory, or a `datasets.Dataset`, as `embed` takes them, in the place of the configuration's.
    An interrupted run continues from its newest whole checkpoint; a finished one is left alone.

    Raises:
        UserError: for what the user can mend, in one line, before anything is written.
    """
    config = read(config)

    # Imported only now: arguments are refused in the time that torch takes.
    from triptych.encoders import native
    from triptych.evaluation.online import watch
    from triptych.evaluation.report import reporting
    from triptych.training import choice, engine, log, memory, starts
    from triptych.training.continuing import restrain
    from triptych.training.fitting import fit
    from triptych.training.loader import divided_once
    from triptych.training.loop import Loop
    from triptych.training.once import walked_once
    from triptych.training.run_folder import RunFolder
    from triptych.training.signals import Signals
    from triptych.training.sources import load, print_once

    # The variables that a launcher would have set are not left behind.
    with explained(), mock.patch.dict(os.environ), Signals() as signals, ExitStack() as held:
        announce(os.environ)
        (beginning := held.enter_context(ExitStack())).enter_context(walked_once())
        engine.settings(config.run, int(os.environ.get("WORLD_SIZE", 1)))
        engine.resolve(config.run)
        device, team = engine.start(config.run), Team()
        team.agree(config.shared(), "start all ranks with the same options")
        team.each(lambda: log.check(config.run))
        if data is not None:
            config.named(memory.name_of(data))
        config = choice.suited(config, data, team)
        # The first rank decides whose the folder is and where the run goes on; the others are told.
        folder, start, survey = RunFolder(config.run.output_dir), None, None
        team.first(lambda: held.enter_context(folder) and None)
        origin = team.first(lambda: folder.origin(config))
        if origin is not None:  # what was found then holds; what it started from is not needed any more
            config.recall(team.first(folder.stored))
        elif config.run.init_from:
            wanted = config.run.init_from, config.modality["name"], config.run.init_revision
            start = team.each(lambda: starts.find(*wanted), turns=True)
            note = config.adopt(start)
            print_once(f"init_from {config.run.init_from}: {start}")
            if note:
                print_once(f"init_from, changed: {note}")
            config.run.init_from = starts.stored(config.run.init_from)
        else:
            config, survey = choice.decide(config, data, team)
        modality = config.build_modality()
        if data is not None:
            config.data.name = held.enter_context(memory.held(data, modality))
        rows = team.each(lambda: load(config.data, modality), turns=True)
        fit(modality, rows, origin, start, team)
        divided = divided_once(rows, config.data.eval_fraction, team)
        team.each(lambda: config.count(len(divided[0].table)))
        objective = team.each(lambda: config.build_objective(modality, start if origin is None else None))
        team.agree(config.shared(), "give all ranks the same files")
        if origin is not None and team.is_first:  # who writes checkpoints
            objective.backbone.native = native.Native.load(Path(origin["folder"]) / "native")
        begun = None
        if config.run.preserve and origin is None:  # before adapters are put in
            begun = copy.deepcopy(objective.backbone)
        elif config.run.preserve:
            place = Path(config.run.output_dir), origin["state"].get("start")
            begun = starts.recover(objective.backbone, *place, team, device)
        if note := restrain(objective, config.run):
            print_once(note)
        choice.settle(config, survey, origin is not None, objective, divided, rows, device, team)
        watched = team.each(lambda: watch(config, objective, rows, device), turns=True)
        beginning.close()
        further = watched, begun, divided, reporting(config)
        return Loop(config, objective, rows, device, team, origin, folder, signals, *further).train()


def show(config: Config | dict[str, Any] | str | os.PathLike) -> None:
    """Print how the data of a configuration is read. Trains nothing."""
    from triptych.training import choice, sources

    config = read(config)
    with explained():
        config = choice.sizes_alone(config)
        sources.show(config.data, config.build_modality())


def main(argv: list[str] | None = None, program: str = "train.py") -> None:
    """The command line. A mistake of the user's is one line and exit code 1, not a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    argv = [a for a in argv if not a.startswith("--local_rank")]  # the deepspeed launcher adds it
    config = from_command_line(argv, program)
    try:
        with one_line_exit(program):
            announce(os.environ)
            show(config) if "--show" in argv else pretrain(config)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            there = any(Path(config.run.output_dir).glob("checkpoint-*"))
            then = "continues from the newest checkpoint" if there else "starts anew: nothing was saved yet"
            print(f"{program}: interrupted; the same command {then}", file=sys.stderr)
        sys.exit(130)


def script(argv: list[str] | None = None, program: str = "train.py") -> NoReturn:
    """The command line as a whole process, which it ends."""
    code: Any = 0
    try:
        with printed_once():
            main(argv, program)
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    # All is written and closed. The interpreter's teardown is left out: a thread of gloo's that still lets go of a
    # tensor needs the interpreter, finds it gone, and aborts a run that has succeeded.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    script()
