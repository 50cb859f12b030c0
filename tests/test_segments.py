import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tinyarr import Device, Tensor
from tinyarr.dtypes import ALL
from tinyarr.errors import ArgumentError, DeviceError, DtypeError, GradientError
from tinyarr.segments import ALIGNMENT, gradient, gradients_in_place, join, pack, part, runs

SHAPES = [(3, 4), (), (0, 2), (33,), (2, 1, 5)]


def numbered(dtype=tinyarr.float32):
    """Tensors of SHAPES that hold 0, 1, 2, ..."""
    start, tensors = 0, []
    for shape in SHAPES:
        n = int(np.prod(shape))
        tensors.append(tinyarr.astype(tinyarr.arange(start, start + n), dtype).reshape(shape))
        start += n
    return tensors


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=2).map(tuple), min_size=1, max_size=6),
    dtype=st.sampled_from(ALL),
    ranks=st.integers(1, 9),
)
def test_every_tensor_and_every_rank_s_share_starts_aligned_and_little_is_wasted(shapes, dtype, ranks):
    tensors = [tinyarr.zeros(shape, dtype=dtype) for shape in shapes]
    segment = pack(tensors, ranks=ranks)
    assert segment.shapes == tuple(shapes)
    end = 0
    for offset, t in zip(segment.offsets, tensors, strict=True):
        assert offset * dtype.itemsize % ALIGNMENT == 0
        assert 0 <= (offset - end) * dtype.itemsize < ALIGNMENT
        end = offset + t.size
    assert segment.flat.shape == (segment.flat.size,)
    assert segment.flat.nbytes % (ranks * ALIGNMENT) == 0
    assert 0 <= segment.flat.nbytes - end * dtype.itemsize < ranks * ALIGNMENT


def test_tensors_keep_identity_and_values_and_lie_in_the_segment_in_order_with_zeros_between():
    tensors = numbered()
    leaf = tensors[0].requires_grad = True
    segment = pack(tensors)
    flat = segment.flat.numpy()
    start = 0
    for i, (t, shape) in enumerate(zip(tensors, SHAPES)):
        assert t.shape == segment.view(i).shape == shape
        assert np.array_equal(t.numpy().ravel(), np.arange(start, start + t.size))
        assert np.array_equal(flat[segment.offsets[i] :][: t.size], np.arange(start, start + t.size))
        start += t.size
    assert flat.sum() == sum(range(start))
    assert tensors[0].requires_grad is leaf and not segment.view(0).requires_grad


def test_tensor_view_and_flat_share_memory():
    tensors = numbered()
    segment = pack(tensors)
    tensors[0].assign(7.0)
    assert (segment.view(0).numpy() == 7).all() and (segment.flat.numpy()[:12] == 7).all()
    segment.flat.assign(8.0)
    assert all((t.numpy() == 8).all() for t in tensors)
    segment.view(1).assign(9.0)
    assert tensors[1].item() == 9 and (segment.flat.numpy() == 9).sum() == 1


def test_a_view_taken_before_keeps_the_old_memory():
    (x, *_) = tensors = numbered()
    before = x.reshape((12,))
    pack(tensors)
    x.assign(7.0)
    assert before.tolist() == list(range(12))


def test_views_in_any_layout_are_packed():
    x = tinyarr.arange(6).reshape((2, 3)).T
    pack([x])
    assert x.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_gradient_reaches_a_packed_leaf():
    x = tinyarr.Tensor([1.0, 2.0], requires_grad=True)
    pack([x])
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 4]


def test_a_write_into_the_segment_is_seen_by_what_saved_a_tensor_in_it():
    x = tinyarr.Tensor([1.0, 2.0], requires_grad=True)
    segment = pack([x])
    y = (x * x).sum()
    segment.flat.assign(3.0)
    with pytest.raises(GradientError, match="written"):
        y.backward()


def test_zeros_has_the_same_layout_and_memory_of_its_own():
    segment = pack(numbered(tinyarr.bfloat16), ranks=4)
    for state in (segment.zeros(), segment.zeros(tinyarr.float32)):
        assert state.offsets == segment.offsets and state.shapes == segment.shapes
        assert state.flat.shape == segment.flat.shape and not state.flat.numpy().any()
    assert segment.zeros().flat.dtype is tinyarr.bfloat16
    assert segment.zeros(tinyarr.float32).flat.dtype is tinyarr.float32
    assert segment.flat.numpy().any()


