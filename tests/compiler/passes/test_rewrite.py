"""Products of half types that stay in float32: where the pass finds them, what they err, and where they lie.

Only CUDA has kernels for them, so here NumPy's take their place.
"""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.memory.plan_checker import follow
from tests.test_primitives import in_tuple
from tinyarr import Device, Tensor, nn
from tinyarr.backends.numpy.registry import KERNELS, NumpyKernel
from tinyarr.compiler import PASSES, Compiled, Interpreter
from tinyarr.compiler.memory.plan import plan
from tinyarr.ops.matmul import matmul_add, matmul_wide
from tinyarr.program import Copy, Node

DTYPES = {"dtype": ta.bfloat16}


@contextlib.contextmanager
def kernels():
    """What the composites compute, as kernels: then the pass finds them."""

    def wide(x, y, out):
        np.matmul(x.astype(np.float32), y.astype(np.float32), out=out)

    def add(c, x, y, out):
        wide(x, y, out)
        np.add(c, out, out=out)

    with pytest.MonkeyPatch.context() as patch:
        for primitive, kernel in ((matmul_wide, wide), (matmul_add, add)):
            patch.setitem(KERNELS, primitive, NumpyKernel(kernel, layouts=None, scratch=None, takes_lists=False))
        yield


def interpreted(function, *args, passes=PASSES):
    """The compiled function, run by the interpreter, since C has no kernels for what the pass makes; its results."""
    compiled = Compiled(function, passes, Interpreter)
    with kernels():
        return compiled, compiled(*args)


def names(compiled, number=-1):
    return sorted(node.call.primitive.name for node in compiled.graphs[number].nodes)


def whole(*shape, dtype=ta.bfloat16, seed=0):
    """Whole numbers so small that no sum of their products is rounded."""
    return Tensor(np.random.default_rng(seed).integers(-2, 3, shape), dtype=dtype)


def wide(x):
    return x.astype(ta.float32)


def weight_used_twice(c, x, y):
    return c + wide(x @ y) + wide((x * 2) @ y)


def made_in_between(c, x, y):
    product = x @ y
    return ta.exp(c + x[0, 0]) + wide(product)


def with_another_reader(c, x, y):
    product = x @ y
    return c + wide(product), product


def with_a_reader_of_the_float32(c, x, y):
    product = wide(x @ y)
    return c + product, product


