"""scikit-learn's 1,797 real handwritten digits (8×8 grey, 17 levels), as 16×16 PNG pictures."""

import io

import numpy as np


def digits():
    """1,200 to train, 597 to test, by a fixed permutation; columns `image` and `label`."""
    import datasets
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.images))
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
    )

    def rows(index):
        for i in index:
            small = Image.fromarray((data.images[i] * 255 / 16).round().astype(np.uint8))
            file = io.BytesIO()
            small.resize((16, 16), Image.Resampling.BICUBIC).save(file, "PNG")
            yield {"image": {"bytes": file.getvalue(), "path": f"{i}.png"}, "label": int(data.target[i])}

    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(list(rows(index)), features=features)
            for split, index in (("train", order[:1200]), ("test", order[1200:]))
        }
    )
