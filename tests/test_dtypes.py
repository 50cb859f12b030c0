"""Dtypes: identity, promotion, and casts that are ml_dtypes' own."""

import copy
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tinyarr.dtypes import ALL, FLOAT8, dtype
from tinyarr.errors import DtypeError

PLAIN = [d for d in ALL if d not in (ta.bfloat16, *FLOAT8)]
HALVES = [(ta.bfloat16, ml_dtypes.bfloat16), (ta.float16, np.float16)]
QUARTERS = [(ta.float8_e4m3fn, ml_dtypes.float8_e4m3fn), (ta.float8_e5m2, ml_dtypes.float8_e5m2)]


def patterns(numpy_type):
    """Every value of a small dtype."""
    width = np.dtype(numpy_type).itemsize
    return np.arange(256**width, dtype=f"u{width}").view(numpy_type)


def same(x, expected):
    """Whether all bits are equal, except that a NaN is a NaN."""
    a, b = (y.view(f"u{y.dtype.itemsize}") for y in (x.numpy(), expected))
    with np.errstate(invalid="ignore"):  # ml_dtypes' isnan reports the signaling ones
        return bool(np.all((a == b) | (np.isnan(x.numpy()) & np.isnan(expected))))


# What names a dtype


@pytest.mark.parametrize("d", ALL, ids=lambda d: d.name)
def test_there_is_one_object_a_dtype_also_after_copying_and_pickling(d):
    assert pickle.loads(pickle.dumps(d)) is copy.deepcopy(d) is copy.copy(d) is d
    assert dtype(d) is dtype(d.name) is dtype(d.numpy) is dtype(d.numpy.type) is d
    assert dtype(d.numpy.newbyteorder(">") if d.numpy.kind != "V" else d.numpy) is d
    assert (repr(d), d.itemsize) == (f"tinyarr.{d.name}", d.numpy.itemsize)
    assert d.compute is (ta.float32 if d.is_float and d.itemsize < 4 else d)


def test_python_types_name_the_defaults():
    assert [dtype(t) for t in (bool, int, float)] == [ta.bool, ta.int64, ta.float32]


@pytest.mark.parametrize("bad", [None, "float7", "", complex, str, object, np.complex64, "M8[s]", 5, [("a", int)]])
def test_anything_else_is_no_dtype_and_the_message_lists_what_is(bad):
    with pytest.raises(DtypeError, match=r"is not a dtype of tinyarr: use one of bool, uint8.*float8_e5m2"):
        dtype(bad)


# Promotion


@pytest.mark.parametrize(("a", "b"), [*itertools.product(PLAIN, PLAIN)], ids=lambda d: d.name)
def test_promotion_is_the_standards_table_with_the_documented_extensions(a, b):
    if {a, b} in [{ta.uint64, d} for d in (ta.int8, ta.int16, ta.int32, ta.int64)]:
        with pytest.raises(DtypeError, match="uint64 and a signed integer"):
            ta.result_type(a, b)
    elif a.kind == b.kind or {a.kind, b.kind} == {"signed", "unsigned"}:  # NumPy's, where the standard has one
        assert ta.result_type(a, b).numpy == np.result_type(a.numpy, b.numpy)
    else:  # bool gives way to all, integers to floating dtypes
        rank = ("bool", "unsigned", "signed", "float").index
        assert ta.result_type(a, b) is max(a, b, key=lambda d: rank(d.kind))


def test_bfloat16_promotes_with_float16_to_float32_and_else_like_a_float_of_two_bytes():
    assert ta.result_type(ta.bfloat16, ta.float16) is ta.float32
    for d in PLAIN:
        expected = d if d.is_float and d.itemsize > 2 else ta.float32 if d is ta.float16 else ta.bfloat16
        assert ta.result_type(ta.bfloat16, d) is ta.result_type(d, ta.bfloat16) is expected


@pytest.mark.parametrize("d", FLOAT8, ids=lambda d: d.name)
def test_float8_promotes_with_itself_and_bool_alone(d):
    assert ta.result_type(d, d) is ta.result_type(ta.bool, d) is ta.result_type(d, 1) is ta.result_type(d, 2.0) is d
    for other in set(ALL) - {d, ta.bool}:
        with pytest.raises(DtypeError, match=r"float8 has no implicit casts, use astype"):
            ta.result_type(other, d)


@given(st.lists(st.sampled_from([d for d in ALL if d not in FLOAT8 and d is not ta.uint64]), min_size=1, max_size=5))
def test_promotion_does_not_depend_on_the_order_of_two_operands_and_holds_both(operands):
    for a, b in itertools.combinations(operands, 2):
        common = ta.result_type(a, b)
        assert common is ta.result_type(b, a) is ta.result_type(a, common) is ta.result_type(common, b)


@pytest.mark.parametrize("d", ALL, ids=lambda d: d.name)
def test_python_and_numpy_scalars_are_weak(d):
    kinds = ("bool", "unsigned", "signed", "float")
    for scalar, kind, default in ((True, "bool", ta.bool), (1, "unsigned", ta.int64), (1.0, "float", ta.float32)):
        expected = d if kinds.index(kind) <= kinds.index(d.kind) else default
        assert ta.result_type(d, scalar) is ta.result_type(scalar, d) is expected
        assert ta.result_type(d, np.asarray(scalar)[()]) is expected
        if d not in FLOAT8 and d is not ta.bool:
            assert (ta.ones((2,), dtype=d) * scalar).dtype is expected


