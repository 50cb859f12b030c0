"""Eager execution: kernels allocate nothing, memory is reused and never too early, and out= is right."""

import inspect
import itertools
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import array, eager, views
from tinyarr import distributed as d
from tinyarr.backends.numpy.expression import TILE
from tinyarr.backends.numpy.pool import ALIGNMENT, POOLED_FROM, SPARE, Pool, size_class
from tinyarr.backends.numpy.registry import KERNELS
from tinyarr.errors import DtypeError, ShapeError
from tinyarr.ops import primitive
from tinyarr.ops.elementwise_primitive import Elementwise
from tinyarr.ops.index import index_add
from tinyarr.testing import shapes, tensors

# Law 1: a kernel never allocates


class Recorder:
    """An executor that remembers the calls with kernels of their own."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return getattr(eager, name)

    def run(self, call, operands, outs):
        made = eager.run(call, operands, outs)
        if call.primitive.view is None and made is not None:
            self.calls.append((call, operands))
        return made


def recorded(function, *args):
    recorder = Recorder()
    token = primitive.executor.set(recorder)
    try:
        function(*args)
    finally:
        primitive.executor.reset(token)
    return recorder.calls


def allocated(call, operands):
    """The most bytes that NumPy and Python held while the kernel ran, with its scratch in the pool already."""
    kernel = call.device.backend.kernel(call)
    layouts = kernel.layouts(call) if kernel.layouts else ["any"] * len(operands)
    fitted = [eager.fit(x, layout) for x, layout in zip(operands, layouts, strict=True)]
    inputs = [x.data if isinstance(x, array.Array) else x for x in fitted]
    outputs = [array.empty(call.device, s, t).data for s, t in zip(call.out_shapes, call.out_dtypes, strict=True)]
    kernel.function(inputs, outputs)
    tracemalloc.start()
    kernel.function(inputs, outputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


SORTING = {"argsort", "nonzero"}  # NumPy sorts and counts in memory of its own


def training(tokens, dtype):
    """A program that runs every kernel but those in SORTING."""
    batch = len(tokens)
    w = ta.rand(64, 32, dtype=dtype, requires_grad=True)
    x = ta.layer_norm(ta.embedding(w, tokens), w[0], w[1])
    qkv = x @ ta.concat([w[:32]] * 3, axis=1)
    q, k, v = qkv.reshape((batch, 32, 3, 4, 8)).permute_dims((2, 0, 3, 1, 4))
    x = ta.scaled_dot_product_attention(q, k, v, is_causal=True).permute_dims((0, 2, 1, 3)).reshape((batch, 32, 32))
    x = x.dropout(0.1) + x.max(axis=-1, keepdims=True) - x.min(axis=-1, keepdims=True) + x.std(axis=1, keepdims=True)
    ta.cross_entropy(x.gelu() @ w.T, tokens).backward()
    ta.argmax(x, axis=-1), ta.argmin(x, axis=0), x.sum(axis=0)
    ta.rms_norm(x.detach(), w[0]).cumulative_sum(axis=1).sum().backward()
    w[0].prod().backward()
    (ta.softmax(w) + ta.log_softmax(w)).sum().backward()
    rows = x.detach().reshape((-1, 32))
    ta.linear_cross_entropy(rows, w, tokens.reshape((-1,))).backward()
    ta.linear_cross_entropy(rows, w.detach(), tokens.reshape((-1,)))
    ta.scaled_matmul(rows.astype(ta.float8_e4m3fn), w.detach().astype(ta.float8_e4m3fn), ta.ones(()), ta.ones(()))
    primitive.apply(index_add, w.detach(), rows, tokens.reshape((-1,)), start=0, size=64)
    x.detach().reshape((-1,))[tokens.reshape((-1,))] = 0
    image = x.detach().reshape((batch, 1, 32, 32))
    image.requires_grad = True
    ta.unfold(image, 3).sum().backward()
    for collective in (d.all_reduce, d.reduce, d.broadcast, d.reduce_scatter, d.all_gather):
        collective(rows)


def elementwise(size, dtype):
    """Every elementwise operation without parameters that takes this dtype; dropout is in `training`."""
    for operation in list(primitive.registry.values()):
        parameters = inspect.signature(getattr(operation, "function", lambda *, none: 0)).parameters.values()
        plain = all(p.kind is not p.KEYWORD_ONLY for p in parameters) and "key" not in operation.inputs
        if isinstance(operation, Elementwise) and operation.built_in and plain:
            try:
                operation(*[ta.ones((size,), dtype=dtype)] * len(operation.inputs))
            except DtypeError:
                continue
    ta.ones((size,), dtype=dtype).astype(ta.int8)
    ta.rand(size), ta.randn(size), ta.randint(0, 9, size), ta.arange(size)


def assert_memory_does_not_grow(small, large):
    grown = {}
    for (call, operands), (larger, more) in zip(small, large, strict=True):
        assert call.primitive is larger.primitive
        if isinstance(call.primitive, Elementwise) and views.size(call.out_shapes[0]) <= TILE:
            continue  # less than a tile, and so not what is held at most
        before, after = allocated(call, operands), allocated(larger, more)
        if after > before + 2048:  # bytes: what Python's own small objects may vary by
            grown[repr(larger)] = (before, after)
    assert grown == {}


@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16], ids=lambda d: d.name)
def test_no_kernel_allocates_memory_that_grows_with_its_operands(dtype):
    small, large = (recorded(training, ta.randint(0, 64, (n, 32), dtype=ta.int32), dtype) for n in (48, 192))
    assert {call.primitive.name for call, _ in small} >= {p.name for p in KERNELS} - SORTING - {"wait"}  # of programs
    assert_memory_does_not_grow(small, large)


@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16, ta.int32, ta.bool], ids=lambda d: d.name)
def test_no_elementwise_operation_allocates_memory_that_grows_with_its_operands(dtype):
    assert_memory_does_not_grow(recorded(elementwise, TILE + 1, dtype), recorded(elementwise, 4 * TILE + 1, dtype))


# The pool


def pool():
    return Pool(ta.Device("cpu"))


def address(storage):
    return storage.memory.ctypes.data


@given(st.integers(1, 2**40))
def test_a_size_class_wastes_at_most_a_quarter(nbytes):
    size = size_class(nbytes)
    assert nbytes <= size <= nbytes * 1.25 and size_class(size) == size <= size_class(nbytes + 1)


def test_memory_comes_back_to_the_pool_and_is_used_again():
    free = pool()
    block = free.allocate(100_000)
    place = address(block)
    assert (free.in_use, free.stats().pooled) == (size_class(100_000), 0)
    del block
    assert (free.in_use, free.stats().pooled) == (0, size_class(100_000))
    assert address(free.allocate(99_000)) == place and free.peak == size_class(100_000)


@at_most(50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 10**6)), max_size=60))
def test_live_blocks_never_overlap_and_the_pool_holds_little_more_than_the_peak(steps):
    free, live, peak = pool(), {}, 0
    for slot, nbytes in steps:
        live.pop(slot, None)
        live[slot] = free.allocate(nbytes)
        spans = sorted((address(s), address(s) + s.nbytes) for s in live.values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert address(live[slot]) % ALIGNMENT == 0
        used = sum(size_class(s.nbytes) for s in live.values())
        peak = max(peak, used)
        stats = free.stats()
        assert (stats.in_use, stats.peak) == (used, peak) and stats.in_use + stats.pooled <= SPARE * peak


def test_a_block_whose_memory_is_still_visible_is_not_used_again():
    for export in (lambda x: x.array.data, lambda x: x.T.array.data[2:], lambda x: memoryview(x.array.data)[5:]):
        x = ta.full((300, 300), 7.0)
        visible = export(x)
        del x
        others = [ta.full((300, 300), float(i)) for i in range(4)]
        assert not any(np.shares_memory(np.asarray(visible), t.array.data) for t in others)
        assert np.all(np.asarray(visible) == 7.0)


def test_a_block_is_not_used_again_while_any_tensor_or_graph_needs_it():
    x = ta.full((300, 300), 2.0, requires_grad=True)
    view = (x * 1).detach()[5:, ::2].T
    y = (x * 3).exp() * 1
    fresh = [ta.full((300, 300), float(i)) for i in range(6)]
    assert not any(np.shares_memory(view.array.data, t.array.data) for t in fresh)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 3 * np.exp(np.float32(6)), rtol=1e-6)
    assert np.all(view.numpy() == 2.0)


def test_statistics_count_what_is_in_use_and_the_most_that_was():
    before = ta.memory_stats()
    x = ta.zeros((512, 512))
    during = ta.memory_stats()
    del x
    after = ta.memory_stats()
    assert during.in_use - before.in_use == 512 * 512 * 4 and after.in_use == before.in_use
    assert after.peak >= during.in_use and after.pooled >= 512 * 512 * 4


def test_an_eager_step_takes_its_memory_from_the_pool():
    x = ta.rand(200, 500, requires_grad=True)

    def step():
        x.grad = None
        (x.exp() * x + 1).sum().backward()

    step()
    step()
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < POOLED_FROM


def test_threads_may_allocate_and_free_at_once():
    free, errors = pool(), []

    def work(seed):
        rng = np.random.default_rng(seed)
        live = {}
        try:
            for i in range(3000):
                slot = int(rng.integers(4))
                live[slot] = free.allocate(int(rng.choice([70_000, 90_000])))
                live[slot].memory[:8] = seed
                assert all(s.memory[0] == seed for s in live.values()), i
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []


def test_what_is_remembered_of_shapes_is_bounded(monkeypatch):
    monkeypatch.setattr(primitive, "MOST_CALLS", 10)
    x = ta.Tensor(range(100), dtype=ta.float32, requires_grad=True)
    assert [x[i].item() for i in range(100)] == list(range(100))
    assert len(primitive.registry["index"]._calls) <= 10


def test_of_a_view_that_nothing_records_no_shape_is_remembered():
    x, before = ta.arange(100), len(primitive.registry["index"]._calls)
    assert [x[i].item() for i in range(100)] == list(range(100))
    assert len(primitive.registry["index"]._calls) == before


# fit


def _is_matrix(x):
    if x.ndim < 2:
        return x.strides[-1] == x.itemsize
    (m, n), (row, column) = x.shape[-2:], (s // x.itemsize for s in x.strides[-2:])
    vector = (m > 1 or column == 1) and (n > 1 or row == 1)
    return vector and ((column == 1 and row >= n) or (row == 1 and column >= m))


LAYOUTS = {
    "any": lambda x: True,
    "rows": lambda x: x.strides[-1] == x.itemsize and (x.ndim < 2 or x.strides[-2] >= x.shape[-1] * x.itemsize),
    "dense": lambda x: x.flags.c_contiguous,
    "matrix": _is_matrix,
}


@given(tensors(shapes()), st.sampled_from(list(LAYOUTS)))
def test_fit_copies_exactly_what_does_not_suit_the_kernel(x, layout):
    fitted = eager.fit(x.array, layout)
    assert (fitted is x.array) == (x.size <= 1 or LAYOUTS[layout](x.array.data))
    assert np.array_equal(fitted.data, x.array.data) and (x.size <= 1 or LAYOUTS[layout](fitted.data))


@given(tensors((5, 4), ta.float32), tensors((4, 3), ta.float32))
def test_products_of_any_layouts_are_those_of_copies(x, y):
    np.testing.assert_allclose((x @ y).numpy(), x.numpy() @ y.numpy(), rtol=1e-5, atol=1e-5)


# out=


PATTERNS = [
    (lambda x: x, lambda x: x),
    (lambda x: x[1:], lambda x: x[:-1]),
    (lambda x: x[:-1], lambda x: x[1:]),
    (lambda x: x[::-1], lambda x: x),
    (lambda x: x[: len(x) // 2], lambda x: x[::2][: len(x) // 2]),
]


@pytest.mark.parametrize("size", [10, 3 * TILE])
@pytest.mark.parametrize("pattern", range(len(PATTERNS)))
@pytest.mark.parametrize(
    "operation",
    [
        lambda x, y, out: ta.add(x, y, out=out),
        lambda x, y, out: ta.where(x > 0, x, y, out=out),
        lambda x, y, out: ta.where(x > 0, y, x, out=out),
        lambda x, y, out: ta.sigmoid(x, out=out),
        lambda x, y, out: ta.hypot(y, ta.broadcast_to(x[:1], y.shape), out=out),
    ],
)
def test_out_may_overlap_the_operands_in_any_way(operation, pattern, size):
    source, target = PATTERNS[pattern]
    memory = ta.randn(size, dtype=ta.float64, generator=ta.Generator(0))
    x = source(memory)
    y = ta.randn(x.size, dtype=ta.float64, generator=ta.Generator(1))
    expected = operation(x.clone(), y, None).numpy()
    out = target(memory)
    assert operation(x, y, out) is out and np.array_equal(out.numpy(), expected)


def test_out_may_be_the_condition_itself():
    for shape in ((5,), (TILE + 1,)):
        c, x, y = (ta.randint(0, 2, shape, generator=ta.Generator(i)).astype(ta.bool) for i in range(3))
        expected = np.where(c.numpy(), x.numpy(), y.numpy())
        assert np.array_equal(ta.where(c, x, y, out=c).numpy(), expected)


def test_an_operation_of_several_results_may_write_into_its_operands():
    @ta.elementwise(outputs=("larger", "smaller"))
    def ordered(x, y):
        return ta.maximum(x, y), ta.minimum(x, y)

    @ta.elementwise(outputs=("first", "second"))
    def swapped(x, y):
        return y, x

    for size in (3, TILE + 1):
        a, b = (np.random.default_rng(i).standard_normal(size) for i in range(2))
        x, y = ta.Tensor(a), ta.Tensor(b)
        ordered(x, y, out=(x, y))
        assert np.array_equal(x.numpy(), np.maximum(a, b)) and np.array_equal(y.numpy(), np.minimum(a, b))
        x, y = ta.Tensor(a), ta.Tensor(b)
        swapped(x, y, out=(x, y))
        assert np.array_equal(x.numpy(), b) and np.array_equal(y.numpy(), a)


def test_out_of_another_layout_is_written_in_place():
    memory = ta.zeros((3, 8))
    out = memory[:, ::2].T
    ta.multiply(ta.ones((4, 3)), 2.0, out=out)
    assert memory.tolist() == [[2.0, 0.0] * 4] * 3 and memory.array.storage.version == 1


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (lambda: ta.zeros((3,)), ShapeError, r"add: out has shape \(3,\), the result \(2,\)"),
        (lambda: ta.zeros((2,), dtype=ta.float64), DtypeError, "add: out has dtype float64, the result float32"),
        (lambda: ta.zeros(1).broadcast_to((2,)), ShapeError, "add: out is a broadcast view"),
        (lambda: np.zeros(2), TypeError, "add: out is ndarray: make it a tensor"),
        (lambda: (ta.zeros(2), ta.zeros(2)), ValueError, "add: out holds 2, the results are 1: give a tensor for each"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out, error, message):
    with pytest.raises(error, match=message):
        ta.add(ta.ones((2,)), 1.0, out=out())


def test_an_integer_too_wide_to_be_written_is_refused_by_name():
    x = ta.zeros(2, dtype=ta.int64)
    for name, write in (("full", lambda: x.assign(2**70)), ("add", lambda: ta.add(x, 2**70, out=x))):
        with pytest.raises(DtypeError, match=rf"^{name}: the Python integer {2**70} does not fit int64"):
            write()
