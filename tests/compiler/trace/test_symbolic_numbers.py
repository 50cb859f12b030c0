"""Python floats among the arguments of a compiled function: inputs of its program, never stale."""

import copy
import datetime
import fractions
import functools
import json
import math
import struct

import numpy as np
import pytest

import tinyarr as ta
from tests.compiler.devices import exact
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import ShapeError, TraceError

pytestmark = pytest.mark.usefixtures("device")

RATES = (0.1, 0.25, -0.0, 0.0, 1e-300, -3e38, 1e300, math.inf, math.nan)
interpreted = functools.partial(Compiled, build=Interpreter)


def bits(x):
    """What tells every float from every other, in whatever a function returns."""
    if isinstance(x, Tensor):
        return x.dtype.name, x.shape, ta.copy(x).numpy().tobytes()
    if isinstance(x, dict):
        return {key: bits(part) for key, part in x.items()}
    return [bits(part) for part in x] if isinstance(x, list | tuple) else (type(x), repr(x))


def assert_traced_once(function, calls, makers=(ta.compile, interpreted)):
    for maker in makers:
        compiled = maker(function)
        for arguments in calls:
            assert bits(compiled(*arguments())) == bits(function(*arguments()))
        assert len(compiled.graphs) == 1, compiled.explain()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int32"])
@pytest.mark.parametrize("function", [
    lambda x, rate: x * rate,
    lambda x, rate: rate - x,
    lambda x, rate: x / rate,
    lambda x, rate: ta.where(x > rate, x, rate),
    lambda x, rate: x < rate,
    lambda x, rate: rate <= x,
    lambda x, rate: ta.full((2,), rate, dtype=x.dtype),
])  # fmt: skip
def test_a_float_beside_a_tensor_is_an_input_with_all_its_bits(function, dtype):
    x = Tensor([3, 0, -2], dtype=getattr(ta, dtype))
    assert_traced_once(function, [lambda rate=rate: (x, rate) for rate in RATES])


def test_sums_and_products_of_floats_are_computed_anew_at_each_call():
    def shrink(x, rate, decay):
        factor = 1 - rate * decay
        return x * factor - (-rate / 3 + abs(decay) + 2) * x, factor, rate * 7, sum([rate, decay])

    calls = [lambda a=a, b=b: (Tensor([1.0, 2.0], dtype=ta.float64), a, b) for a in RATES[:6] for b in (0.5, -2.0)]
    assert_traced_once(shrink, calls)


def test_a_float_is_given_back_kept_and_found_in_lists_dicts_and_keywords():
    seen = []

    def run(x, settings, *, rates):
        settings["last"] = rates[0]
        seen.append(rates[1][0] * 2)
        rates.append(settings["rate"])
        return x * rates[1][0], settings["rate"], rates, {"twice": (rates[0], rates[0])}

    for maker in (ta.compile, interpreted):
        compiled = maker(run)
        for rate in RATES:
            seen.clear()
            found = []
            for f in (compiled, run):
                settings, rates = {"rate": rate}, [rate + 1, (rate, "x")]
                found.append(bits((f(Tensor([2.0]), settings, rates=rates), settings, rates)))
            assert found[0] == found[1]
            assert bits(seen[0]) == bits(seen[1])
        assert len(compiled.graphs) == 1


def test_one_float_that_comes_twice_may_come_as_two():
    compiled, rate = ta.compile(lambda x, a, b: x * a + b), 0.5
    assert compiled(Tensor([1.0]), rate, rate).item() == 1
    assert compiled(Tensor([1.0]), rate, 2.0).item() == 2.5 and len(compiled.graphs) == 1


def test_a_float_of_numpy_s_is_an_input_and_other_scalars_and_values_belong_to_the_signature():
    double = interpreted(lambda x, rate: (x * rate, rate))
    for rate in (np.float64(0.5), np.float64(-0.0)):
        assert bits(double(Tensor([2.0]), rate)) == bits(double.function(Tensor([2.0]), rate))
    assert len(double.graphs) == 1
    for kind in (np.float32, np.int32, fractions.Fraction, datetime.timedelta):
        run = interpreted(lambda x, value: x * float(value / type(value)(1)))
        for value in (1, 2, 1):
            assert run(Tensor([2.0]), kind(value)).item() == 2 * value
        assert len(run.graphs) == 2 and "arguments[1]: " in run.explain()


def test_a_numpy_array_as_an_argument_is_refused():
    with pytest.raises(TraceError, match=r"arguments\[1\]\[0\] is a NumPy array, which can change unseen: make it a"):
        interpreted(lambda x, arrays: x * float(arrays[0][0]))(Tensor([1.0]), [np.ones(1)])


def test_a_gradient_depends_on_the_float_of_its_call():
    gradient = ta.compile(lambda x, rate: ta.grad(lambda x: (x**3 * rate).sum())(x))
    assert [gradient(Tensor([1.0]), rate).item() for rate in (2.0, 3.0)] == [6, 9] and len(gradient.graphs) == 1


