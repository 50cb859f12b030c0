"""x[i : i + 8] in a compiled function, where i is an int that changes from call to call or a 0-d integer tensor."""

import functools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.devices import exact
from tests.compiler.trace.test_symbolic_ints import bits, outcome, same
from tests.tiers import at_most
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import OutOfBounds, ShapeError, TraceError

pytestmark = pytest.mark.usefixtures("device")

SHAPE = (5, 4, 3)
exactly = functools.partial(Compiled, build=exact(), max_programs=99)
interpreted = functools.partial(Compiled, build=Interpreter, max_programs=99)


def whole():
    """A tensor of 60 numbers, on the device of the test."""
    return Tensor(np.arange(60.0).reshape(SHAPE))


MOVING = ["{}", "{0}:{0} + 1", "{0}:{0} + 2", "{0}:3 + {0}", "{0}-1:{0} + 1"]
STILL = ["1", "-1", ":", "1:", "::2", "[0, 2]", "[1, 1]"]


@st.composite
def keys(draw):
    """A key as Python code, of ints i and n, and of each in what shape: one part at least is data."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.sampled_from(["i", "n", "2*i", "i + n", "n - 1"]))
        part = draw(st.sampled_from(MOVING * 2 + STILL))
        parts.append(part.format(f"({start})"))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(["...", "None"])))
    assume(any(name in part for part in parts for name in "in"))
    return ", ".join(parts)


numbers = st.lists(st.tuples(st.integers(-3, 5), st.integers(-3, 5)), min_size=1, max_size=3)


def value_for(data, key, i, n):
    """A value to write at a key: a scalar, or one with some axes of size 1 or left out."""
    shape = np.empty(SHAPE)[eval(f"np.s_[{key}]", {"np": np, "i": i, "n": n})].shape
    shape = tuple(data.draw(st.sampled_from([size, 1])) for size in shape)[data.draw(st.integers(0, len(shape))) :]
    return data.draw(st.sampled_from([2.5, ta.arange(int(np.prod(shape)), dtype=ta.float32).reshape(shape)]))


@at_most(100, first=6)
@given(keys(), numbers, st.sampled_from([int, ta.int32, ta.int64]), st.data())
def test_it_reads_and_writes_what_eager_mode_does(key, pairs, kind, data):
    names = {"ta": ta}
    exec(f"""
def read(x, i, n):
    return x[{key}]
def write(x, i, n, value):
    x = ta.copy(x)
    x[{key}] = value
    return x
def gradient(x, i, n):
    return ta.grad(lambda x: (x[{key}] ** 2).sum())(x)
