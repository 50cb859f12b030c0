"""Tensors in Python's hands: creation, operators, indexing, writes, and what hangs on a storage."""

import copy
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tinyarr.errors import ArgumentError, DtypeError, GradientError, OutOfBounds, ShapeError
from tinyarr.testing import shapes


def like(t, expected):
    """The same shape, dtype and elements."""
    expected = np.asarray(expected)
    assert (t.shape, t.dtype.numpy) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(t.numpy(), expected)


# Creation


def test_creation_functions_have_the_standards_shapes_and_dtypes():
    like(ta.zeros((2, 3)), np.zeros((2, 3), np.float32))
    like(ta.ones(4, dtype=ta.int8), np.ones(4, np.int8))
    like(ta.full((2,), 7), np.full(2, 7))
    like(ta.full((), True), np.array(True))
    like(ta.full((1,), 2.5), np.array([2.5], np.float32))
    like(ta.full((1,), np.float64(2.5)), np.array([2.5], np.float32))
    like(ta.eye(2, 3, k=1), np.eye(2, 3, 1, np.float32))
    like(ta.eye(3, k=-1, dtype=ta.int64), np.eye(3, k=-1, dtype=np.int64))
    like(ta.zeros((0, 2)), np.zeros((0, 2), np.float32))
    assert ta.empty((2, 5), dtype=ta.bfloat16).shape == (2, 5)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7).filter(bool), st.sampled_from([int, np.int64]))
def test_arange_of_integers_is_numpys(start, stop, step, kind):
    like(ta.arange(kind(start), kind(stop), kind(step)), np.arange(start, stop, step))


def test_arange_of_floats_is_computed_wide_and_rounded_once():
    like(ta.arange(0.0, 1.0, 0.1), np.arange(0.0, 1.0, 0.1).astype(np.float32))
    like(ta.arange(3.0), np.arange(3, dtype=np.float32))
    like(ta.arange(5, dtype=ta.float64), np.arange(5.0))


def test_like_functions_take_what_they_are_not_given_from_the_tensor():
    x = ta.ones((2, 3), dtype=ta.float64)
    like(ta.zeros_like(x), np.zeros((2, 3)))
    like(ta.ones_like(x, dtype=ta.int32), np.ones((2, 3), np.int32))
    like(ta.full_like(x, 5), np.full((2, 3), 5.0))
    assert ta.empty_like(x, device="meta").device == ta.Device("meta") and ta.empty_like(x).dtype is ta.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ta.zeros((2, -1)), r"shape is \(2, -1\): every size must be 0 or more"),
        (lambda: ta.full((2,), "a"), r"full: fill_value is 'a' \(str\): use a Python bool, int or float"),
        (lambda: ta.arange(1, 2, 0), "step is 0"),
        (lambda: ta.full((2,), 300, dtype=ta.uint8), "300 does not fit uint8"),
    ],
)
def test_what_can_not_be_created_is_refused(make, message):
    with pytest.raises((ShapeError, ArgumentError, DtypeError), match=message):
        make()


# Attributes


@given(shapes(max_ndim=4))
def test_a_tensor_knows_its_extent(shape):
    x = ta.zeros(shape, dtype=ta.int16)
    assert (x.shape, x.ndim, x.size, x.nbytes) == (shape, len(shape), math.prod(shape), 2 * math.prod(shape))
    if shape:
        assert len(x) == shape[0]


def test_len_and_iteration_go_over_the_first_axis():
    x = ta.arange(6).reshape((3, 2))
    assert [row.tolist() for row in x] == [[0, 1], [2, 3], [4, 5]]
    a, b, c = x
    assert c.tolist() == [4, 5] and c.array.storage is x.array.storage
    assert 3 in x[1] and 7 not in x[1]
    with pytest.raises(ShapeError, match="a 0-d tensor has no length"):
        len(ta.Tensor(1))


def test_a_single_element_converts_to_python_numbers():
    assert (float(ta.Tensor([2.5])), int(ta.Tensor(2.5)), bool(ta.Tensor([[0]]))) == (2.5, 2, False)
    assert list(range(9))[ta.Tensor(3)] == 3 and operator.index(ta.Tensor(3, dtype=ta.uint8)) == 3
    for bad in (ta.Tensor(1.0), ta.Tensor(True)):
        with pytest.raises(DtypeError, match="only an integer can be an index"):
            operator.index(bad)
    for bad in (ta.ones((2,)), ta.ones((0,))):
        with pytest.raises(ShapeError, match=r"bool: the truth of a tensor of shape .* is ambiguous"):
            bool(bad)
        with pytest.raises(ShapeError, match=r"item: the tensor has shape"):
            float(bad)


