"""What changes between two calls of a compiled function is noticed, wherever it is: no state is frozen in a program.

Each scenario calls a function a few times, changes something in between, and lists what came. With the function
compiled it must be what it is with the function itself. A walk finds what a program depends on; the quick look at the
next calls (fingerprint.py, recent.py) must see all that the walk sees.
"""

import collections
import decimal
import enum
import functools
import math
import sys
import types

import numpy as np
import pytest

import tinyarr as ta
from tests.compiler.trace.test_as_if_it_had_run import Bag, interpreted, observed, of, twice
from tinyarr import Tensor, nn
from tinyarr.errors import TraceError

SCENARIOS: dict = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def calls(f, *arguments):
    return [f(*given).tolist() for given in arguments]


@scenario
def an_entry_that_moves_from_one_dict_to_the_next(compiled):
    a, b, c, d = Bag(k=2), Bag(), {"k": 2}, {}
    f = compiled(lambda x: x * (getattr(a, "k", 7) * 10 + getattr(b, "k", 1)))
    g = compiled(lambda x: x * (c.get("k", 7) * 10 + d.get("k", 1)))
    return twice(f, lambda: setattr(b, "k", vars(a).pop("k"))) + twice(g, lambda: d.update(k=c.pop("k")))


@scenario
def the_shape_and_dtype_of_a_numpy_array(compiled):
    a, b = np.arange(4.0), np.arange(4, dtype=np.int32)
    f, g = compiled(lambda x: x * len(a)), compiled(lambda x: x * b.dtype.itemsize)
    return twice(f, lambda: setattr(a, "shape", (2, 2))) + twice(g, lambda: setattr(b, "dtype", np.int64))


@scenario
def classes_that_derive_from_containers_numbers_and_texts(compiled):
    class Scaled(list):
        k = 2

        def total(self):
            self.k += 1
            return sum(self) * self.k

    class Doubled(dict):
        def __getitem__(self, key):
            return dict.__getitem__(self, key) * 2

    class Number(float):
        """A float of a class of its own."""

    class Text(str):
        """A text of a class of its own."""

    class Partial(functools.partial):
        k = 2

    scaled, doubled, bag = Scaled([1, 2]), Doubled(a=1), Bag(number=Number(2.0), text=Text("ab"))
    partial = Partial(lambda k, x: x * k, 2)
    f, g = compiled(lambda x: x * scaled.total()), compiled(lambda x: x * doubled["a"])
    h, i = compiled(lambda x: x * float(bag.number) * len(bag.text)), compiled(lambda x: partial(x) * partial.k)
    return [
        *twice(f, lambda: setattr(Scaled, "k", 3)),
        *twice(g, lambda: setattr(Doubled, "__getitem__", lambda self, key: 100)),
        *twice(h, lambda: setattr(bag, "number", Number(3.0))),
        *twice(h, lambda: setattr(bag, "text", Text("abc"))),
        *twice(i, lambda: setattr(Partial, "k", 3)),
    ]


@scenario
def attributes_of_tensors_of_a_class_of_one_s_own(compiled):
    class Weight(nn.Parameter):
        shift = 1

    bag, weight = Bag(kept=None), Weight(ta.ones(1))
    weight.k = 2

    def keep(x):
        bag.kept = Weight(x * 2)
        bag.kept.k = [3]

    def count(x):
        weight.k += 1
        weight.shift += 1
        return x * weight.k * weight.shift

    f, g = compiled(lambda x: x * weight.detach() * weight.k + weight.shift), compiled(count)
    found = twice(f, lambda: setattr(weight, "k", 3)) + twice(f, lambda: setattr(Weight, "shift", 5))
    compiled(keep)(of(1))
    return [*found, *calls(g, *[[of(1)]] * 3), weight.k, type(bag.kept).__name__, bag.kept.k, bag.kept.item()]


@scenario
def the_arguments_of_an_exception(compiled):
    bag = Bag(error=ValueError(2))
    f = compiled(lambda x: x * bag.error.args[0])
    return twice(f, lambda: setattr(bag, "error", ValueError(3))) + twice(f, lambda: setattr(bag.error, "args", (4,)))


@scenario
def what_a_defaultdict_makes(compiled):
    k, table = [2], collections.defaultdict(lambda: k[0])

    def f(x):
        table.clear()
        return x * table["a"]

    f = compiled(f)
    return twice(f, lambda: k.__setitem__(0, 3)) + twice(f, lambda: setattr(table, "default_factory", lambda: 7))