def recorded_result():
    return tinyarr.ones((2,), requires_grad=True) * 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack([]), ArgumentError, "at least one tensor"),
        (lambda: pack([tinyarr.ones(1)], ranks=0), ArgumentError, "ranks is 0"),
        (lambda: pack([tinyarr.ones(1), tinyarr.arange(1)]), DtypeError, "tensor 0 has dtype float32, tensor 1 int64"),
        (lambda: pack([tinyarr.ones(1), tinyarr.ones(1, device="meta")]), DeviceError, "on cpu, tensor 1 on meta"),
        (lambda: pack([tinyarr.ones(1), recorded_result()]), ArgumentError, "tensor 1 is the result of recorded"),
    ],
)
def test_tensors_that_do_not_belong_together_are_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_error_moves_nothing():
    x = tinyarr.ones((2,))
    storage = x.array.storage
    with pytest.raises(DtypeError):
        pack([x, tinyarr.arange(2)])
    assert x.array.storage is storage


def test_a_segment_is_planned_on_meta():
    segment = pack([tinyarr.empty((1000, 1000), device="meta") for _ in range(3)], ranks=8)
    assert segment.flat.device is Device("meta") and isinstance(segment.view(2), Tensor)
    assert segment.flat.nbytes == 3 * 4_000_000 + 256


@given(st.data(), st.lists(st.lists(st.integers(0, 40), max_size=2).map(tuple), min_size=1, max_size=8))
def test_runs_are_neighbours_with_gradients_of_one_dtype_and_join_as_they_lie(data, shapes):
    kinds = st.sampled_from([None, tinyarr.bfloat16, tinyarr.float32])
    packed = [tinyarr.ones(shape, dtype=tinyarr.bfloat16, requires_grad=True) for shape in shapes]
    elsewhere = tinyarr.ones((3,), requires_grad=True)
    pack(packed)
    for p in (*packed, elsewhere):
        kind = data.draw(kinds)
        p.grad = None if kind is None else tinyarr.randn(p.shape).astype(kind)
    order = data.draw(st.permutations([*packed, elsewhere]))
    found = runs(order)
    assert {id(p) for run in found for p in run} == {id(p) for p in order if p.grad is not None}
    for run in found:
        joined = gradient(run)
        if len(run) == 1:
            assert joined is run[0].grad
            continue
        assert len({p.grad.dtype for p in run}) == 1 and joined.dtype is run[0].grad.dtype
        expected = np.zeros(joined.shape, joined.dtype.numpy)
        for p in run:
            start = p.array.offset - run[0].array.offset
            expected[start : start + p.size] = p.grad.numpy().ravel()
        assert joined.numpy().tobytes() == expected.tobytes()
    for run, following in itertools.combinations(found, 2):  # none could be longer
        end = run[-1].array.offset + -(-run[-1].size // 64) * 64
        touch = run[0].array.storage is following[0].array.storage and end == following[0].array.offset
        assert not touch or run[0].grad.dtype is not following[0].grad.dtype or 0 in map(math.prod, shapes)


def test_a_join_shares_the_memory_of_what_lies_so_already_and_copies_all_else():
    flat = tinyarr.arange(96, dtype=tinyarr.float32)
    halves = [flat[:32].reshape((4, 8)), flat[32:64]]
    whole = join(halves, (0, 32), 64)
    assert whole.array.storage is flat.array.storage and whole.tolist() == list(range(64))
    for tensors, offsets, size in (
        ([flat[:32], flat[32:60]], (0, 32), 64),  # what is behind the last is no zero
        ([flat[:31], flat[32:64]], (0, 32), 64),  # nor what is between them
        ([flat[32:64], flat[:32]], (0, 32), 64),
        ([flat[:32], flat[32:64]], (0, 64), 96),
        ([flat[:32], flat[63:31:-1]], (0, 32), 64),
    ):
        joined, expected = join(tensors, offsets, size), np.zeros(size, np.float32)
        for t, offset in zip(tensors, offsets):
            expected[offset : offset + t.size] = t.numpy()
        assert joined.array.storage is not flat.array.storage and np.array_equal(joined.numpy(), expected)
        parts = [part(joined, t.shape, offset) for t, offset in zip(tensors, offsets)]
        assert join(parts, offsets, size).array.storage is joined.array.storage  # it is known that zeros are there


def test_gradients_move_together_unless_one_of_them_has_a_history():
    packed = [tinyarr.ones((3,), requires_grad=True) for _ in range(2)]
    pack(packed)
    for p in packed:
        p.grad = tinyarr.full((3,), 2.0)
    before = [p.grad for p in packed]
    (memory,) = gradients_in_place(packed)
    memory.assign(5.0)
    assert all(p.grad is g for p, g in zip(packed, before)) and all(g.tolist() == [5.0] * 3 for g in before)
    packed[0].grad = tinyarr.ones((3,), requires_grad=True) * 2
    assert all(g is p.grad for g, p in zip(gradients_in_place(packed), packed, strict=True))
