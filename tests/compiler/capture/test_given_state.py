"""compile(function, state=...): a call looks at the state and the arguments; all else is a constant, or is refused."""

import collections
import dataclasses
import decimal
import functools
import logging
import math
import sys
import types
import weakref

import numpy as np
import pytest

import tinyarr as ta
from tests.compiler.devices import exact
from tests.compiler.trace.test_as_if_it_had_run import Bag, of
from tinyarr import Tensor, nn
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import ArgumentError, TraceError


def given(function, *state):
    return Compiled(function, build=Interpreter, state=state)


def training(compiled):
    """What three changes between steps do to the losses and weights."""
    ta.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = ta.optim.AdamW(model.parameters(), lr=0.1)

    def step(x):
        loss = (model(x) ** 2).mean()
        loss.backward()
        ta.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = Compiled(step, build=exact(), state=(model, optimizer)) if compiled else step
    x, found = ta.ones((5, 3)), []
    for change in (
        lambda: None,
        lambda: setattr(optimizer, "lr", 0.02),
        lambda: model.eval(),
        lambda: setattr(model[0], "weight", nn.Parameter(ta.ones((4, 3)))),
        lambda: model.load_state_dict({name: t * 0.5 for name, t in model.state_dict().items()}),
    ):
        change()
        found += [run(x).item() for _ in range(2)]
    return found, [t.tolist() for t in model.parameters()], optimizer.state_dict()["step"].item()


def test_a_step_of_model_and_optimizer_does_as_the_function_does():
    assert training(True) == training(False)


K = 2
TABLE = {"k": 2}


def test_names_are_constants_and_what_the_state_holds_is_not():
    bag, k = Bag(k=2, items=[1], t=of(3)), 5
    f = given(lambda x: x * K * k * bag.k * bag.items[0] * bag.t * math.pi, bag)
    found = [f(of(1)).item()]
    k = 7
    found.append(f(of(1)).item())
    k, bag.k, bag.t = 5, 3, of(5)
    bag.items[0] = 2
    found.append(f(of(1)).item())
    assert np.allclose(found, [60 * math.pi, 60 * math.pi, 300 * math.pi])
    k = 7
    bag.items.append(0)
    with pytest.raises(TraceError, match="was traced when k, which is not in state, was something else"):
        f(of(1))
    bag.items.pop()
    assert f(of(1)).item() == found[-1]
    assert len(f.graphs) == 2 and not any(".K" in path or path == "k" for path in f._capture((of(1),), {}).parts)


def test_attributes_of_classes_and_methods_of_the_state_belong_to_it():
    class Model(nn.Module):
        k, table = 2, [2]

        def forward(self, x):
            return x * self.k * self.table[0]

    model = Model()
    f = given(model, model)
    found = [f(of(1)).item()]
    Model.k = 3
    found.append(f(of(1)).item())
    Model.table[0] = 5
    found.append(f(of(1)).item())
    Model.forward = lambda self, x: x * 7
    found.append(f(of(1)).item())
    assert found == [4, 6, 15, 7]


def test_what_it_counts_and_keeps_in_its_state_is_as_if_it_had_run():
    bag = Bag(n=0, seen=[], table={})

    def f(x):
        bag.n += 1
        bag.seen.append(x * 2)
        bag.table["last"] = bag.seen[-1]
        return x * bag.n

    run = given(f, bag)
    assert [run(of(k)).item() for k in (1, 2, 3)] == [1, 4, 9]
    assert bag.n == 3 and [t.item() for t in bag.seen] == [2, 4, 6] and bag.table["last"] is bag.seen[-1]


@dataclasses.dataclass(frozen=True)
class Settings:
    scale: object


