"""What several test files share: ranks as forked processes, and tiny data of every modality."""

import contextlib
import importlib.util
import inspect
import io
import json
import multiprocessing
import os
import runpy
import socket
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch

# Imported once, in the server from which ranks are forked: a rank then starts in a fraction of a second.
PRELOAD = ["torch", "deepspeed", "datasets", "transformers", "torchvision"]
PRELOAD += ["triptych.train", "triptych.training.loop", "triptych.encoders.native", "triptych.evaluation.online"]
PRELOAD += ["pytest", "transformers.models.auto"]  # what files of tests import
# What ZeRO would import for itself in every rank: it compiles a function, for which torch loads its compiler.
PRELOAD += ["deepspeed.runtime.zero.muon.muon_optimizer"]
ROOT = Path(__file__).parents[1]


class Ranks:
    """A function of a test file, called on each of some fresh processes, which a test may kill.

    Arguments and results are plain data and tensors.
    """

    def __init__(self, function, ranks: int, folder: Path, arguments: dict):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.folder, file = folder, inspect.getfile(function)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.processes = []
        for rank in range(ranks):
            environment = {}  # one process is a world of one, and makes it itself
            if ranks > 1:
                environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            job = (file, function.__name__, arguments, str(folder), rank, {k: str(v) for k, v in environment.items()})
            process = context.Process(target=runpy.run_path, args=(__file__, {"JOB": job}, "rank"))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 480) -> list[int | None]:
        """Exit codes of all ranks. When one has failed, the others are killed soon, as launchers do."""
        end = time.monotonic() + seconds
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < end:
            if any(p.exitcode for p in self.processes):
                end = min(end, time.monotonic() + 1)
            self.processes[0].join(0.02) if self.processes[0].exitcode is None else time.sleep(0.02)
        self.kill()
        return [p.exitcode for p in self.processes]

    def results(self, seconds: float = 480) -> list:
        """What the function returned, on each rank."""
        codes = self.wait(seconds)
        assert not any(codes), f"exit codes {codes}\n{self.output()}"
        return [torch.load(self.folder / f"result{r}.pt", weights_only=True) for r in range(len(self.processes))]

    def output(self) -> str:
        """All that the ranks printed."""
        return "\n".join(f.read_text() for f in sorted(self.folder.glob("output*.txt")))

    def kill(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
        for process in self.processes:
            process.join()


def run_rank(file: str, function: str, arguments: dict, folder: str, rank: int, environment: dict[str, str]) -> None:
    output = open(Path(folder) / f"output{rank}.txt", "w", buffering=1)  # noqa: SIM115
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # those of the test's own process
        os.environ.pop(name, None)
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # what a program that was not forked has
    torch.set_num_threads(int(os.environ["TRIPTYCH_TEST_THREADS"]))
    spec = importlib.util.spec_from_file_location("under_test", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["under_test"] = module
    spec.loader.exec_module(module)
    result = getattr(module, function)(**arguments)
    torch.save(result, Path(folder) / f"result{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def plain_environment() -> dict[str, str]:
    """Without what a launcher sets."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {k: v for k, v in os.environ.items() if k not in launcher}


def weights(engine) -> dict[str, torch.Tensor]:
    """All parameters and buffers, whole, on every rank (`Engine.tensors` keeps them on the first)."""
    held = {}
    for name, parameter in engine.module.named_parameters():
        with engine.whole(parameter):
            held[name] = parameter.detach().cpu().clone()
    return held | {name: buffer.detach().cpu().clone() for name, buffer in engine.module.named_buffers()}


def cells(name: str, count: int = 40) -> tuple[list, str]:
    """Tiny samples of a modality, as cells of a column, and the `datasets` feature of that column."""
    random = np.random.default_rng(0)
    if name == "image":
        return [{"bytes": picture(random), "path": f"{i}.png"} for i in range(count)], "Image"
    if name == "audio":
        return [{"bytes": sound(random), "path": f"{i}.wav"} for i in range(count)], "Audio"
    if name == "text":
        words = "river stone light garden music winter table paper window forest market child".split()
        return [" ".join(random.choice(words, random.integers(2, 12))) for _ in range(count)], "string"
    raise KeyError(f"give tests/support.py tiny samples and settings of modality {name!r}")


# Settings that make a modality tiny; the column of a modality's samples bears its name.
TINY = {
    "image": {"image_size": 8, "patch_size": 4, "channels": 1},
    "audio": {"seconds": 0.16, "mel_bins": 16, "tile": [8, 4]},
    "text": {"vocab_size": 300, "max_length": 16},
}
# Arguments of objectives that have these names are set to these values.
SMALL = {
    "head": {"hidden": 32, "out": 16},
    "decoder": {"width": 32, "depth": 1, "heads": 2},
    "queue": 27,
    "prototypes": 24,
    "crops": {"number": 2},
    "samples": 200,  # texts are cut into more than there are rows
    "predictor_rate": 2.0,  # ten, as recipes have it, amplifies rounding
}


def needed(objective: str, modality: str | None = None) -> dict:
    """Options that a user must give beside an objective's name; of a modality, those of a teacher that is there."""
    if objective != "frozen_teacher":
        return {}
    if modality is None:
        return {"objective.teacher": "somewhere"}
    same = {"audio": ("mel_bins", "tile"), "text": ("max_length",)}.get(modality, ())
    suited = {f"modality.{name}": TINY[modality][name] for name in same}
    if modality == "text":
        suited["modality.tokenizer"] = teacher(modality)
    return {"objective.teacher": teacher(modality)} | suited


def teacher(name: str) -> str:
    """Folder of a tiny published encoder of a modality, written once for all processes of a session."""
    import tempfile

    from triptych.encoders.native import family_of, make
    from triptych.modalities import MODALITIES

    folder = Path(os.environ["HF_DATASETS_CACHE"]) / f"teacher-{name}"
    if not folder.exists():
        aside, modality = tempfile.mkdtemp(dir=folder.parent), MODALITIES[name](**TINY[name])
        rows_of(name, modality)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            backbone = make(modality, width=24, depth=1, heads=2)
        family_of(name).export(backbone).save_pretrained(aside)
        modality.save(aside)
        with contextlib.suppress(OSError):  # another process was sooner
            os.rename(aside, folder)
    return str(folder)


def table_of(name: str, count: int = 40):
    """Tiny samples of a modality as a `datasets.Dataset`; the column bears the modality's name."""
    import datasets

    values, kind = cells(name, count)
    feature = datasets.Value("string") if kind == "string" else getattr(datasets, kind)(decode=False)
    return datasets.Dataset.from_list([{name: v} for v in values]).cast(datasets.Features({name: feature}))


def rows_of(name: str, modality, count: int = 40):
    """Tiny rows of a modality that was just built; it is fitted to them."""
    from triptych.training.sources import Rows

    table = table_of(name, count)
    modality.fit(table, name)
    return Rows(table, name, None, "tiny", modality)


def planted(module, good: str, bad: str):
    """A copy of a module with a fault in its source, where `good` stands once."""
    source = inspect.getsource(module)
    assert source.count(good) == 1, f"{good!r} stands {source.count(good)} times in {module.__name__}"
    made = types.ModuleType(f"{module.__name__}_planted")
    exec(compile(source.replace(good, bad), module.__file__, "exec"), made.__dict__)
    return made


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel in colour `[h w 3]`, or grey with alpha `[h w 2]`, which Pillow cannot write."""
    import struct
    import zlib

    height, width, channels = values.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def dicom(values: np.ndarray, kind: str = "MONOCHROME2", bits: int = 12, **fields) -> bytes:
    """A DICOM file of a picture `[h w]`, or `[f h w]` of several frames, with further fields by keyword."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = pydicom.Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.Rows, made.Columns = values.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, kind
    made.BitsAllocated, made.BitsStored, made.HighBit = (8 if bits == 8 else 16), bits, bits - 1
    made.PixelRepresentation = int(values.min() < 0)
    if values.ndim == 3:
        made.NumberOfFrames = len(values)
    if fields.keys() & {"RescaleSlope", "RescaleIntercept"}:
        fields = {"RescaleSlope": 1, "RescaleIntercept": 0} | fields
    for name, value in fields.items():
        setattr(made, name, value)
    made.PixelData = values.astype(np.uint8 if bits == 8 else "<i2" if values.min() < 0 else "<u2").tobytes()
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def nested(dotted: dict) -> dict:
    """Options by dotted name -> as constructors take them."""
    made: dict = {}
    for key, value in dotted.items():
        *path, last = key.split(".")
        into = made
        for part in path:
            into = into.setdefault(part, {})
        into[last] = value
    return made


def config(modality: str, objective: str, folder, /, **options):
    """A tiny configuration of a cell of the tables."""
    from triptych.objectives import OBJECTIVES
    from triptych.training.command_line import read

    known = inspect.signature(OBJECTIVES[objective]).parameters
    given = {
        "output_dir": str(folder),
        "modality": {"name": modality} | TINY.get(modality, {}),
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "objective": {"name": objective} | {k: v for k, v in SMALL.items() if k in known},
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "device": "cpu",
    }
    for group, more in nested(needed(objective, modality)).items():
        given[group] = given[group] | more
    for key, value in options.items():
        given[key] = given[key] | value if isinstance(value, dict) and isinstance(given.get(key), dict) else value
    return read(given)


def picture(random: np.random.Generator, size: int = 12) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(picture(random))
    return folder


def sound(random: np.random.Generator) -> bytes:
    wave = np.sin(np.arange(4000) * random.uniform(0.05, 0.5)) * random.uniform(0.1, 0.8)
    return encoded(wave + 0.01 * random.standard_normal(4000))


def tone(seconds: float = 1.0, rate: int = 16_000, pitch: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(wave: np.ndarray, rate: int = 16_000, format: str = "WAV", subtype: str | None = None) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=format, subtype=subtype)
    return file.getvalue()


NOUNS = "river stone light garden music winter table paper window forest market child engine sugar letter".split()
VERBS = "walks sings holds makes keeps finds turns breaks paints sees".split()


def sentences(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Texts of lognormal lengths, as those of news are."""
    random = np.random.default_rng(seed)
    lengths = np.clip(np.exp(random.normal(2.7, 0.6, count)), 1, longest).astype(int)
    return [" ".join(random.choice(NOUNS if i % 2 else VERBS) for i in range(n)) for n in lengths]


def forget_own() -> None:
    """Code of a user's own is not known any more."""
    from triptych.modalities import MODALITIES
    from triptych.objectives import OBJECTIVES
    from triptych.training import own

    for path in own.USED.values():
        sys.modules.pop(f"own_{Path(path.rpartition(':')[0]).stem}", None)
    own.USED.clear()
    for table in (OBJECTIVES, MODALITIES):
        for name in [name for name in table if own.is_own(name)]:
            del table[name]


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


if __name__ == "rank":
    run_rank(*JOB)  # noqa: F821


# First lines of a script that knows nothing of this project, which may be installed here, too: who imports it fails.
WITHOUT_US = """
import sys
sys.modules["triptych"] = None
"""
