"""What goes wrong, and what is said then: the table of docs/faults.md, made of what the tests themselves hold.

    python tests/faults.py      writes docs/faults.md

A wrong command is a line of `WRONG`, which `tests/training/test_faults.py` runs. For anything else, mark its test:

    @pytest.mark.fault("situation", "what happens", "what is said")
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
HEAD = """# When something goes wrong

A mistake, or a fault of the world around, is one line on stderr and exit code 1, and no data is lost. A traceback is a
fault of this program's own: please report it. `TRIPTYCH_TRACEBACK=1` shows one for a single line, too.

This page is made of the tests by `python tests/faults.py`; a test compares them.

"""

# (situation, command, what is said: words that are in the line). {here} is the test's folder: see `make` there.
# The command is train.py's if it begins with an option, else that of the program it names.
WRONG: list[tuple[str, str, str]] = [
    ("an option misspelt", "--learning_rat 1e-3", "no option '--learning_rat'; did you mean --learning_rate?"),
    ("an option without its group", "--ratio 0.5", "did you mean --objective.mask.ratio?"),
    (
        "another objective's option",
        "--objective simclr --objective.mask.ratio 0.5",
        "no option '--objective.mask.ratio'",
    ),
    ("an unknown objective", "--objective mea", "objective 'mea' is not one of"),
    ("an unknown modality", "--modality pictures", "modality 'pictures' is not one of image"),
    ("an unknown size of encoder", "--encoder tinny", "tinny"),
    ("a word for a number", "--learning_rate fast", "learning_rate: Expected a float. Got value: fast"),
    ("a fraction for a count", "--logging_steps 2.5", "logging_steps: Expected a int. Got value: 2.5"),
    ("no number at all", "--learning_rate .nan", "learning_rate nan is not in (0, inf); try 0.0015"),
    ("infinity", "--weight_decay .inf", "weight_decay inf is not in [0, inf); try 0.05"),
    ("an option without a value", "--seed", "seed"),
    ("a value without an option", "pictures", "pictures"),
    ("a choice that there is not", "--optim adam", "optim"),
    ("a rate below 0", "--learning_rate -1", "learning_rate -1.0 is not in (0, inf); try 0.0015"),
    ("no sample in a batch", "--per_device_train_batch_size 0", "per_device_train_batch_size 0 is not in [1, inf)"),
    ("a beta of 1", "--adam_beta2 1", "adam_beta2 1.0 is not in [0, 1); try 0.95"),
    ("a negative seed", "--seed -1", "seed -1 is not in [0, 9e18); try 42"),
    ("steps below -1", "--max_steps -5", "max_steps -5 is not in [-1, inf); try -1"),
    ("one checkpoint kept", "--save_total_limit 1", "save_total_limit 1 is not in [2, inf); try 2"),
    ("a warm-up longer than the run", "--max_steps 10 --warmup_steps 20", "warmup_steps 20 of max_steps 10"),
    ("all held out", "--data.eval_fraction 1", "data.eval_fraction 1.0 is not in [0, 1); try 0.01"),
    ("an unknown tracker", "--report_to mlflow", "report_to 'mlflow' is not one of"),
    ("all pieces masked", "--objective.mask.ratio 1", "objective.mask.ratio 1.0 is not in (0, 1); try 0.75"),
    ("a block without a side", "--objective.mask.block 0", "objective.mask.block 0 is not in [1, inf); try 3"),
    ("a decoder without blocks", "--objective.decoder.depth 0", "objective.decoder.depth 0 is not in [1, 1000]; try 4"),
    ("a slip in a depth", "--encoder.depth 100000000", "encoder.depth 100000000 is not in [1, 1000]; try 1"),
    ("a slip in a width", "--encoder.width 3000000000", "encoder.width 3000000000 is not in [1, 1000000]"),
    ("a scale upside down", "--objective.scale [1,.2]", "is not in (0, 1], the smaller first; try [0.2, 1.0]"),
    (
        "a temperature of 0",
        "--objective simclr --objective.temperature 0",
        "temperature 0.0 is not in (0, inf); try 0.1",
    ),
    (
        "a head without layers",
        "--objective byol --objective.head.layers 0",
        "objective.head.layers 0 is not in [1, inf)",
    ),
    ("an encoder without blocks", "--encoder.depth 0", "encoder.depth 0 is not in [1, 1000]; try 1"),
    ("heads that do not divide the width", "--encoder.heads 5", "heads 5"),
    ("a size that patches do not divide", "--modality.image_size 30 --modality.patch_size 8", "nearest that is: 32×32"),
    ("no size", "--modality.image_size 0", "modality.image_size 0 is not in [1, inf); try 224"),
    ("a probability above 1", "--modality.flip 2", "modality.flip 2.0 is not in [0, 1]; try 0.5"),
    ("a zoom below 0", "--modality.zoom -2", "modality.zoom -2.0 is not in [0, 9]; try 0.0"),
    ("a deviation of 0", "--modality.std 0", "modality.std 0.0 is not in (0, inf); try 1"),
    ("two means for three channels", "--modality.mean [0,1]", "one for each of 3 channels"),
    (
        "pieces of one value, normalised",
        "--modality.patch_size 1 --modality.channels 1 --modality.image_size 8",
        "modality.target normalised: a piece of one value is always 0; choose raw, or a larger piece",
    ),
    ("a tile wider than tall", "--modality audio --modality.tile [4,8]", "modality.tile 4×8"),
    (
        "a window of no length",
        "--modality audio --modality.seconds 0",
        "modality.seconds 0.0 is not in (0, inf); try 10",
    ),
    ("a text without room", "--modality text --modality.max_length 2", "modality.max_length 2 is not in [3, inf)"),
    ("all tokens deleted", "--modality text --modality.deletion 1", "modality.deletion 1.0 is not in [0, 1); try 0.0"),
    ("no such configuration", "--config nowhere.yaml", "no config file 'nowhere.yaml'"),
    ("an empty configuration", "--config {here}/empty.yaml", "holds no options"),
    ("a configuration that is no YAML", "--config {here}/broken.yaml", "is not YAML"),
    ("a configuration of other bytes", "--config {here}/bytes.yaml", "is not YAML"),
    ("a group with a value", "--config {here}/group.yaml", "data.name: Expected a str. Got value: []"),
    ("no such data", "--data {here}/nowhere", "no such file or folder"),
    ("a built-in set misspelt", "--data digit", "did you mean digits"),
    ("no such split", "--data {here}/pictures --data.split tain", "tain"),
    ("fewer samples than a batch", "--data {here}/pictures --per_device_train_batch_size 500", "a step's batch of 500"),
    ("no GPU", "--data {here}/pictures --device cuda", "no GPU is visible; use --device cpu"),
    ("no such DeepSpeed file", "--data {here}/pictures --deepspeed {here}/none.json", "no such file"),
    ("a DeepSpeed list", "--data {here}/pictures --deepspeed {here}/list.json", "holds no settings (a JSON object)"),
    ("no such start", "--data {here}/pictures --init_from {here}/nowhere", "no such folder"),
    ("a start that is none", "--data {here}/pictures --init_from {here}/pictures", "init_from"),
    (
        "a tokenizer misspelt",
        "--data {here}/docs.txt --modality text --objective masked --modality.tokenizer bert-base-uncasde",
        "modality.tokenizer bert-base-uncasde",
    ),  # fmt: skip
    (
        "a tokenizer's folder that is not there",
        "--data {here}/docs.txt --modality text --objective masked --modality.tokenizer {here}/nowhere",
        "modality.tokenizer {here}/nowhere",
    ),  # fmt: skip
    ("an output folder below a file", "--data {here}/pictures --output_dir {here}/docs.txt/run", "docs.txt"),
    ("an output folder that is a file", "--data {here}/pictures --output_dir {here}/docs.txt", "is a file"),
    ("an output folder with other files", "--data {here}/pictures --output_dir {here}/pictures", "holds other files"),
    ("where nothing can be made", "--data {here}/pictures --output_dir /proc/run", "/proc/run"),
    (
        "a batch of one where samples are compared",
        "--data {here}/pictures --objective simclr --per_device_train_batch_size 1",
        "compares samples",
    ),  # fmt: skip
    ("a run with an empty config.yaml", "--data {here}/pictures --output_dir {here}/old", "config.yaml"),
    ("no such run to probe", "probe.py {here}/nowhere", "no such run"),
    ("a run without a checkpoint", "probe.py {here}/pictures", "no whole checkpoint"),
    ("an unknown option of the probe", "probe.py {here}/pictures --drows 3", "drows"),
    (
        "a word for counts, in the probe",
        "probe.py {here}/pictures --labels x",
        "labels: Expected one of list[int], null",
    ),
    ("no such run to export", "export.py {here}/nowhere", "no such run"),
    ("an export to a file", "export.py {here}/pictures --to {here}/docs.txt", "docs.txt"),
    ("an export into a full folder", "export.py {here}/pictures --to {here}/pictures", "is not empty"),
    ("an empty word", "--data {here}/pictures --output_dir=", "output_dir '' is an empty word; leave output_dir out"),
    ("data without a name", "--data=", "data.name '' is an empty word"),
    ("a configuration without a name", "--config", "--config: expected one argument, a YAML file"),
    (
        "a value left empty in YAML",
        "--config {here}/nothing.yaml",
        "learning_rate has no value; give one, such as 0.0015",
    ),
    ("an objective left empty in YAML", "--config {here}/group_of_none.yaml", "objective 'None' is not one of mae"),
    ("an option twice in YAML", "--config {here}/twice.yaml", "seed is there twice"),
    ("a value that holds itself", "--config {here}/cycle.yaml", "deepspeed holds itself"),
    ("a command's word in YAML", "--config {here}/show.yaml", "no option 'show'"),
    ("origins made up in YAML", "--config {here}/origin.yaml", "origin is what a run writes"),
    ("a seed of 87 bits", "--seed 99999999999999999999999999", "is not in [0, 9e18); try 42"),
    ("a range upside down", "--modality.value_range [5,1]", "the smaller first; try [1.0, 5.0]"),
    ("one word of several wrong", "--pooling cls", "pooling: Expected one of 'lead', 'leads', 'pieces', 'lead+pieces'"),
    ("a fraction for a size", "--modality.image_size 16.5", "Expected one of int, tuple[int, int]. Got value: 16.5"),
    (
        "a decoder's heads",
        "--objective.decoder.heads 7",
        "objective.decoder.width 64 is not a multiple of its heads, 7",
    ),
    ("workers without end", "--dataloader_num_workers 100000", "dataloader_num_workers 100000 is not in [0, 512]"),
    ("a ZeRO stage that there is not", "--data {here}/pictures --deepspeed {here}/stage.json", "stage is 0, 1, 2 or 3"),
    ("a DeepSpeed file of other bytes", "--data {here}/pictures --deepspeed {here}/bytes.yaml", "not JSON"),
    ("weights that there are not", "export.py {here}/pictures --weights pupil", "pupil"),
]


def marked():
    """(situation, what happens, what is said, test) of every test that is marked."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    yield *map(ast.literal_eval, mark.args), f"{file.relative_to(ROOT)}::{node.name}"


def page() -> str:
    """What docs/faults.md says."""
    lines = ["| situation | what happens | what is said | test |", "|---|---|---|---|"]
    for situation, happens, says, test in marked():
        lines.append(f"| {situation} | {happens} | {says} | `{test}` |")
    lines += ["", "## Wrong commands", ""]
    lines += [
        "All are refused before anything is written, by `tests/training/test_faults.py::test_wrong_commands`.",
        "",
    ]
    lines += ["| situation | command | what is said |", "|---|---|---|"]
    for situation, command, says in WRONG:
        shown = re.sub(r"\{here\}/?", "", command)
        shown = shown if shown.startswith(("probe.py", "export.py")) else f"train.py {shown}"
        lines.append(f"| {situation} | `{shown}` | {re.sub(r'{here}/?', '', says)} |")
    return HEAD + "\n".join(lines).replace("<", "&lt;") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