def test_a_tensor_is_a_key_although_equality_is_elementwise():
    x, y = ta.ones((2,)), ta.ones((2,))
    names = {x: "x", y: "y"}
    assert (names[x], names[y], len({x, y, x})) == ("x", "y", 2)
    assert (x == y).tolist() == [True, True]
    assert (x == None) is False and (x != "one") is True  # noqa: E711


# Operators


BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
]  # fmt: skip
BITS = [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift]


def expected_value(op, a, b):
    with np.errstate(all="ignore"):
        return op(a, b)


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
@pytest.mark.parametrize("scalar", [2, -3, 0.5, True, np.float32(2), np.int64(3), np.float64(0.25)], ids=repr)
def test_operators_of_floats_with_scalars_are_numpys_from_both_sides(op, scalar):
    a = np.array([-2.5, -1.0, 0.0, 1.5, 4.0], np.float32)
    x = ta.Tensor(a)
    for found, expected in (
        (op(x, scalar), expected_value(op, a, np.float32(scalar))),
        (op(scalar, x), expected_value(op, np.float32(scalar), a)),
        (op(x, x), expected_value(op, a, a)),
    ):
        assert found.dtype.numpy == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=np.finfo(np.float32).eps)


@pytest.mark.parametrize("op", [o for o in BINARY if o is not operator.truediv] + BITS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("scalar", [2, 3, np.int64(1)], ids=repr)
def test_operators_of_integers_with_scalars_are_numpys_from_both_sides(op, scalar):
    a = np.arange(1, 6)
    x = ta.Tensor(a)
    like(op(x, scalar), op(a, scalar))
    like(op(scalar, x), op(scalar, a))
    like(op(x, x), op(a, a))


def test_floor_division_and_remainder_have_the_sign_of_the_divisor():
    a = np.array([-7, -1, 0, 1, 7])
    for divisor in (3, -3):
        like(ta.Tensor(a) // divisor, a // divisor)
        like(ta.Tensor(a) % divisor, a % divisor)
        like(ta.Tensor(a, dtype=ta.float64) % divisor, a.astype(float) % divisor)


def test_division_of_integers_is_float32():
    like(ta.Tensor([1, 2]) / 4, np.array([0.25, 0.5], np.float32))
    like(1 / ta.Tensor([4, 2], dtype=ta.uint8), np.array([0.25, 0.5], np.float32))


def test_unary_operators_and_matmul():
    x = ta.Tensor([[1.0, -2.0], [0.0, 4.0]])
    like(-x, -x.numpy())
    like(abs(x), abs(x.numpy()))
    assert +x is x
    like(~ta.Tensor([True, False]), np.array([False, True]))
    like(~ta.Tensor([0, 5]), np.array([-1, -6]))
    like(x @ x, x.numpy() @ x.numpy())


def test_augmented_assignment_makes_a_new_tensor():
    x = y = ta.ones((2,))
    x += 1
    assert x.tolist() == [2.0, 2.0] and y.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("other", [None, "a", [1.0, 2.0], np.ones(2), {}], ids=lambda x: type(x).__name__)
def test_operators_refuse_what_is_neither_tensor_nor_scalar(other):
    x = ta.ones((2,))
    with pytest.raises(TypeError, match=rf"add: y is {type(other).__name__}: make it a tensor"):
        x + other
    with pytest.raises(TypeError, match=rf"subtract: x is {type(other).__name__}: make it a tensor"):
        other - x


@pytest.mark.parametrize("other", [object(), None, "a", [1.0, 1.0], 1j, {}], ids=lambda x: type(x).__name__)
def test_what_is_neither_tensor_nor_scalar_equals_no_tensor(other):
    x = ta.ones((2,))
    assert (x == other) is False and (other == x) is False and (x != other) is True
    assert x in [other, x] and x not in [other]
    with pytest.raises(TypeError, match="'<' not supported"):
        operator.lt(x, other)


def test_comparing_with_an_array_is_refused_aloud():
    with pytest.raises(TypeError, match="equal: y is ndarray: make it a tensor"):
        operator.eq(ta.ones(2), np.ones(2))
    assert (ta.ones(2) == np.float64(1)).tolist() == (np.float64(1) == ta.ones(2)).tolist() == [True, True]


@given(st.sampled_from([1, 1.0, True]), st.sampled_from([0.0, -0.0]))
def test_parameters_that_python_calls_equal_are_different_ones(first, zero):
    @ta.elementwise
    def times(x, *, by):
        return x * by

    x = ta.Tensor([3])
    for by, dtype in ((first, None), (1, ta.int64), (1.0, ta.float32), (True, ta.int64), (1, ta.int64)):
        assert dtype is None or times(x, by=by).dtype is dtype
    for by in (zero, 0.0, -0.0):
        assert math.copysign(1, times(ta.Tensor(1.0), by=by).item()) == math.copysign(1, by)


# Indexing


@st.composite
def keys(draw, shape):
    """A basic index for an array of `shape`."""
    parts = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        bounds = st.none() | st.integers(-n - 2, n + 2)
        choices = [st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1, -3]))]
        if n:
            choices.append(st.integers(-n, n - 1))
        parts.append(draw(st.one_of(*choices)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(parts)))
        used = len(parts)
        parts.insert(at, ...)
        # What stands behind the Ellipsis counts from the last axis, whose size may be another: keep to slices there.
        parts[at + 1 :] = [p if isinstance(p, slice) else slice(None) for p in parts[at + 1 :]]
        assert used <= len(shape)
    for _ in range(draw(st.integers(0, 2))):
        parts.insert(draw(st.integers(0, len(parts))), None)
    return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)


