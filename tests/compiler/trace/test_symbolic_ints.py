"""Python ints of a compiled function: inputs where nothing needs their value, conditions where they are compared."""

import functools
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.trace.test_symbolic_numbers import assert_traced_once, bits, interpreted
from tests.tiers import at_most
from tinyarr import Tensor
from tinyarr.compiler.trace.polynomials import Polynomial

pytestmark = pytest.mark.usefixtures("device")

EDGES = (0, 1, -1, 7, 2**31 - 1, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63))


def outcome(function, *arguments):
    """What a call returns, or the kind of its error."""
    try:
        return bits(function(*arguments))
    except (ArithmeticError, ValueError, TypeError, IndexError) as error:
        return type(error)


def same(function, calls, maker=interpreted):
    """Asserts that the compiled function does as the function for each call, and returns it."""
    compiled = maker(function)
    for arguments in calls:
        assert outcome(compiled, *arguments) == outcome(function, *arguments), arguments
    return compiled


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int64"])
@pytest.mark.parametrize("function", [
    lambda x, i: x * i,
    lambda x, i: i - x,
    lambda x, i: x / i,
    lambda x, i: ta.where(x > i, x, i),
    lambda x, i: i <= x,
    lambda x, i: ta.full((2,), i, dtype=x.dtype),
    lambda x, i: (x + ta.arange(i, i + 3, dtype=ta.float64)).astype(x.dtype),
])  # fmt: skip
def test_an_int_beside_a_tensor_is_an_input_with_all_its_digits(function, dtype):
    x = Tensor([3, 0, -2], dtype=getattr(ta, dtype))
    numbers = EDGES if "arange" not in function.__code__.co_names else EDGES[:6]
    assert_traced_once(function, [lambda i=i: (x, i) for i in numbers])


def test_an_int_that_does_not_fit_is_refused_as_in_eager_mode_and_later_ones_are_not():
    x = Tensor([3, 200], dtype=ta.uint8)
    for f in (lambda x, i: x + i, lambda x, i: x == i, lambda x, i: ta.full((2,), i, dtype=ta.uint8)):
        for maker in (interpreted, ta.compile):
            same(f, [(x, i) for i in (1, 255, 256, -1, 2**64, 7, 255)], maker)
    for f in (lambda x, i: x < i, lambda x, i: x / i):
        same(f, [(Tensor([3]), i) for i in (1, 2**63, 2**1030, -(2**63) - 1, 5)])


POWERS = (2, 3, 20, -1, -2, -3, 0, 1, 9, 2, 20)


@pytest.mark.parametrize("given", [[1.1, -2.3], [3, -7]], ids=["float32", "int64"])
def test_a_power_makes_the_products_that_eager_mode_makes(given):
    x = Tensor(given)
    same(lambda x, i: x**i, [(x, i) for i in POWERS], functools.partial(ta.compile, max_programs=20))
    same(lambda x, i: x**i, [(x, float(i)) for i in POWERS], functools.partial(interpreted, max_programs=20))


FORMS = """({a} + {b}); ({a} - {b}); ({a} * {b}); ({a} // {b}); ({a} % {b}); ({a} / {b}); (-{a}); abs({a}); (not {a})
    min({a}, {b}); max({a}, {b}); ({b} if {a} < {c} else {c}); ({a} == {b}); ({a} and {b}); ({a} in (1, 2, {b}))
    (0.5**{a})
    ({a}**2); len(range({a})); sum([{a}, {b}]); int({a}); str({a}); divmod({a}, {b})[0]; ({a} << 1); round({a} / 4, 1)
    """.replace("\n", ";").split(";")[:-1]