def test_a_learning_rate_that_is_an_argument_is_traced_once():
    found = []
    for maker in (lambda f: f, lambda f: Compiled(f, build=exact())):
        ta.manual_seed(0)
        model = ta.nn.Linear(3, 2)
        optimizer = ta.optim.AdamW(model.parameters())

        def step(x, rate, model=model, optimizer=optimizer):
            optimizer.lr = rate
            loss = (model(x) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        run = maker(step)
        found.append([bits((run(ta.ones((4, 3)), rate), optimizer.lr, model.weight)) for rate in (0.1, 0.02, 0.003)])
    assert found[0] == found[1] and len(run.graphs) == 1


class Record:
    def __init__(self, value):
        self.value = value


NEEDS = {
    "branch": lambda x, rate: x if rate > 0.2 else -x,
    "truth": lambda x, rate: x if rate else -x,
    "equality": lambda x, rate: x if rate == 0.25 else -x,
    "square root": lambda x, rate: x * math.sqrt(abs(rate)),
    "float()": lambda x, rate: x * float(rate),
    "int()": lambda x, rate: x + int(rate * 100),
    "round()": lambda x, rate: x * round(rate, 1),
    "power": lambda x, rate: x * 0.9**rate,
    "a quotient, which may fail": lambda x, rate: x * (1 / rate),
    "formatting": lambda x, rate: (x, f"{rate:.3f}"),
    "printing": lambda x, rate: (x, str(rate), repr(rate)),
    "hash": lambda x, rate: x * {0.1: 2, 0.25: 3}.get(rate, 4),
    "attribute": lambda x, rate: (x, rate.hex(), rate.is_integer()),
    "parameter": lambda x, rate: ta.rms_norm(x, ta.ones(2), eps=abs(rate)),
    "array": lambda x, rate: (x, (np.ones(2, np.float32) * rate).tolist(), float(np.sqrt(np.float64(2) + rate))),
    "tensor": lambda x, rate: x + Tensor([rate, rate]),
    "struct": lambda x, rate: (x, struct.pack("d", rate)),
    "copy": lambda x, rate: (x, copy.deepcopy({"rate": rate})),
    "json, which takes Python's own floats only": lambda x, rate: (x, json.dumps([rate])),
    "complex": lambda x, rate: (x, rate + 1j),
}


@pytest.mark.parametrize("what", NEEDS)
def test_a_float_whose_value_is_needed_belongs_to_the_signature(what):
    compiled = interpreted(NEEDS[what])
    for rate in (0.1, 0.25, 0.75, 0.1):
        assert bits(compiled(Tensor([1.0, 2.0]), rate)) == bits(NEEDS[what](Tensor([1.0, 2.0]), rate))
    assert len(compiled.graphs) == 3
    assert "arguments[1]: its value was needed at " in compiled.explain() or "json" in what


def test_only_the_float_whose_value_is_needed_belongs_to_the_signature():
    compiled = interpreted(lambda x, limit, rate: x * rate if limit > 1 else x)
    for limit, rate in ((2.0, 0.1), (2.0, 0.2), (0.5, 0.3), (0.5, 0.4)):
        assert compiled(Tensor([1.0], dtype=ta.float64), limit, rate).item() == (rate if limit > 1 else 1)
    assert len(compiled.graphs) == 2
    assert compiled.explain().count("value was needed") == 1


@pytest.mark.parametrize("kinds", [Exception, BaseException])
def test_code_that_swallows_exceptions_does_not_hide_that_a_value_is_needed(kinds):
    @interpreted
    def run(x, rate):
        try:
            return x * math.exp(rate)
        except kinds:
            return x * 0

    for rate in (0.0, 1.0):
        assert run(Tensor([1.0], dtype=ta.float64), rate).item() == pytest.approx(math.exp(rate))


def test_what_a_given_up_trace_has_changed_is_put_back():
    seen, state = [], Tensor([1.0])

    @interpreted
    def run(x, rates):
        seen.append(rates[0])
        rates.append(rates[0])
        state.assign(state + x)
        return x if rates[0] > 1 else -x

    rates = [0.5]
    assert run(Tensor([1.0]), rates).item() == -1
    assert seen == [0.5] and rates == [0.5, 0.5] and state.item() == 2
    assert all(type(rate) is float for rate in (*seen, *rates))


def test_a_float_that_is_kept_where_no_call_can_replace_it_raises_when_it_is_used():
    @interpreted
    def run(x, rate):
        json.kept = rate * 2  # no walk looks for variables of the user's there
        return x * rate

    run(Tensor([1.0]), 0.5)
    for use in (float, lambda rate: rate + 1 > 2, lambda rate: Tensor([1.0]) * rate,
                interpreted(lambda rate: ta.ones(1) * json.kept)):  # fmt: skip
        with pytest.raises(TraceError, match="float was kept by a trace where it can't be replaced: return it"):
            use(json.kept)
    del json.kept


def test_errors_are_those_of_eager_mode_and_leave_floats_as_they_are():
    compiled = interpreted(lambda x, rate: x @ x * rate)
    with pytest.raises(ShapeError, match="matmul"):
        compiled(ta.ones((2, 3)), 0.5)
    for rate in (0.5, 0.75):
        assert compiled(ta.ones((1, 1)), rate).item() == rate
    assert len(compiled.graphs) == 1
    with pytest.raises(TypeError, match="assign: value is str"):
        interpreted(lambda x, rate: x.assign("other"))(ta.ones(1), 0.5)


def test_floats_in_closures_and_attributes_belong_to_the_signature():
    rate, record = 0.5, Record(0.5)
    run = interpreted(lambda x, record: x * rate * record.value)
    assert run(Tensor([1.0]), record).item() == 0.25
    rate, record.value = 2.0, 3.0
    assert run(Tensor([1.0]), record).item() == 6 and len(run.graphs) == 2