@given(st.data())
def test_basic_indices_give_numpys_elements_as_views(data):
    shape = data.draw(shapes(max_ndim=4))
    a = np.arange(math.prod(shape)).reshape(shape)
    x, key = ta.Tensor(a), data.draw(keys(shape))
    like(x[key], a[key])
    assert x[key].array.storage is x.array.storage


@given(st.data())
def test_basic_indices_have_the_gradient_that_writes_back_where_they_read(data):
    shape = data.draw(shapes())
    a = np.zeros(shape)
    x, key = ta.Tensor(a, requires_grad=True), data.draw(keys(shape))
    y = x[key]
    g = np.arange(1.0, y.size + 1).reshape(y.shape)
    (y * ta.Tensor(g)).sum().backward()
    a[key] = g
    like(x.grad, a)


@given(st.data())
def test_writes_at_basic_indices_are_numpys(data):
    shape = data.draw(shapes(max_ndim=4))
    a = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    x, key = ta.Tensor(a), data.draw(keys(shape))
    part = a[key]
    value = data.draw(st.sampled_from([7, 2.9, np.int8(-3), np.full(part.shape, 5.5, np.float32), np.ones((), bool)]))
    x[key] = ta.Tensor(value) if isinstance(value, np.ndarray) else value
    a[key] = value
    like(x, a)


@given(st.data())
def test_an_integer_tensor_takes_along_its_axis(data):
    shape = data.draw(shapes(min_ndim=1, max_ndim=3, min_side=1))
    a = np.arange(math.prod(shape)).reshape(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    index = data.draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), max_size=4))
    index = np.array(index, data.draw(st.sampled_from([np.int64, np.int32, np.int8])))
    key = (*(slice(None),) * axis, index)
    like(ta.Tensor(a)[(*key[:-1], ta.Tensor(index))], a[key])


def test_a_0_d_integer_tensor_is_an_index():
    x = ta.arange(6).reshape((2, 3))
    assert x[ta.Tensor(1)].tolist() == [3, 4, 5] and x[ta.Tensor(0), ta.Tensor(2, dtype=ta.int8)].item() == 2
    x[ta.Tensor(-1), 0] = 9
    assert x[1].tolist() == [9, 4, 5]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (2, "index: 2 is outside axis 0 of size 2: use -2 to 1"),
        ((0, -4), "index: -4 is outside axis 1 of size 3"),
        ((0, 0, 0), r"3 indices came for a tensor of shape \(2, 3\)"),
        ((..., ...), "more than one Ellipsis"),
        ((0, True), "a single bool came among other indices"),
        (1.0, r"1.0 \(float\) is no index"),
        ("a", r"'a' \(str\) is no index"),
        (ta.Tensor([0.5]), "index: a tensor in the key has dtype float32"),
        (ta.Tensor([True, False, True]), r"x has shape \(2, 3\), a mask has shape \(3,\)"),
        ((ta.Tensor([0]), 3), "index: 3 is outside axis 1 of size 3"),
        (ta.Tensor([0, 2]), "take: .* 2, the axis has size 2"),
        (ta.Tensor([-3]), "take: .* -3, the axis has size 2"),
    ],
    ids=repr,
)
def test_a_bad_index_is_named(key, message):
    with pytest.raises((OutOfBounds, DtypeError, ShapeError), match=message):
        ta.zeros((2, 3))[key]


