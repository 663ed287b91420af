"""How much of its tolerance each test uses: `pytest -p margins tests/training/test_ranks.py`.

A bound that rounding uses to more than a tenth fails on the next processor. `docs/tolerances.md` says what was seen
where; `TRIPTYCH_TEST_THREADS`, `ATEN_CPU_CAPABILITY` and `MKL_CBWR` stand in for other machines.
"""

import numpy as np
import pytest
import torch
from torch.testing._comparison import default_tolerances

SEEN: dict[str, list[tuple[float, str]]] = {}
LOOSE = 1e-2  # wider bounds are of draws, not of rounding
current = None


def note(far: float, bound: float, size: float) -> None:
    if current and bound and bound < LOOSE * max(1.0, size):
        SEEN.setdefault(current, []).append((far / bound, f"{far:.1e} of {bound:.1e}"))


def note_arrays(actual, expected, atol: float, rtol: float) -> None:
    """The place that uses most of its bound."""
    actual, expected = (torch.as_tensor(np.asarray(t) if not torch.is_tensor(t) else t) for t in (actual, expected))
    if not expected.is_floating_point() or not expected.numel() or actual.shape != expected.shape:
        return
    a, b = actual.detach().double().flatten(), expected.detach().double().flatten()
    bound = atol + rtol * b.abs()
    share = torch.where(a == b, 0.0, (a - b).abs() / bound)
    worst = share.argmax()
    note((a - b)[worst].abs().item(), bound[worst].item(), b.abs().max().item())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    global current
    current = item.nodeid
    yield
    current = None


def pytest_configure(config):
    scalar = type(pytest.approx(1.0))
    close, all_close, equal = torch.testing.assert_close, np.testing.assert_allclose, scalar.__eq__

    def assert_close(actual, expected, *args, rtol=None, atol=None, **kwargs):
        if torch.is_tensor(actual) and torch.is_tensor(expected):
            usual = default_tolerances(actual, expected)
            note_arrays(actual, expected, usual[1] if atol is None else atol, usual[0] if rtol is None else rtol)
        close(actual, expected, *args, rtol=rtol, atol=atol, **kwargs)

    def assert_allclose(actual, desired, rtol=1e-7, atol=0, **kwargs):
        note_arrays(actual, desired, atol, rtol)
        all_close(actual, desired, rtol=rtol, atol=atol, **kwargs)

    def eq(self, actual):
        if isinstance(self.expected, float | int) and isinstance(actual, float | int):
            note(abs(actual - self.expected), self.tolerance, abs(self.expected))
        return equal(self, actual)

    torch.testing.assert_close, np.testing.assert_allclose = assert_close, assert_allclose
    scalar.__eq__ = eq


def pytest_terminal_summary(terminalreporter):
    """The largest share of each test, its parameters joined; the largest ones first."""
    worst: dict[str, tuple[float, str]] = {}
    for test, shares in SEEN.items():
        name = test.split("[")[0]
        worst[name] = max(worst.get(name, (-1.0, "")), max(shares))
    terminalreporter.section(f"share of the tolerance that is used ({torch.backends.cpu.get_cpu_capability()})")
    for name, (share, what) in sorted(worst.items(), key=lambda pair: -pair[1][0]):
        terminalreporter.write_line(f"{share:7.4f}  {what:22}  {name}")
