r"""Draw what runs hid and guessed, a panel a run, into one picture: the README's.

    python train.py --config configs/image_digits.yaml --output_dir runs/image
    python train.py --config configs/audio_tones.yaml --objective mae --max_steps 800 --output_dir runs/audio
    python train.py --config configs/text_docstrings.yaml --objective masked --max_steps 1200 --learning_rate 0.0015 \
        --output_dir runs/text
    python benchmarks/picture.py runs/image runs/audio runs/text --to docs/guessed.png
"""

import argparse
import re
from pathlib import Path

from triptych.evaluation.load import from_run
from triptych.evaluation.report_samples import exhibits, painted
from triptych.training.sources import load

COUNT, RIGHT, WRONG = 4, "#009E73", "#D55E00"  # samples a panel; Okabe and Ito's colours
LINE, LINES = 54, 4  # characters of a line of text, lines of a sample


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, default=Path("guessed.png"))
    arguments = parser.parse_args()
    figure = pyplot.figure(figsize=(12, 3.6), layout="constrained")
    for part, run in zip(figure.subfigures(1, len(arguments.runs), squeeze=False)[0], arguments.runs, strict=True):
        config, objective, _ = from_run(str(run))
        rows = load(config.data, objective.backbone.modality)
        lines = exhibits(objective, rows, config.data.eval_fraction, COUNT)
        if lines[0][1][0].words is not None:
            write(part.subplots(), [line for _, line in lines[1:]])
        else:
            draw(part.subplots(len(lines), COUNT), lines)
        part.suptitle(f"{config.objective['name']} on {config.data.name}", fontsize=11)
    figure.savefig(arguments.to, dpi=100)


def draw(axes, lines) -> None:
    """Pictures and spectrograms: a row a stage, a column a sample."""
    for row, (name, line) in zip(axes, lines, strict=True):
        for place, one in zip(row, line, strict=True):
            place.imshow(painted(one.picture), aspect="auto" if one.picture.ndim == 2 else "equal")
            place.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.removeprefix("with ").replace("what is left of it", "what is left"), fontsize=8)


def write(axes, lines) -> None:
    """Texts as they were guessed: hidden words in green where that is right, in red where it is not."""
    axes.axis("off")
    height, y = 1 / (COUNT * (LINES + 1)), 1.0
    for one in lines[-1][:COUNT]:
        column = row = 0
        for word in one.words:
            text = word.guess or word.text
            for piece in re.findall(r"\s*\S+|\s+", text):
                if column + len(piece) > LINE:
                    column, row, piece = 0, row + 1, piece.lstrip()
                if row < LINES:
                    colour = "black" if not word.hidden else RIGHT if word.guess == word.text else WRONG
                    style = {"color": colour, "weight": "bold" if word.hidden else "normal", "family": "monospace"}
                    place = column / LINE, y - row * height
                    axes.text(*place, piece, fontsize=8, va="top", transform=axes.transAxes, **style)
                column += len(piece)
        y -= (LINES + 1) * height


if __name__ == "__main__":
    main()
