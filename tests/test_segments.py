import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tinyarr import Device, Tensor
from tinyarr.dtypes import ALL
from tinyarr.errors import ArgumentError, DeviceError, DtypeError, GradientError
from tinyarr.segments import ALIGNMENT, pack

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
