"""`triptych train`, `probe`, `export` and `embed`: the scripts as one command, in any folder.

`pip install` puts it on the path; `python -m triptych train` and `torchrun -m triptych train` are the same.
"""

import importlib
import sys

from triptych.training.errors import nearest

# Each has a module of its name.
COMMANDS = {
    "train": "pretrain an encoder: triptych train --config image_mae --data pictures --output_dir runs/mine",
    "probe": "is it any good? triptych probe runs/mine",
    "export": "a folder that stock transformers loads: triptych export runs/mine --to exported",
    "embed": "vectors, and search among them: triptych embed runs/mine --data pictures --to features.parquet",
}


def main(argv: list[str] | None = None) -> None:
    """The command line; the words after the first are the script's own, `--help` too."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: triptych COMMAND ...; triptych COMMAND --help says more\n")
        print("\n".join(f"  {command:8} {text}" for command, text in COMMANDS.items()))
        return
    if name not in COMMANDS:
        raise SystemExit(f"triptych: no command {name!r}{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    module = importlib.import_module(f"triptych.{name}")
    run = module.script if name == "train" else module.main
    run(rest, f"triptych {name}")


if __name__ == "__main__":
    main()
