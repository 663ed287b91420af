"""What ten labels a class read off plain data, by how long its directions are.

    python benchmarks/plain.py path/to/data

Sound (esc10) is the mean and deviation of each log-mel bin, text (imdb) TF-IDF of its words. `as it is`: logistic
regression on them. `first k`: on their first k principal components, as long as the data varies along them, or
all made equally long. Where the second is far below the first, classes differ along the few directions in which samples
differ most, and an objective that makes directions alike loses them (docs/sizes.md). Twenty draws, in per cent.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression

SETS = ("esc10", "imdb")
FIRST, PER_CLASS, DRAWS, MOST = (10, 20, 40, 100), 10, 20, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", default=SETS, choices=SETS)
    arguments = parser.parse_args()
    print("| set | as it is |" + "".join(f" first {k}, equally long |" for k in FIRST))
    print("|---|---|" + "---|" * len(FIRST))
    for name in arguments.only:
        x, y, test_x, test_y = values(arguments.data / name)
        cells = [said(x, y, test_x, test_y)]
        for k in FIRST:
            found = TruncatedSVD(k, random_state=0).fit(x)
            one, other = found.transform(x), found.transform(test_x)
            whole, each = one.std(), one.std(0)
            pair = (said(one / scale, y, other / scale, test_y) for scale in (whole, each))
            cells.append(", ".join(pair))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def values(folder: Path):
    """Plain values and labels, to learn from and to judge on; of sound centred, each of deviation 1."""
    from triptych.encoders.native import make
    from triptych.evaluation.features import extract
    from triptych.evaluation.labels import splits
    from triptych.evaluation.plain import PLAIN, counted
    from triptych.training.command_line import read

    config = read({"data.name": str(folder), "minutes": 1})
    modality = config.build_modality()
    learn, judge, _, y, test_y, _ = splits(config.data, modality, "train", "test", MOST)
    if config.modality["name"] == "text":
        x, t = counted(*(rows.table[rows.column][:] for rows in (learn, judge)))
        return x, y, t, test_y
    modality.fit(learn.table, learn.column)
    backbone = make(modality, width=8, depth=1, heads=1)  # of which nothing is used
    x, t = (extract(backbone, rows, plain=True) for rows in (learn, judge))
    mean, deviation = x.x[PLAIN].mean(0), x.x[PLAIN].std(0)
    one, other = ((f.x[PLAIN] - mean) / deviation for f in (x, t))
    return one, y[x.row], other, test_y[t.row]


def said(x, y, test_x, test_y) -> str:
    """Accuracy over draws, and its deviation."""
    found = []
    for seed in range(DRAWS):
        random = np.random.RandomState(seed)
        few = np.concatenate([random.permutation(np.flatnonzero(y == c))[:PER_CLASS] for c in np.unique(y)])
        found.append(100 * LogisticRegression(max_iter=2000).fit(x[few], y[few]).score(test_x, test_y))
    return f"{np.mean(found):.1f} ± {np.std(found):.1f}"


if __name__ == "__main__":
    main()