# Writes


def version(t):
    return t.array.storage.version


def test_a_write_through_any_view_is_seen_by_all_and_counted_once():
    x = ta.zeros((2, 3))
    views = [x.T, x.reshape((6,)), x[1], x[:, ::-1], x.detach(), x.split([1, 1])[1]]
    for i, view in enumerate([x, *views], 1):
        view.assign(float(i))
        assert {version(v) for v in [x, *views]} == {i}
        assert x[1, 2].item() == views[0][2, 1].item() == views[1][5].item() == views[3][1, 0].item() == i


def test_only_writes_are_counted():
    x = ta.zeros((2, 3))
    _ = (x + 1, x.T, x.numpy(), x.sum(), x[0], copy.copy(x), x.clone(), x == x, x.tolist(), repr(x))
    assert version(x) == 0
    ta.add(x, 1.0, out=x)
    x[0] = 2
    assert version(x) == 2


def test_assign_broadcasts_and_casts_and_returns_the_tensor():
    x = ta.zeros((2, 3), dtype=ta.int32)
    assert x.assign(ta.Tensor([1.9, -1.9, 5.0])) is x
    assert x.tolist() == [[1, -1, 5]] * 2
    x.assign(ta.Tensor([[7], [8]], dtype=ta.int8))
    assert x.tolist() == [[7] * 3, [8] * 3]
    x[:, 0] = np.int64(3)
    assert x.tolist() == [[3, 7, 7], [3, 8, 8]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ta.ones((2,)), r"assign: shapes \(2,\) and \(2, 3\) do not broadcast"),
        (ta.ones((4, 2, 3)), r"assign: value has shape \(4, 2, 3\), x has shape \(2, 3\)"),
        (np.ones((2, 3)), "assign: value is ndarray: make it a tensor"),
        ([1, 2, 3], "assign: value is list"),
        (None, "assign: value is NoneType"),
        (300, "300 does not fit int8"),
        (ta.ones((3,), device="meta"), "assign: x is on cpu, value on meta: move it with value.to"),
    ],
    ids=repr,
)
def test_a_value_that_does_not_fit_is_refused_and_nothing_is_written(value, message):
    x = ta.zeros((2, 3), dtype=ta.int8)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        x[...] = value
    assert version(x) == 0 and x.tolist() == [[0] * 3] * 2


def test_a_write_where_elements_share_memory_is_refused():
    x = ta.zeros((3,))
    with pytest.raises(ShapeError, match="broadcast view: several elements share memory"):
        x.broadcast_to((2, 3)).assign(1.0)


@given(st.data())
def test_a_write_from_an_overlapping_view_reads_before_it_writes(data):
    n = data.draw(st.sampled_from([6, 70_000]))
    a = np.arange(n)
    x = ta.Tensor(a)
    size = data.draw(st.integers(1, n))
    starts = st.integers(0, n - size)
    source, target = (slice(start, start + size) for start in (data.draw(starts), data.draw(starts)))
    step = data.draw(st.sampled_from([1, -1]))
    x[target] = x[source][::step]
    a[target] = a[source][::step].copy()
    like(x, a)


def test_clone_and_copy_have_memory_of_their_own():
    x = ta.arange(4).reshape((2, 2)).T
    for y in (x.clone(), ta.copy(x), x.astype(ta.int64)):
        assert y.tolist() == x.tolist() and y.array.storage is not x.array.storage


def test_a_python_integer_that_the_dtype_cannot_hold_is_refused():
    for data, dtype in (([1, 300], ta.uint8), ([-1], ta.uint64), (2**40, ta.int32)):
        with pytest.raises(DtypeError, match=f"does not fit {dtype.name}"):
            ta.Tensor(data, dtype=dtype)