@st.composite
def counts(draw, depth=4):
    """An expression of ints i and n, and in places floats, as Python code."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["i", "n", "i", "n", *map(str, range(-3, 9)), "0.5", "True"]))
    a, b, c = (draw(counts(depth=depth - 1)) for _ in range(3))
    return draw(st.sampled_from(FORMS)).format(a=a, b=b, c=c)


@at_most(200)
@given(counts(), st.lists(st.tuples(st.integers(-4, 12), st.integers(-4, 12)), min_size=2, max_size=6))
def test_what_is_counted_and_compared_is_as_python_has_it_at_each_call(code, numbers):
    function = eval(f"lambda x, i, n: (x, {code}, [i, n])")
    same(function, [(Tensor([2.0]), *pair) for pair in numbers], functools.partial(interpreted, max_programs=99))


@at_most(60)
@given(st.lists(st.sampled_from("+-*"), min_size=1, max_size=6), st.integers(0, 99), st.integers(-5, 5), st.just(3))
def test_polynomials_have_one_form(operators, seed, i, n):
    rng = np.random.default_rng(seed)
    found, value = Polynomial.of("i"), i
    for operator in operators:
        name = {"+": "add", "-": "sub", "*": "mul"}[operator]
        other, number = [(Polynomial.of("i"), i), (Polynomial.of("n"), n), (Polynomial.of(3), 3)][rng.integers(3)]
        side = rng.choice(["", "r"])
        made = found.computed(f"__{side}{name}__", other)
        if made is None:
            break
        pair = (number, value) if side else (value, number)
        found, value = made, {"add": sum(pair), "sub": pair[0] - pair[1], "mul": pair[0] * pair[1]}[name]
    assert found.value({"i": i, "n": n}.get) == value
    assert found.computed("__sub__", found) == Polynomial.of(0) and found.computed("__sub__", found).is_constant


def test_a_comparison_makes_a_program_for_each_outcome():
    def schedule(x, step, warmup):
        return x * (step + 1) / warmup if step < warmup else x * 0.5 ** (step - warmup)

    f = same(schedule, [(Tensor([3.0]), i, 4) for i in range(12)])
    assert len(f.graphs) == 2 and "whether arguments[1] + -1*arguments[2] < 0" in f.explain()
    f = same(lambda x, i: x if i % 5 == 0 else -x, [(Tensor([3.0]), i) for i in range(-12, 12)])
    assert len(f.graphs) == 2
    f = same(lambda x, i: x * max(0, min(i, 3)), [(Tensor([3.0]), i) for i in range(-6, 9)])
    assert len(f.graphs) == 3


NEEDS = {
    "size": lambda x, i: ta.zeros(i),
    "range": lambda x, i: sum((x for _ in range(i)), x),
    "key": lambda x, i: x * {1: 2, 2: 3}.get(i, 4),
    "parameter": lambda x, i: x.reshape((1, 2, 1)).cumulative_sum(axis=i),
    "item": lambda x, i: x * [5, 6, 7][i],
    "text": lambda x, i: (x, f"{i}"),
    "json": lambda x, i: (x, json.dumps(i)),
    "attribute": lambda x, i: (x, i.numerator, i.bit_length()),
    "array": lambda x, i: (x, (np.ones(2) * i).tolist(), int(np.int64(i))),
    "type": lambda x, i: x * (type(i) is int),
    "caught": lambda x, i: x * _caught(i),
}


def _caught(i):
    try:
        return {1: 2}[i]
    except Exception:
        return 9


@pytest.mark.parametrize("what", NEEDS)
def test_an_int_whose_value_is_needed_is_part_of_the_signature(what):
    f = same(NEEDS[what], [(Tensor([1.0, 2.0]), i) for i in (1, 2, 0, 1)])
    assert len(f.graphs) == 3 and ("arguments[1]: " in f.explain() or what == "type")


def test_a_value_needed_for_some_is_not_needed_for_all():
    numbers = 1, 2, 11, 3, 12, 4, 11
    f = same(lambda x, i: x * i if i < 10 else x * len(range(i)), [(Tensor([2.0]), i) for i in numbers])
    assert len(f.graphs) == 3 and "arguments[1]: its value was needed at " in f.explain()


def test_many_ints_whose_values_are_needed_take_few_traces():
    def many(x, *sizes):
        for i in sizes:
            x = ta.roll(x, i)
        return x

    with np.testing.assert_no_warnings():
        f = same(many, [(Tensor([1.0, 2.0, 3.0]), *range(40))])
    assert len(f.graphs) == 1


def test_cached_functions_keep_no_stand_in():
    @functools.lru_cache
    def squared(i):
        return i * i

    f = same(lambda x, i: x * squared(i), [(Tensor([1.0]), i) for i in (3, 4, 3)])
    assert len(f.graphs) == 2 and squared(3) == 9 and squared(4) == 16


class Counter:
    def __init__(self):
        self.calls = 0


def test_counters_in_attributes_count_as_in_eager_mode():
    def step(counter, x):
        counter.calls += 1
        return x * counter.calls if counter.calls < 20 else x

    kept = [Counter(), Counter()]
    f = interpreted(functools.partial(step, kept[0]))
    for _ in range(24):
        assert bits(f(Tensor([3.0]))) == bits(step(kept[1], Tensor([3.0])))
        assert vars(kept[0])["calls"] == kept[1].calls and type(kept[0].calls) is int
    assert len(f.graphs) == 3


def test_an_int_is_an_input_of_the_way_back_too():
    w = Tensor([2.0, -3.0], requires_grad=True)
    f = interpreted(lambda i: (w * w * i).sum())
    for i in (1, 2, 5):
        assert ta.gradients([f(i)], [w])[0].tolist() == [4.0 * i, -6.0 * i]
    assert len(f.graphs) == 1 and len(f.backward_programs) == 1


def test_a_condition_is_asked_only_where_those_before_it_hold():
    def divides(x, i):
        return x * 2 if i != 0 and 6 % i == 0 else x * 3

    same(divides, [(Tensor([1.0]), i) for i in (3, 0, 4, 2)])


@pytest.mark.parametrize("given", [*itertools.permutations([1, True, 1.0, np.int64(1)], 2)])
def test_kinds_of_numbers_are_told_apart(given):
    same(lambda x, i: (x, i, i + i), [(Tensor([1.0]), i) for i in (*given, *given)])
