"""Losses and filterbanks are full float32 on a GPU whose other products are TF32 or bfloat16."""

import ast

import pytest
import support
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.modalities import precision
from triptych.modalities.audio import filterbank
from triptych.objectives.contrastive import nt_xent_loss


class Products(TorchDispatchMode):
    """Notes of each product whether TF32 was allowed, and the type of its factors."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[bool, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm"):
            self.seen.append((torch.backends.cuda.matmul.allow_tf32, args[-1].dtype))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def tf32():
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    precision.allow_tf32(True)
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def contrast() -> None:
    pair = torch.randn(2, 6, 8, requires_grad=True)
    nt_xent_loss(*pair, 0.2).backward()


@pytest.mark.parametrize(("work", "products"), [(contrast, 3), (lambda: filterbank(torch.randn(2, 4000), 16), 1)])
def test_products_are_of_full_float32(tf32, work, products):
    with torch.autocast("cpu", torch.bfloat16), Products() as noted:
        work()
    assert len(noted.seen) >= products and set(noted.seen) == {(False, torch.float32)}
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32, "the run's own precision is back"


def test_a_product_and_its_gradients_are_those_of_torch(tf32):
    a, b = torch.randn(4, 3, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(4, 5)
    ours = precision.product(a, b)
    gradients = torch.autograd.grad((ours * weight).sum(), (a, b))
    assert torch.equal(ours, a @ b)
    for found, expected in zip(gradients, torch.autograd.grad(((a @ b) * weight).sum(), (a, b)), strict=True):
        torch.testing.assert_close(found, expected)


def test_objectives_multiply_by_that_product_only():
    names = {"matmul", "mm", "bmm", "einsum", "cdist", "cov", "corrcoef", "addmm", "baddbmm", "inner", "tensordot"}
    for file in (support.ROOT / "objectives").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            plain = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
            called = isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in names
            assert not (plain or called), f"{file.name}:{node.lineno}: use modalities.precision.product"