def test_scalars_alone_have_the_default_dtype_of_the_highest_kind():
    assert ta.result_type(True, False) is ta.bool
    assert ta.result_type(True, 2) is ta.int64
    assert ta.result_type(1, 2.0) is ta.float32
    with pytest.raises(DtypeError, match="at least one operand"):
        ta.result_type()


@pytest.mark.parametrize(("a", "b"), [*itertools.product(ALL, ALL)], ids=lambda d: d.name)
def test_operations_promote_by_the_same_table(a, b):
    x, y = ta.ones((2,), dtype=a), ta.ones((2,), dtype=b)
    try:
        expected = ta.result_type(x, y)
    except DtypeError:
        for operation in (ta.maximum, lambda x, y: ta.concat([x, y])):
            with pytest.raises(DtypeError, match="use astype"):
                operation(x, y)
        return
    assert ta.maximum(x, y).dtype is ta.concat([x, y]).dtype is ta.where(x > 0, x, y).dtype is expected


@pytest.mark.parametrize("d", [d for d in ALL if d.kind in ("signed", "unsigned")], ids=lambda d: d.name)
def test_a_python_integer_that_does_not_fit_is_refused(d):
    limits = np.iinfo(d.numpy)
    x = ta.Tensor([0], dtype=d)
    assert [(x + limits.max).item(), (x + limits.min).item()] == [limits.max, limits.min]
    for outside in (limits.max + 1, limits.min - 1):
        with pytest.raises(DtypeError, match=rf"{outside}.* does not fit.*astype"):
            x + outside


# Casts


@pytest.mark.parametrize(("d", "numpy_type"), HALVES + QUARTERS, ids=lambda d: getattr(d, "name", ""))
def test_every_bit_pattern_survives_a_round_trip_through_wider_floats(d, numpy_type):
    every = patterns(numpy_type)
    x = ta.Tensor(every)
    assert x.dtype is d and x.numpy().tobytes() == every.tobytes()
    for wide in (ta.float32, ta.float64):
        with np.errstate(invalid="ignore"):
            assert same(x.astype(wide), every.astype(wide.numpy))
        assert same(x.astype(wide).astype(d), every)


@pytest.mark.parametrize(("d", "numpy_type"), QUARTERS, ids=lambda d: getattr(d, "name", ""))
@pytest.mark.parametrize(("half", "numpy_half"), HALVES, ids=lambda d: getattr(d, "name", ""))
def test_every_half_becomes_the_quarter_that_ml_dtypes_makes_of_it(d, numpy_type, half, numpy_half):
    every = patterns(numpy_half)
    with np.errstate(invalid="ignore"):
        expected = every.astype(np.float32).astype(numpy_type)
    assert same(ta.Tensor(every).astype(d), expected)


@pytest.mark.parametrize("target", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize(("d", "numpy_type"), HALVES + QUARTERS, ids=lambda d: getattr(d, "name", ""))
def test_every_bit_pattern_is_cast_to_every_dtype_as_the_number_that_it_is(d, numpy_type, target):
    """As the equal float32; to an integer without the fraction, where it fits; to bool whether it is not 0."""
    every = patterns(numpy_type)
    found = ta.Tensor(every).astype(target)
    with np.errstate(invalid="ignore"):
        wide = every.astype(np.float32)
        exact = wide.astype(np.float64)
    if target is not d:
        assert same(found, ta.Tensor(wide).astype(target).numpy())
    if target.kind == "bool":
        np.testing.assert_array_equal(found.numpy(), wide != 0)
    elif not target.is_float:
        limits = np.iinfo(target.numpy)
        whole = np.trunc(exact)
        fits = np.isfinite(wide) & (whole >= limits.min) & (whole < 2.0 ** (limits.bits - (limits.min < 0)))
        np.testing.assert_array_equal(found.numpy()[fits], whole[fits].astype(target.numpy))


def test_float32_is_rounded_to_the_nearest_bfloat16_ties_to_even():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    halfway = (words & 0xFFFF0000) | 0x8000
    words = np.concatenate([words, halfway, halfway - 1, halfway + 1, words & 0xFFFF0000])
    words = words[(words & 0x7F800000) != 0x7F800000]  # finite
    upper, lower = words >> 16, words & 0xFFFF
    expected = upper + ((lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1)))
    rounded = ta.Tensor(words.view(np.float32)).astype(ta.bfloat16).numpy()
    assert np.array_equal(rounded.view(np.uint16), expected)


def test_nan_and_infinity_stay_what_they_are_in_bfloat16():
    x = ta.Tensor([np.nan, np.inf, -np.inf, 3.4e38, -0.0]).astype(ta.bfloat16)
    values = x.tolist()
    assert np.isnan(values[0]) and values[1:4] == [np.inf, -np.inf, np.inf] and np.signbit(values[4])


def test_casts_between_integers_wrap_and_floats_are_truncated():
    assert ta.Tensor([300, -1]).astype(ta.uint8).tolist() == [44, 255]
    assert ta.Tensor([1.9, -1.9, -0.5]).astype(ta.int32).tolist() == [1, -1, 0]
    assert ta.Tensor([0.0, -0.0, 0.1, np.nan]).astype(ta.bool).tolist() == [False, False, True, True]


def test_astype_copies_unless_told_otherwise():
    x = ta.ones((2,))
    assert x.astype(ta.float32, copy=False) is x and x.astype(ta.float32) is not x
    assert x.astype(ta.float32).array.storage is not x.array.storage