""", names)  # fmt: skip
    compiled = {name: interpreted(names[name]) for name in ("read", "write", "gradient")}
    for i, n in pairs:
        try:
            more = {"write": (value_for(data, key, i, n),)}
        except IndexError:
            more = {"write": (0.5,)}
        for name, f in compiled.items():
            given = (i, n) if kind is int else (Tensor(i, dtype=kind), Tensor(n, dtype=kind))
            expected = outcome(names[name], whole(), i, n, *more.get(name, ()))
            found = outcome(f, whole(), *given, *more.get(name, ()))
            # A program refuses a tensor where the slice is cut off, and a value that does not fit the whole slice.
            assert found == expected or (found in (OutOfBounds, ShapeError) and kind is not int), (name, i, n)


def test_one_program_reads_and_writes_at_all_positions():
    cache = ta.zeros((2, 16, 3))

    def extend(x, position):
        cache[:, position : position + 1] = x
        return cache[:, position - 1 : position + 1].sum(), ta.arange(position, position + 2)

    f = exactly(extend)
    found = []
    for run in (f, extend):
        cache.assign(0)
        found.append([bits((*run(ta.ones((2, 1, 3)) * i, i), cache)) for i in range(1, 15)])
    assert found[0] == found[1] and len(f.graphs) == 1


def test_a_position_that_lies_outside_is_a_program_for_its_value_alone():
    f = same(lambda x, i: x[i : i + 2], [(whole(), i) for i in (0, 1, 2, 4, 3, 0, 4, -1, 2)], exactly)
    assert len(f.graphs) == 3  # 4, where one is left, and -1, which begins at the end
    with pytest.raises(OutOfBounds, match="index: 9 is outside axis 0 of size 5"):
        exactly(lambda x, i: x[i])(whole(), 9)


@pytest.mark.parametrize("bad", [-1, 4, 5, 2**31 - 1])
def test_a_position_that_is_a_tensor_must_lie_inside_and_nothing_is_written_where_not(bad):
    x = ta.zeros((5, 2))

    def write(i):
        x[i : i + 2] = 1.0

    for maker in (exactly, ta.compile):
        f = maker(write)
        f(Tensor(3))
        before = x.tolist()
        with pytest.raises(OutOfBounds):
            f(Tensor(bad))
        assert x.tolist() == before and before[3] == [1, 1]
        x.assign(0)


def test_the_length_is_found_through_sums_and_products_and_no_others():
    position = Tensor(1)
    for function in (
        lambda x, i: x[2 * i : (i + 1) * 2], lambda x, i: x[i - 1 : 1 + i], lambda x, i: x[-i + 2 : 3 - i],
        lambda x, i: x[position : position + i - i + 2],
    ):  # fmt: skip
        assert bits(interpreted(function)(whole(), Tensor(1))) == bits(function(whole(), Tensor(1)))

    def moved(x, i):
        i = ta.copy(i)
        end = i + 2
        i.assign(i + 1)
        return x[i:end]

    def narrow(x, i):
        i = i.astype(ta.int8)
        return x[i : i + 2]

    for function in (moved, narrow, lambda x, i: x[i : i * i], lambda x, i: x[i:], lambda x, i: x[: i + 1]):
        with pytest.raises(TraceError, match=r"index: a slice by tensors .* write it as x\[i : i \+ 8\], with"):
            ta.compile(function)(whole(), Tensor(1))


class Holder:
    kept = None


def stale(x, i):
    x, part = ta.copy(x), x
    part = x[i : i + 1]
    x[1] = 0.0
    return part.sum()


def written(x, i):
    x = ta.copy(x)
    row = x[i]
    row[0] = 5.0
    return x


def kept(x, i, holder):
    holder.kept = x[i : i + 2].reshape((-1,))
    return x.sum()


def returned(x, i):
    x = ta.copy(x)
    part = x[i]
    x[1] = 0.0
    return part


@pytest.mark.parametrize(("function", "what"), [
    (stale, "read after a write"), (written, "written into"), (kept, r"kept \(.*kept.*\)"), (returned, "read after"),
])  # fmt: skip
def test_what_shares_memory_in_eager_mode_is_no_silent_copy(function, what):
    more = (Holder(),) if function is kept else ()
    with pytest.raises(TraceError, match=f"a slice whose start is data is {what}.* copy.. the slice first"):
        exactly(function)(whole(), Tensor(1), *more)
    f = exactly(function)
    for i in (1, 0, 1):  # of an int the value is taken
        assert bits(f(whole(), i, *more)) == bits(function(whole(), i, *more))


def test_a_slice_at_data_has_the_gradient_of_a_slice_also_in_its_zeros():
    g = Tensor([[-0.0, 1.0], [2.0, -0.0]], dtype=whole().dtype)
    function = lambda x, i: ta.vjp(lambda x: x[i : i + 2, 1, 1:], x)[1](g)[0]  # noqa: E731
    f = exactly(function)
    for i in (0, 1, 3):
        assert bits(f(whole(), Tensor(i))) == bits(function(whole(), i)) == bits(f(whole(), i))


MASKS = {
    "0-d": (lambda x, m: m, lambda v: v[0, 0, 0]),
    "row": (lambda x, m: m[:, 0, 0], lambda v: v[0]),
    "row of one": (lambda x, m: m[:, 0, 0], lambda v: v[:1]),
    "columns": (lambda x, m: (slice(None), m[0, :, 0]), lambda v: v[:, :1]),
    "beside ints": (lambda x, m: (m[:, 0, 0], 1), lambda v: v[0, 0]),
    "behind an int": (lambda x, m: (1, m[0, :, 0]), lambda v: v[0, 0]),
    "parted from an int": (lambda x, m: (1, slice(None), m[0, 0]), lambda v: v[0, 0, 0]),
    "ellipsis": (lambda x, m: (..., m[0, 0]), lambda v: v[..., :1]),
    "two axes": (lambda x, m: (slice(1, 3), m[0], None), lambda v: v[1:3, :1, :1]),
    "two axes, value left out": (lambda x, m: (m[:, :, 0], None), lambda v: v[0, 0]),
}


@pytest.mark.parametrize("what", MASKS)
def test_one_value_is_written_where_a_mask_hits(what):
    key, value = MASKS[what]
    v = -whole() - 1
    m = whole() % 7 < 3

    def write(x, m):
        x = ta.copy(x)
        x[key(x, m)] = value(v)
        return x

    expected = np.array(whole().tolist())
    expected[key(expected, np.array(m.tolist()))] = value(np.array(v.tolist()))
    assert write(whole(), m).tolist() == exactly(write)(whole(), m).tolist() == expected.tolist()


def test_values_for_each_that_a_mask_hits_are_written_in_eager_mode_alone():
    def write(x, m, v):
        x = ta.copy(x)
        x[m] = v
        return x

    m = Tensor([True, False, True])
    assert write(ta.zeros(3), m, Tensor([1.0, 2.0])).tolist() == [1, 0, 2]
    with pytest.raises(TraceError, match=r"setitem .*asked for its elements"):
        ta.compile(write)(ta.zeros(3), m, Tensor([1.0, 2.0]))


def test_examples_of_a_vmap_are_read_and_differentiated_at_data():
    def each(x, i):
        return ta.vmap(lambda x: (x[i : i + 2, 1], ta.grad(lambda x: (x[i] ** 2).sum())(x)))(x)

    f = exactly(each)
    for i in (0, 1, 2):
        assert bits(f(whole(), i)) == bits(each(whole(), i)) == bits(f(whole(), Tensor(i)))
    assert len(f.graphs) == 2

    def stale(x, i):
        x = ta.copy(x)
        parts = ta.vmap(lambda x: x[i])(x)
        x[0] = 0.0
        return parts

    with pytest.raises(TraceError, match="a slice whose start is data is read after a write"):
        exactly(stale)(whole(), Tensor(1))