# What becomes of c (5, 5) in float32 and of x, y (5, 5) in bfloat16; the calls that are left.
CASES = {
    "a sum": (lambda c, x, y: c + wide(x @ y), ["matmul_add"]),
    "a sum the other way": (lambda c, x, y: wide(x @ y) + c, ["matmul_add"]),
    "a sum of transposes": (lambda c, x, y: c + wide((x @ y).T), ["matmul_add"]),
    "a sum seen transposed": (lambda c, x, y: c.T + wide(x.T @ y), ["matmul_add"]),
    "a batch": (lambda c, x, y: c.reshape((1, 5, 5)) + wide((x.reshape((1, 5, 5)) @ y[None]).mT), ["matmul_add"]),
    "two sums": (weight_used_twice, ["matmul_add", "matmul_add", "multiply"]),
    "two products": (lambda c, x, y: wide(x @ y) + wide(y @ x), ["matmul_add", "matmul_wide"]),
    "a conversion": (lambda c, x, y: wide(x @ y), ["matmul_wide"]),
    "a conversion of a transpose": (lambda c, x, y: wide((x @ y).mT), ["matmul_wide"]),
    "another reader": (with_another_reader, ["astype_add", "matmul"]),
    "a reader of the float32": (with_a_reader_of_the_float32, ["add", "matmul_wide"]),
    "made as it is read": (lambda c, x, y: ta.tanh(wide(x @ y)), ["astype_tanh", "matmul"]),
    "made as it is summed": (lambda c, x, y: wide(x @ y).sum(axis=1), ["matmul", "sum"]),
    "made after the product": (made_in_between, ["astype_add_exp_add", "matmul"]),
    "broadcast": (lambda c, x, y: c[:1] + wide(x @ y), ["astype_add", "matmul"]),
    "float64": (lambda c, x, y: c + (x @ y).astype(ta.float64), ["astype_add", "matmul"]),
    "no half type": (lambda c, x, y: c + wide(x) @ wide(y), ["add", "astype", "astype", "matmul"]),
    "a part": (lambda c, x, y: c[1:] + wide((x @ y)[1:]), ["astype_add", "matmul"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_product_stays_wide_where_nothing_reads_it_rounded(case):
    function, left = CASES[case]
    operands = whole(5, 5, dtype=ta.float32), whole(5, 5, seed=1), whole(5, 5, seed=2)
    compiled, found = interpreted(function, *operands)
    _, expected = interpreted(function, *operands, passes=())
    assert names(compiled) == left
    for x, y in zip(in_tuple(found), in_tuple(expected), strict=True):
        assert (x.dtype, x.shape, x.tolist()) == (y.dtype, y.shape, y.tolist())


@given(st.integers(0, 2**32 - 1), st.sampled_from([ta.bfloat16, ta.float16]), st.booleans())
def test_what_is_left_out_is_one_rounding_of_the_product(seed, dtype, transposed):
    rng = np.random.default_rng(seed)
    c, x, y = (Tensor(rng.normal(size=(7, 7)), dtype=d) for d in (ta.float32, dtype, dtype))

    def function(c, x, y):
        return c + wide((x @ y).T if transposed else x @ y)

    compiled, found = interpreted(function, c, x, y)
    assert names(compiled) == ["matmul_add"]
    rounded = function(c, x, y)
    a, b = (z.numpy().astype(np.float64) for z in (x, y))
    product, terms = (z.T if transposed else z for z in (a @ b, np.abs(a) @ np.abs(b)))
    exact, unit, half = c.numpy() + product, ta.finfo(ta.float32).eps, ta.finfo(dtype)
    in_float32 = 7 * unit * (terms + np.abs(exact))
    assert np.all(np.abs(found.numpy() - exact) <= in_float32)
    rounding = half.eps / 2 * np.abs(product) + half.smallest_normal * half.eps
    assert np.all(np.abs(found.numpy() - rounded.numpy()) <= 2 * in_float32 + (1 + half.eps) * rounding)


class Tied(nn.Module):
    """A language model whose head is its table, a linear layer used twice, and a bias."""

    def __init__(self, device="cpu"):
        self.table = nn.Parameter(ta.zeros((12, 4), device=device, **DTYPES))
        self.layer = nn.Linear(4, 4, device=device, **DTYPES)
        for i, p in enumerate(self.parameters()):
            p.grad_dtype = ta.float32
            if p.device.kind == "cpu":
                p.assign(whole(*p.shape, seed=i))

    def forward(self, tokens):
        x = ta.embedding(self.table, tokens)
        return ta.linear(self.layer(self.layer(x)), self.table)


def micro_step(model):
    def step(tokens):
        loss = model(tokens).sum()
        loss.backward()
        return loss

    return step


@pytest.mark.parametrize("way", ["eager", "rewritten", "C"])
def test_the_gradients_of_batches_add_up_in_place(way):
    with ta.no_grad():
        model, plain = Tied(), Tied()
    eager, step = micro_step(plain), micro_step(model)
    compiled = Compiled(step, build=Interpreter) if way == "rewritten" else ta.compile(step)
    step = step if way == "eager" else compiled
    kept = {}
    with kernels() if way == "rewritten" else contextlib.nullcontext():
        for i in range(4):
            tokens = Tensor(np.random.default_rng(i).integers(0, 12, (2, 3)))
            step(tokens), eager(tokens)
            kept = kept or {p: (p.grad, p.grad.array.storage) for p in model.parameters()}
            for p, q in zip(model.parameters(), plain.parameters()):
                assert p.grad.dtype is ta.float32 and p.grad.tolist() == q.grad.tolist()
    for p in model.parameters():
        assert (p.grad, p.grad.array.storage) == kept[p]
    if way == "rewritten":
        assert len(compiled.graphs) == 2
        assert names(compiled).count("matmul_add") == 3
        # At first the head's product waits for the gradient of the embedding, rounded, rather than its factors for it.
        assert {"matmul_add", "matmul_wide", "astype_astype_add"} <= set(names(compiled, 0))


def test_a_product_is_added_where_the_gradient_is():
    device = Device("meta", like="cuda:sm_90")
    model = Tied(device)
    step = ta.compile(micro_step(model))
    tokens = ta.zeros((2, 3), dtype=ta.int64, device=device)
    step(tokens), step(tokens)
    graph = step.graphs[1]
    planned = plan(graph)
    follow(graph, planned)
    added = [s for s in planned.steps if isinstance(s, Node) and s.call.primitive.name == "matmul_add"]
    places = [(planned.place(s.inputs[0].value), planned.place(s.outputs[0])) for s in added]
    assert len(places) == 3 and all(here == there and here.buffer == "state" for here, there in places)
    assert not any(isinstance(s, Copy) and planned.place(s.target).buffer == "state" for s in planned.steps)


def test_on_a_device_without_kernels_for_it_nothing_changes():
    for device in ("cpu", Device("meta", like="cpu")):
        operands = [ta.zeros((5, 5), dtype=d, device=device) for d in (ta.float32, ta.bfloat16, ta.bfloat16)]
        compiled = ta.compile(CASES["a sum"][0])
        compiled(*operands)
        assert names(compiled) == ["astype_add", "matmul"]


@pytest.mark.parametrize("device", ["cpu", ta.Device("meta", like="cuda:sm_90")], ids=["cpu", "cuda"])
def test_to_the_product_of_two_vectors_anything_may_be_added(device):
    def function(a, b, c):
        each = a @ b, ta.vecdot(a, b), ta.tensordot(a, b, axes=1)
        return [product + x for product in each for x in (c, c[0], 2.0)] + [ta.gelu(each[0], approximate="tanh")]

    a, b, c = (Tensor([1.0, 2.0, 3.0]).to(device) if device == "cpu" else ta.zeros((3,), device=device) for _ in "abc")
    found = ta.compile(function)(a, b, c)
    assert [x.shape for x in found] == [(3,), (), ()] * 3 + [()]
    if device == "cpu":
        assert all(np.allclose(x.numpy(), y.numpy()) for x, y in zip(found, function(a, b, c), strict=True))