@scenario
def attributes_that_no_code_names(compiled):
    class Point:
        __match_args__ = ("place",)

        def __init__(self, place):
            self.place = place

    def match(x):
        match point:
            case Point(1):
                return x * 2
            case Point(place=5):
                return x * 3
        return x * 5

    point, one, other = Point(1), types.SimpleNamespace(q=1), types.SimpleNamespace(q=1)
    name, shown, bag = ["q"], "{0.q}", Bag(q=1)
    f, g = compiled(match), compiled(lambda x: x * (2 if one == other else 3) * len(repr(one)))
    h, i = compiled(lambda x: x * bag.__getattribute__(name[0])), compiled(lambda x: x * int(shown.format(bag)))
    return [
        *twice(f, lambda: setattr(point, "place", 5)),
        *twice(f, lambda: setattr(point, "place", 6)),
        *twice(g, lambda: setattr(one, "q", 1000)),
        *twice(h, lambda: setattr(bag, "q", 5)),
        *twice(i, lambda: setattr(bag, "q", 7)),
    ]


@scenario
def numbers_in_a_tuple_that_change_again_and_again(compiled):
    bag = Bag(pair=(2, 5))
    f, found = compiled(lambda x: x * bag.pair[0]), []
    for k in range(6):
        bag.pair = k, 5
        found += calls(f, [of(1)])
    return found


@scenario
def the_shape_of_what_is_returned_as_it_came(compiled):
    bag = Bag(t=of(1))
    f, g, h = compiled(lambda x: x), compiled(lambda: bag.t), compiled(lambda x: x.detach())
    found = calls(f, [of(1)], [Tensor([1.0, 2.0])], [Tensor([3])]) + calls(h, [of(1)], [Tensor([1.0, 2.0])])
    for value in (of(2), Tensor([[3, 4]])):
        bag.t = value
        found += calls(g, [])
    return found


@scenario
def self_that_only_super_takes(compiled):
    class Base:
        def forward(self, x):
            return x * self.k

    class Model(Base):
        def forward(self, x):
            return super().forward(x) * 2

    Model.forward = compiled(Model.forward)
    model = Model()
    model.k = 2
    return twice(model.forward, lambda: setattr(model, "k", 3))


@scenario
def names_of_classes_and_variables_that_are_alike(compiled):
    def made(k):
        class Model:
            v = k

        return Model

    names = {"__name__": "__main__", "G": [2]}
    exec("def f(x):\n    return x * G[0]", names)
    first, second = made(2), made(3)
    bag = Bag(first=first(), second=second())
    f, g = compiled(lambda x: x * (bag.first.v * 10 + bag.second.v)), compiled(names["f"])
    return twice(f, lambda: setattr(first, "v", 5)) + twice(g, lambda: names.update(G=[3]))


@scenario
def attributes_that_come_to_hide_those_of_a_base_or_metaclass(compiled):
    class Meta(type):
        m = 2

    class Base(metaclass=Meta):
        v = 2

        @classmethod
        def k(cls):
            return cls.v

    class Model(Base):
        """A class that inherits all."""

    f, g = compiled(lambda x: x * Model.k()), compiled(lambda x: x * Model.m)
    found = twice(f, lambda: setattr(Model, "v", 3)) + twice(f, lambda: delattr(Model, "v"))
    return found + twice(g, lambda: setattr(Meta, "m", 3)) + twice(g, lambda: setattr(Base, "m", 5))


@scenario
def attributes_of_members_of_an_enumeration(compiled):
    kind = enum.Enum("kind", "A B")
    kind.A.k = 2
    return twice(compiled(lambda x: x * kind.A.k), lambda: setattr(kind.A, "k", 3))


@scenario
def state_of_python_s_own_modules(compiled):
    def inside(x):
        import sys as system

        return x * len(system.argv)

    module, arguments = sys, sys.argv
    named, held, pi, k = lambda x: x * len(sys.argv), lambda x: x * len(module.argv), math.pi, 2
    found = []
    for f in map(compiled, (named, held, inside)):
        found += twice(f, lambda: sys.argv.append("x"))
        found += twice(f, lambda: setattr(sys, "argv", [*arguments, "y"]))
        sys.argv = arguments
        sys.argv.pop()
    f = compiled(lambda x: x * math.pi)
    found += twice(f, lambda: setattr(math, "pi", k))
    math.pi = pi
    f, floor = compiled(lambda x: x * math.floor(k)), math.floor
    found += twice(f, lambda: setattr(math, "floor", lambda k: 7))
    math.floor = floor
    return found


