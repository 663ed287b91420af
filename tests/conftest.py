"""One thread, unless told, no network, caches of our own, for every test and for the processes that tests start."""

import os
import tempfile

THREADS = os.environ.setdefault("TRIPTYCH_TEST_THREADS", "1")
CACHE = tempfile.mkdtemp(prefix="triptych-tests-")
os.environ |= {
    "OMP_NUM_THREADS": THREADS,
    "MKL_NUM_THREADS": THREADS,
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_DATASETS_CACHE": CACHE,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CUDA_VISIBLE_DEVICES": os.environ.get("TRIPTYCH_TEST_GPUS", ""),
    "GLOO_SOCKET_IFNAME": "lo",
    "TRIPTYCH_REPORT": "0",  # a page takes a process of its own some seconds; tests of it make theirs
}

import shutil  # noqa: E402

import pytest  # noqa: E402
import support  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(THREADS))


def pytest_unconfigure(config):
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """`launch(function, ranks, **arguments)`: run a function of a test file on fresh, forked ranks."""
    started = []

    def start(function, ranks=2, **arguments):
        started.append(support.Ranks(function, ranks, tmp_path_factory.mktemp("ranks"), arguments))
        return started[-1]

    yield start
    for ranks in started:
        ranks.kill()


@pytest.fixture
def pictures(tmp_path):
    """A folder of 48 small pictures."""
    return support.write_pictures(tmp_path / "pictures", 48)
