"""Views against NumPy's: the same elements, and the same memory wherever NumPy needs no copy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import views
from tinyarr.errors import OutOfBounds, ShapeError
from tinyarr.testing import shapes


def slices(n):
    bounds = st.none() | st.integers(-n - 2, n + 2)
    return st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, 3, -1, -2]))


def reshaped(draw, x, a):
    shape, rest = [], a.size
    while rest > 1:
        shape.append(draw(st.sampled_from([n for n in range(rest, 0, -1) if rest % n == 0])))
        rest //= shape[-1]
    if rest == 0:
        shape = [*draw(shapes()), 0]
    return x.reshape(shape), a.reshape(shape)


def permuted(draw, x, a):
    axes = draw(st.permutations(range(a.ndim)))
    return x.permute_dims(axes), a.transpose(axes)


def sliced(draw, x, a):
    key = (*(draw(slices(n)) for n in a.shape[: draw(st.integers(0, a.ndim))]), ...)
    return x[key], a[key]


def broadcast(draw, x, a):
    shape = (draw(st.integers(1, 3)), *(draw(st.integers(0, 3)) if n == 1 else n for n in a.shape))
    return x.broadcast_to(shape), np.broadcast_to(a, shape)


def expanded(draw, x, a):
    axis = draw(st.integers(-a.ndim - 1, a.ndim))
    return x.expand_dims(axis), np.expand_dims(a, axis)


def squeezed(draw, x, a):
    axes = tuple(i for i, n in enumerate(a.shape) if n == 1)
    return x.squeeze(axes), a.squeeze(axes)


def flipped(draw, x, a):
    axes = tuple(i for i in range(a.ndim) if draw(st.booleans()))
    return x.flip(axis=axes), a[(..., *(slice(None, None, -1 if i in axes else 1) for i in range(a.ndim)))]


def cut(draw, x, a):
    if not a.ndim:
        return x, a
    axis = draw(st.integers(0, a.ndim - 1))
    at, part = draw(st.integers(0, a.shape[axis])), draw(st.integers(0, 1))
    return x.split([at, a.shape[axis] - at], axis=axis)[part], np.split(a, [at], axis)[part]


VIEWS = st.sampled_from([reshaped, permuted, sliced, broadcast, expanded, squeezed, flipped, cut])


@at_most(500)
@given(st.data())
def test_chains_of_views_have_numpys_elements_and_share_memory_where_numpy_does(data):
    shape = data.draw(shapes(max_ndim=4))
    a = np.arange(math.prod(shape)).reshape(shape)
    x = ta.Tensor(a)
    for _ in range(data.draw(st.integers(1, 6))):
        y, b = data.draw(VIEWS)(data.draw, x, a)
        assert y.shape == b.shape and y.tolist() == b.tolist()
        if b.size:
            assert (y.array.storage is x.array.storage) == np.shares_memory(a, b)
            low, high = views.extent(y.array.view)
            assert 0 <= low < high <= y.array.storage.nbytes // y.dtype.itemsize
        if b.size < 2000:
            x, a = y, b


@at_most(200)
@given(st.data())
def test_a_write_through_a_chain_of_views_arrives_in_the_first(data):
    first = np.arange(24.0).reshape(2, 3, 4)
    x = start = ta.Tensor(first)
    a = first
    for _ in range(data.draw(st.integers(1, 4))):
        y, b = data.draw(VIEWS)(data.draw, x, a)
        if np.shares_memory(b, first) and b.flags.writeable:
            x, a = y, b
    x.assign(-1.0)
    a[...] = -1.0
    assert start.tolist() == first.tolist()


@given(shapes(max_ndim=4))
def test_a_fresh_tensor_is_contiguous(shape):
    view = views.contiguous(shape)
    assert views.is_contiguous(view) and views.reshape(view, shape) == view
    assert ta.zeros(shape).contiguous() is not None


def test_contiguous_copies_what_is_not():
    x = ta.arange(6).reshape((2, 3))
    assert x.contiguous() is x
    y = x.T.contiguous()
    assert y.tolist() == x.T.tolist() and y.array.storage is not x.array.storage


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (lambda x: x.reshape((4, 2)), r"x has shape \(2, 3\) \(6 elements\), shape is \(4, 2\) \(8 elements\)"),
        (lambda x: x.reshape((-1, 4)), "-1 stands for no whole number"),
        (lambda x: x.reshape((-1, -1)), "every size must be 0 or more"),
        (lambda x: x.reshape((0, -1)), "-1 stands for no whole number"),
        (lambda x: x.permute_dims((0,)), r"permute_dims: axes is \(0,\), x has 2 dimensions: each axis must come once"),
        (lambda x: x.permute_dims((1, 1)), "each axis must come once"),
        (lambda x: x.permute_dims((0, 2)), "permute_dims: axis is 2, the tensor has 2 dimensions"),
        (lambda x: x.broadcast_to((3, 3)), r"broadcast_to: x has shape \(2, 3\), shape is \(3, 3\)"),
        (lambda x: x.broadcast_to((3,)), "each size must be equal or 1"),
        (lambda x: x.broadcast_to((-2, 3)), "every size must be 0 or more"),
        (lambda x: x.squeeze(0), r"squeeze: x has shape \(2, 3\), axis is 0: axis 0 has size 2, not 1"),
        (lambda x: x.expand_dims(4), "expand_dims: axis is 4"),
        (lambda x: x.flip(axis=(0, -2)), "an axis is named twice"),
        (lambda x: x.split([1, 2]), r"sizes are \(1, 2\): they must sum to 2"),
        (lambda x: x.split([3, -1]), "they must sum to 2"),
        (lambda x: x.split(0), "it must be at least 1"),
        (lambda x: x.sum().T, r"T: x has shape \(\): it must have 2 dimensions"),
        (lambda x: x[0].mT, "at least 2 dimensions"),
        (lambda x: x + ta.ones((2,)), r"add: shapes \(2, 3\) and \(2,\) do not broadcast: axis -1 has sizes 3 and 2"),
    ],
)
def test_what_is_no_view_is_refused_with_the_operation_and_the_shapes(view, message):
    with pytest.raises((ShapeError, OutOfBounds), match=message):
        view(ta.zeros((2, 3)))


def test_transposes_are_those_of_the_standard():
    x = ta.arange(24).reshape((2, 3, 4))
    assert x.mT.tolist() == x.swapaxes(1, 2).tolist() == x.permute_dims((0, 2, 1)).tolist()
    assert x.mT.tolist() == np.arange(24).reshape(2, 3, 4).swapaxes(1, 2).tolist()
    assert x[0].T.tolist() == x[0].mT.tolist()


def test_split_cuts_into_equal_pieces_with_a_smaller_last_one():
    assert [p.tolist() for p in ta.arange(5).split(2)] == [[0, 1], [2, 3], [4]]
    assert [p.shape for p in ta.zeros((0, 2)).split(3)] == [(0, 2)]


@given(st.lists(shapes(max_side=3), min_size=1, max_size=4))
def test_shapes_broadcast_as_numpys_do(some):
    try:
        expected = np.broadcast_shapes(*some)
    except ValueError:
        with pytest.raises(ShapeError, match="do not broadcast"):
            views.broadcast_shapes("test", *some)
    else:
        assert views.broadcast_shapes("test", *some) == expected