@scenario
def the_context_of_decimal_arithmetic(compiled):
    third, place = decimal.Decimal(1), Bag(three=decimal.Decimal(3))

    def local(x):
        with decimal.localcontext(prec=2):
            return x * float(third / place.three)

    def lasting(x):
        decimal.getcontext().prec += 1
        return x

    f, g, h = compiled(lambda x: x * float(third / place.three)), compiled(local), compiled(lasting)
    found = []
    with decimal.localcontext() as context:
        found += twice(f, lambda: setattr(context, "prec", 3))
        found += twice(f, lambda: setattr(context, "rounding", "ROUND_UP"))
        found += twice(g, lambda: setattr(context, "prec", 5))
        for _ in range(3):
            h(of(1))
            found.append(decimal.getcontext().prec)
    return found


@scenario
def functions_that_the_library_s_hold(compiled):
    k = [2]

    @functools.singledispatch
    def operation(x):
        return 1

    @operation.register
    def _(x: int):
        return k[0]

    f = compiled(lambda x: x * operation(1))
    return twice(f, lambda: k.__setitem__(0, 3)) + twice(f, lambda: operation.register(int, lambda x: 10))


@scenario
def keywords_of_the_name_of_a_positional_parameter_and_their_order(compiled):
    def f(a, /, x, **keywords):
        return x * keywords["a"] + list(keywords).index("a")

    f, x = compiled(f), of(1)
    return [f(1, x, **given).item() for given in ({"a": 2}, {"a": 3}, {"a": 2.0, "b": 1.0}, {"b": 1.0, "a": 2.0})]


@scenario
def arguments_that_no_longer_share_memory_with_another(compiled):
    def f(x, y):
        x.assign(x + 1)
        return (y[0] if isinstance(y, list) else getattr(y, "t", y)) * 1

    f, g, h = map(compiled, (f,) * 3)
    x, y = Tensor([1.0, 2.0]), Tensor([10.0, 20.0])
    inside, bag = [x[:1]], Bag(t=x[:1])
    found = calls(f, (x, x), (y, x), (x, y), (y, y), (x, y)) + calls(g, (x, inside), (y, inside), (x, inside))
    return found + calls(h, (x, bag), (y, bag), (x, bag), (x, x[:1]), (x, y[:1]))


@scenario
def gradients_that_are_exchanged(compiled):
    a, b, bag = of(1), of(2), Bag(t=of(5))
    a.grad, b.grad = of(10), of(20)

    def exchange(x):
        a.grad, b.grad = b.grad, a.grad
        return x * a.grad

    def give(x):
        a.grad = bag.t

    found = calls(compiled(exchange), *[[of(1)]] * 3)
    compiled(give)(of(1))
    return [*found, a.grad is bag.t, b.grad.item()]


@scenario
def objects_that_are_counted_where_they_are_made(compiled):
    class Node:
        made = 0

        def __init__(self, t):
            Node.made += 1
            self.t = t

        def __reduce__(self):
            return Node, (self.t,)

    f = compiled(lambda x: Node(x * 2))
    return [(f(of(k)).t.item(), Node.made) for k in (1, 2, 3)]


@scenario
def attributes_beside_those_that_the_function_sets(compiled):
    bag = Bag(a=1, n=0)

    def f(x):
        bag.n += 1
        bag.__dict__.pop("last", None)
        bag.last = x
        return x

    f, found = compiled(f), []
    for change in (lambda: None, lambda: setattr(bag, "z", 2), lambda: delattr(bag, "a"),
                   lambda: vars(bag).update(y=3, n=vars(bag).pop("n"))):  # fmt: skip
        change()
        f(of(1))
        found.append((list(vars(bag)), bag.n))
    return found


@scenario
def sets_of_tensors(compiled):
    kept = {of(7)}

    def f(x):
        kept.add(x * 2)
        return sum(sorted(len(t.shape) for t in kept))

    f, found = compiled(f), []
    for value in range(3):
        found.append((f(of(value)), sorted(t.item() for t in kept)))
    return found


@scenario
def views_of_state_and_arguments_that_are_kept(compiled):
    bag = Bag(t=Tensor([5.0, 6.0]), v=None, w=None)

    def f(x):
        bag.v, bag.w = bag.t[1:], x.detach()
        return x * bag.v

    f, found, x = compiled(f), [], Tensor([1.0, 2.0])
    for t in (bag.t, Tensor([7.0, 8.0]), Tensor([7.0, 8.0, 9.0])[::-1], x):
        bag.t = t
        found.append(f(x).tolist())
        bag.v.assign(3.0)
        bag.w[0] = 4.0
        found.append((t.tolist(), x.tolist()))
    return found


