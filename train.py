"""Pretrain: config -> modality, encoder, objective, data -> engine -> checkpoints.

    python train.py --config configs/image_mae.yaml --data path/to/pictures --output_dir runs/mine

`python`, `torchrun` and `deepspeed` all launch it. From Python: `from train import pretrain; pretrain(config)`.
"""

import os
import sys
from typing import Any

from training.command_line import from_command_line, read
from training.errors import explained, one_line_exit, printed_once
from training.settings import Config


def pretrain(config: Config | dict[str, Any] | str | os.PathLike) -> dict[str, Any]:
    """Run a configuration: a `Config`, a dictionary of options, or a YAML file. Returns the last figures.

    An interrupted run continues from its newest whole checkpoint; a finished one is left alone.

    Raises:
        UserError: for what the user can mend, in one line, before anything is written.
    """
    config = read(config)

    # Imported only now: arguments are refused in the time that torch takes.
    from encoders import native
    from training import engine, log
    from training.loop import Loop, open_folder
    from training.sources import load, print_once

    with explained():
        engine.settings(config.run, int(os.environ.get("WORLD_SIZE", 1)))
        engine.resolve(config.run)
        log.check(config.run)
        start = None
        if config.run.init_from:
            start = native.start_from(config.run.init_from, config.modality["name"])
            note = config.adopt(start)
            print_once(f"init_from {config.run.init_from}: {start}")
            if note:
                print_once(f"init_from, changed: {note}")
        modality = config.build_modality()
        rows = load(config.data, modality)
        _, resumed = open_folder(config)
        if resumed is not None:
            modality.load(str(resumed / "modality"))
        elif note := modality.fit(rows.table, rows.column):
            print_once(f"data: {note}")
        objective = config.build_objective(modality, start if resumed is None else None)
        if resumed is not None:
            objective.backbone.native = native.Native.load(resumed / "native")
        device = engine.start(config.run)
        loop = Loop(config, objective, rows, device, resumed)
        return loop.train()


def show(config: Config | dict[str, Any] | str | os.PathLike) -> None:
    """Print how the data of a configuration is read. Trains nothing."""
    from training import sources

    config = read(config)
    with explained():
        sources.show(config.data, config.build_modality())


def main(argv: list[str] | None = None) -> None:
    """The command line. A mistake of the user's is one line and exit code 1, not a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    argv = [a for a in argv if not a.startswith("--local_rank")]  # the deepspeed launcher adds it
    config = from_command_line(argv)
    try:
        with one_line_exit("train.py"):
            show(config) if "--show" in argv else pretrain(config)
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; the same command continues from the newest checkpoint")


if __name__ == "__main__":
    with printed_once():
        main()
    # All is written and closed. The interpreter's teardown is left out: a thread of gloo's that still lets go of a
    # tensor needs the interpreter, finds it gone, and aborts a run that has succeeded.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