@pytest.mark.parametrize(
    ("bounds", "outside"), [((300,), 299), ((0, -3, -1), -2), ((256, 0, -8), 256), ((299.5,), 299)], ids=repr
)
def test_counting_past_what_the_dtype_holds_is_refused(bounds, outside):
    with pytest.raises(DtypeError, match=f"arange: .* {outside} does not fit uint8"):
        ta.arange(*bounds, dtype=ta.uint8)


def test_counting_up_to_what_the_dtype_holds_is_not_refused():
    assert ta.arange(0, 300, 85, dtype=ta.uint8).tolist() == [0, 85, 170, 255]
    assert ta.arange(300, 0, dtype=ta.uint8).shape == (0,)


@pytest.mark.parametrize("bounds", [(math.nan,), (0, math.inf), (0, 1, math.nan)], ids=repr)
def test_counting_without_an_end_is_refused(bounds):
    with pytest.raises(ArgumentError, match=r"arange: .*they must be finite"):
        ta.arange(*bounds)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_slice_may_have_any_step(n):
    x = ta.Tensor(range(n), dtype=ta.float64, requires_grad=True)
    for step in (2**59, 2**62, -(2**62), 2**63 - 1):
        y = x[::step]
        assert y.tolist() == list(range(n))[::step]
        assert ta.gradients([y.sum()], [x])[0].tolist() == [float(i in range(n)[::step]) for i in range(n)]


def test_a_whole_slice_is_a_view_of_its_own():
    x = ta.zeros(3)
    x[:].requires_grad = True
    assert not x.requires_grad
    x[...][1] = 5.0
    assert x.tolist() == [0.0, 5.0, 0.0]


def test_a_tensor_that_requires_a_gradient_does_not_cross_devices_in_silence():
    with pytest.raises(GradientError, match="detach"):
        ta.zeros(3, requires_grad=True).to("meta")
    with pytest.raises(OutOfBounds, match="is -1"):
        ta.embedding(ta.zeros((3, 2)), ta.Tensor([-1]))


@pytest.mark.parametrize("name", ["sum", "max", "argmin", "mean", "var", "std", "softmax", "logsumexp"])
def test_a_list_is_no_tensor_to_reduce(name):
    with pytest.raises(TypeError, match=f"{name}: x is list: make it a tensor"):
        getattr(ta, name)([1.0, 2.0])


@pytest.mark.parametrize("operation", [ta.stack, ta.concat], ids=lambda f: f.__name__)
def test_numbers_are_no_tensors_to_join(operation):
    with pytest.raises(TypeError, match=f"{operation.__name__}: tensor 1 is int: make it a tensor"):
        operation([ta.ones(2), 1])


@pytest.mark.parametrize(
    "name", ["max", "min", "argmax", "argmin", "softmax", "log_softmax", "logsumexp", "mean", "var", "std"]
)
def test_an_axis_that_does_not_fit_is_named_with_the_operation_that_was_called(name):
    with pytest.raises(OutOfBounds, match=rf"^{name}: axis is 5"):
        getattr(ta, name)(ta.ones((2, 0)), axis=5)
    if name in ("max", "min", "argmax", "argmin"):
        with pytest.raises(ShapeError, match=rf"^{name}: x has shape \(2, 0\), axis is \(1,\): an empty axis"):
            getattr(ta, name)(ta.ones((2, 0)), axis=-1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ta.linear(ta.ones((2, 3)), ta.ones((4, 3)), ta.ones((7, 1, 1))), ShapeError, r"bias must be \(out,\)"),
        (lambda: ta.linear(ta.ones((2, 3)), ta.ones((4, 3)), 1.0), TypeError, "linear: bias is float"),
        (lambda: ta.embedding(ta.Tensor(1.0), ta.arange(2)), ShapeError, "embedding: weight is 0-d"),
        (lambda: ta.layer_norm(ta.ones((2, 0)), ta.ones(0), ta.ones(0)), ShapeError, "layer_norm: .*at least one"),
        (lambda: ta.argmax(ta.ones(0)), ShapeError, r"^argmax: x has shape \(0,\)"),
    ],
)
def test_operands_that_a_layer_can_not_take_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