@scenario
def what_is_set_as_a_whole(compiled):
    class Base:
        k = 2

    class Other:
        k = 3

    class Model(Base):
        """A class whose base changes."""

    bag, model = Bag(n=1), Model()
    records = np.array([(2.0,)], [("k", float)])
    record = records[0]
    f, g, h = (compiled(f) for f in (lambda x: x * bag.n, lambda x: x * model.k, lambda x: x * float(record["k"])))
    return [
        *twice(f, lambda: setattr(bag, "__dict__", {"n": 5})),
        *twice(g, lambda: setattr(Model, "__bases__", (Other,))),
        *twice(h, lambda: records.__setitem__(0, (3.0,))),
    ]


@scenario
def a_tensor_that_is_not_used_and_goes(compiled):
    bag = Bag(t=of(2), unused=of(3))
    return twice(compiled(lambda x: x * bag.t), lambda: delattr(bag, "unused"))


@scenario
def an_argument_that_is_not_read(compiled):
    f, g = compiled(lambda x, u: x * 2), compiled(lambda x, u=None: x * 2 if u is None else x * u)
    both = [(of(1), None), (of(1), of(5)), (of(1), 3), (of(1), None)]
    return calls(f, *both) + calls(g, *both)


@pytest.mark.filterwarnings("ignore:compile. ")
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_change_between_two_calls_is_noticed(name):
    assert observed(SCENARIOS[name], interpreted) == observed(SCENARIOS[name], lambda f: f)


def test_a_function_that_asks_for_identities_runs_as_it_is():
    seen = {}

    @interpreted
    def f(x):
        return seen.setdefault(id(x), x) * 1

    x, y = of(1), of(2)
    with pytest.warns(UserWarning, match=r"runs as it is: it asks for id\(\)"):
        assert [f(t).item() for t in (x, y, x)] == [1, 2, 1]


def test_the_counter_of_a_generator_cant_be_read_nor_an_object_s_class_or_attributes_set_as_a_whole():
    g, bag = ta.Generator(3), Bag()
    other = type("Other", (), {})

    def become(x):
        bag.__class__ = other
        return x

    with pytest.raises(TraceError, match=r"the key or counter of Generator.* was asked for"):
        interpreted(lambda x: x * g.counter)(of(1))
    def rebuild(x):
        bag.__dict__ = {"n": 1}

    def redefine(x):
        become.__defaults__ = (1,)

    def reshape(x):
        array.shape = 2, 3

    array = np.zeros((3, 2))
    for f, what in ((become, "bag.__class__"), (rebuild, "bag.__dict__"), (redefine, "become.__defaults__"),
                    (reshape, "the shape or dtype of array")):  # fmt: skip
        with pytest.raises(TraceError, match=f"{what} was set: do that outside of it"):
            interpreted(f)(of(1))
    assert type(bag) is Bag and vars(bag) == {} and become.__defaults__ is None and array.shape == (3, 2)
    assert g.counter == 0


class Scaled:
    scale = 1.0


MODULE = types.ModuleType("module_met_twice")
FACTOR = 1.0


def in_two_places(what):
    """Two functions over something that both know, and what changes it."""
    if what == "a dict":
        shared = {"k": 1.0}
        return (lambda x: x), (lambda x: x * shared["k"]), shared, lambda: shared.update(k=5.0)
    if what == "a class":
        return Scaled(), (lambda x, s=Scaled(): x * s.scale), None, lambda: setattr(Scaled, "scale", 5.0)  # noqa: B008
    if what == "a global":
        return (lambda x: x + FACTOR), (lambda x: x * FACTOR), None, lambda: globals().update(FACTOR=5.0)
    return (lambda x: x + MODULE.k), (lambda x: x * MODULE.k), None, lambda: setattr(MODULE, "k", 5.0)


@pytest.mark.parametrize("what", ["a dict", "a class", "a global", "a module"])
def test_what_is_met_first_where_no_code_goes_is_looked_at_where_code_goes(what, monkeypatch):
    monkeypatch.setattr(Scaled, "scale", 1.0)
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    monkeypatch.setitem(sys.modules, "module_met_twice", MODULE)
    MODULE.k = 1.0
    holder = type("Holder", (), {})()
    holder.aaa, holder.bbb, holder.first, change = in_two_places(what)
    f = ta.compile(lambda x: holder.bbb(x))
    assert f(Tensor(2.0)).item() == 2
    change()
    assert f(Tensor(2.0)).item() == 10 and len(f.graphs) == 2


def test_an_iterator_in_two_places_is_asked_as_often_as_in_eager_mode():
    holder = type("Holder", (), {})()
    holder.aaa = holder.bbb = iter([1.0, 2.0, 3.0])
    f = ta.compile(lambda x: x * next(holder.bbb))
    with pytest.warns(UserWarning, match="runs as it is: it uses holder.bbb, a list_iterator"):
        assert [f(Tensor(1.0)).item() for _ in range(3)] == [1, 2, 3]