def test_constants_of_every_kind():
    settings, doubled, power = Settings((2, frozenset({3}))), functools.partial(ta.multiply, 2), lambda x, n=2: x**n
    cached = functools.lru_cache(lambda n: n + 1)

    @ta.compile
    def inner(x):
        return x * 2

    def f(x):
        return inner(power(doubled(x))) * settings.scale[0] * cached(1), nn.Linear, power

    run = given(f)
    for _ in range(2):
        y, kind, function = run(of(3))
        assert (y.item(), kind, function) == (288, nn.Linear, power)
    assert len(run.graphs) == 1


class Holding:
    items = [2]


REFUSED = {
    "a list": [2],
    "a dict": {"k": 2},
    "a deque": collections.deque([2]),
    "a set": {2},
    "an object": Bag(k=2),
    "a namespace": types.SimpleNamespace(k=2),
    "a tuple of lists": ([2],),
    "a frozen dataclass that holds a list": Settings([2]),
    "a partial of a list": functools.partial(len, [2]),
    "a method of an object": Bag(k=2).__init__,
    "a tensor": Tensor([2.0]),
    "a generator": ta.Generator(2),
    "a model": nn.Linear(1, 1),
    "an array": np.ones(1),
    "a weak reference": weakref.ref(Holding),
    "a logger": logging.getLogger("test"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_may_change_and_is_not_in_the_state_is_refused(what):
    outside = REFUSED[what]

    def f(x):
        return (x, str(type(outside)))[0]

    with pytest.raises(TraceError, match=r"outside is read, of type .* which may change and is neither in state"):
        given(f)(of(1))
    if not isinstance(outside, tuple | functools.partial | Settings | weakref.ref) and not callable(outside):
        assert given(f, outside)(of(1)).item() == 1  # and as a part of the state it is not


def test_global_variables_attributes_defaults_and_python_s_modules_are_looked_at_too():
    def default(x, table=[2]):  # noqa: B006
        return x * table[0]

    for f, path in (
        (lambda x: x * TABLE["k"], "TABLE"),
        (lambda x: x * Holding.items[0], "Holding.items"),
        (lambda x: x * len(sys.argv), "sys.argv"),
        (lambda x: default(x), "default 0 of .*default"),
    ):
        with pytest.raises(TraceError, match=f"{path} is read, of type"):
            given(f)(of(1))
    assert given(lambda x: x * TABLE["k"], TABLE)(of(1)).item() == 2


def test_a_change_outside_of_the_state_is_refused_and_put_back():
    count, bag, w = 0, Bag(), Tensor([1.0], requires_grad=True)

    def counting(x):
        nonlocal count
        count += 1
        return x

    def named(x):
        named.calls = 1
        return x

    for f, path in ((counting, "count's cell"), (named, r"\.__dict__")):
        with pytest.raises(TraceError, match=f"{path} was changed, which is neither in state nor an argument"):
            given(f)(of(1))
    with pytest.raises(TraceError, match=r"w was changed, which is neither in state|w is read, of type Tensor"):
        given(lambda x: (x * w).sum().backward(), bag)(of(1))
    assert count == 0 and not vars(named) and w.grad is None


def test_the_context_of_decimal_arithmetic_is_state():
    one, three = decimal.Decimal(1), decimal.Decimal(3)
    f = given(lambda x: x * float(one / three))
    with decimal.localcontext() as context:
        for context.prec in (2, 3):
            assert f(ta.ones(1, dtype=ta.float64)).item() == float(one / three)


def test_an_argument_is_state_for_its_call():
    f = given(lambda x, bag: x * bag.k)
    assert [f(of(1), Bag(k=k)).item() for k in (2, 3)] == [2, 3]


@pytest.mark.parametrize("state", [3, "model", None, 0.5])
def test_a_state_that_holds_nothing_is_refused(state):
    with pytest.raises(ArgumentError, match=r"compile: state is .*, which holds nothing: pass objects, as "):
        ta.compile(lambda x: x, state=(Bag(), state))
    if state is not None:
        with pytest.raises(ArgumentError, match=f"compile: state is {state!r}"):
            ta.compile(lambda x: x, state=state)
