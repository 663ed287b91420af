"""Make the data of docs/walks.md: radiographs, recordings, reports. All of it is drawn by chance; nobody is in it.

    python examples/walk_data.py radiographs radiographs    # 500 patients, three pictures each, of 12 bits, in folders
    python examples/walk_data.py recordings recordings      # 30 of 2 to 10 minutes, and where the calls in them are
    python examples/walk_data.py reports reports            # 5 MB of documents, as json lines with nested fields

`--share 0.02` makes a fiftieth of it.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np

FINDINGS = ("effusion", "nodule", "device")
CALLS = ("rising", "falling", "pulses", "hiss")
RATES = (22_050, 44_100, 48_000)
WARDS = {
    "cardiology": "heart rhythm valve pressure murmur artery ventricle pulse chest palpitation",
    "orthopaedics": "knee hip fracture joint cartilage splint tendon gait shoulder cast",
    "neurology": "headache seizure reflex nerve tremor speech memory gaze weakness sleep",
    "dermatology": "rash itching lesion skin ointment margin biopsy scale blister pigment",
}
COMMON = (
    "the patient reports that since last week there was some change and on examination we found no sign of more than "
    "a mild problem which has been seen before so that follow up after two months is advised and treatment goes on"
).split()


def radiographs(folder: Path, share: float) -> None:
    """16-bit PNG with values of 12 bits, `site/patient/view.png`, and `metadata.csv`: findings, age and patient."""
    from PIL import Image

    rows, side = [], 512
    y, x = (np.mgrid[0:side, 0:side] / side).astype(np.float32)
    for patient in range(max(12, round(500 * share))):
        draw = np.random.default_rng(patient)
        age, found = int(draw.integers(20, 90)), [f for f in FINDINGS if draw.random() < 0.35]
        tilt, width, bright = draw.normal(0, 0.04), draw.uniform(0.14, 0.2), draw.uniform(0.8, 1.2)
        still = 900 + 700 * bright * np.exp(-(((x - 0.5) / 0.38) ** 4))
        for half in (-1, 1):  # lungs are dark, ribs cross them
            lung = np.exp(-(((x - 0.5 - half * 0.21 - tilt * y) / width) ** 4 + ((y - 0.45) / 0.3) ** 4))
            still -= 700 * lung * (1 - 0.25 * (np.sin(y * 60 + half * x * 8) > 0.6))
        still *= 1 - (age - 20) / 70 * 0.25 * np.exp(-(((x - 0.5) / 0.05) ** 2))  # the spine, thinner with age
        if "effusion" in found:
            still += 500 / (1 + np.exp(-(y - 0.62 + draw.normal(0, 0.02)) * 40)) * (x < 0.5)
        if "device" in found:
            still += 1400 * ((np.abs(x - 0.42) < 0.035) & (np.abs(y - 0.25) < 0.02))
        for view in range(3):
            body = still + draw.normal(0, 12, still.shape)
            if "nodule" in found:
                cy, cx = draw.uniform(0.3, 0.6), 0.5 + draw.choice([-1, 1]) * draw.uniform(0.15, 0.25)
                body += 500 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.0012)
            body = np.roll(body, draw.integers(-12, 13, 2), (0, 1))
            file = folder / f"site_{'ab'[patient % 2]}" / f"patient_{patient:04d}" / f"view_{view}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(body.clip(0, 4095).astype(np.uint16)).save(file)
            name = file.relative_to(folder).as_posix()
            rows.append((name, f"{patient:04d}", "|".join(found) or "clear", age))
    with open(folder / "metadata.csv", "w", newline="") as out:
        csv.writer(out).writerows([("file_name", "patient", "findings", "age"), *rows])


def recordings(folder: Path, share: float) -> None:
    """FLAC at three rates: calls of four kinds in noise, and `segments.csv` of where they are."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(max(6, round(30 * share))):
        draw, rate = np.random.default_rng(number), RATES[number % 3]
        length = int(draw.uniform(120, 600) * max(share, 0.1) * rate)
        wave = draw.normal(0, 10 ** draw.uniform(-3.2, -2.4), length).astype(np.float32)
        wave += 0.01 * np.sin(2 * np.pi * draw.uniform(60, 200) * np.arange(length) / rate).astype(np.float32)  # a hum
        at = draw.uniform(1, 4)
        while at + 3 < length / rate:
            kind, seconds = CALLS[draw.integers(4)], draw.uniform(0.8, 2.5)
            t = np.arange(int(seconds * rate)) / rate
            low, high = draw.uniform(500, 1500), draw.uniform(2500, 5000)
            rise = t / seconds if kind == "rising" else 1 - t / seconds
            call = {
                "rising": lambda rise=rise, t=t, low=low, high=high: np.sin(
                    2 * np.pi * (low + (high - low) * rise / 2) * t
                ),
                "falling": lambda rise=rise, t=t, low=low, high=high: np.sin(
                    2 * np.pi * (low + (high - low) * rise) * t
                ),
                "pulses": lambda t=t, low=low: np.sin(2 * np.pi * 2 * low * t) * (np.sin(2 * np.pi * 9 * t) > 0.3),
                "hiss": lambda t=t, draw=draw: draw.normal(0, 0.5, len(t)),
            }[kind]()
            start = int(at * rate)
            wave[start : start + len(t)] += 10 ** draw.uniform(-1.4, -0.7) * call * np.hanning(len(t)) ** 0.3
            rows.append((f"recording_{number:02d}.flac", round(at, 3), round(at + seconds, 3), kind))
            at += seconds + draw.exponential(4)
        soundfile.write(folder / f"recording_{number:02d}.flac", wave.clip(-1, 1), rate)
    with open(folder / "segments.csv", "w", newline="") as out:
        csv.writer(out).writerows([("file", "start", "end", "label"), *rows])


def reports(folder: Path, share: float) -> None:
    """`reports.jsonl`: a report's text, ward, signs and number of days, in nested fields, several reports a patient."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, wards, rows, size = np.random.default_rng(0), list(WARDS), [], 0
    while size < 5_000_000 * share:
        patient, ward = len(rows) // 3, wards[(len(rows) // 3) % 4]
        words, days = WARDS[ward].split(), int(draw.integers(1, 30))
        signs = sorted({words[i] for i in draw.integers(0, 4, 2)})
        sentences = []
        for _ in range(int(draw.integers(6, 60))):
            sentence = list(draw.choice(COMMON, draw.integers(5, 12)))
            for word in draw.choice([*words, *signs], draw.integers(0, 3)):
                sentence.insert(int(draw.integers(len(sentence))), word)
            if draw.random() < days / 60:
                sentence.append("in hospital again")
            sentences.append(" ".join(sentence).capitalize() + ".")
        text = " ".join(sentences)
        report = {"ward": ward, "signs": "|".join(signs), "days": days}
        rows.append({"id": len(rows), "patient": {"number": f"P{patient:05d}"}, "report": {"text": text} | report})
        size += len(text)
    with open(folder / "reports.jsonl", "w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"radiographs": radiographs, "recordings": recordings, "reports": reports}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    arguments = parser.parse_args()
    kinds[arguments.kind](arguments.folder, arguments.share)


if __name__ == "__main__":
    main()
