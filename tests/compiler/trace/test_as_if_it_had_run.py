"""A compiled function is, at each call, as if the function itself had run: what it reads, returns, keeps and counts.

Each scenario is a program that calls a function a few times and lists what can be observed. It is run with the function
as it is and with the compiled function, which must agree. Where compile can't do as the function does it must raise, or
say in a warning that the function runs as it is.
"""

import argparse
import array
import asyncio
import collections
import contextlib
import contextvars
import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import heapq
import io
import itertools
import json
import os
import pathlib
import pickle
import random
import sys
import threading
import time
import types
import weakref

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor, nn
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import TraceError

interpreted = functools.partial(Compiled, build=Interpreter)
SCENARIOS: dict = {}
RUN_AS_THEY_ARE: dict = {}
REFUSED: dict = {}


def scenario(function):
    """Compiled, the function is as it is."""
    SCENARIOS[function.__name__] = function
    return function


def runs_as_it_is(function):
    """The function isn't compiled, and a warning says so."""
    RUN_AS_THEY_ARE[function.__name__] = function
    return function


def refused(match):
    """Compiling the function raises TraceError."""

    def note(function):
        REFUSED[function.__name__] = function, match
        return function

    return note


def of(value):
    return Tensor([float(value)])


def twice(f, change):
    """What a function of one tensor gives before and after a change."""
    before = f(of(1)).item()
    change()
    return [before, f(of(1)).item(), f(of(1)).item()]


class Bag:
    """An object with whatever attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


@scenario
def fields_of_frozen_dataclasses_with_slots(compiled):
    @dataclasses.dataclass(frozen=True, slots=True)
    class Config:
        scale: float

    holder = Bag(config=Config(2.0))
    f = compiled(lambda x: x * holder.config.scale)
    g = compiled(lambda x, config: x * config.scale)
    return twice(f, lambda: setattr(holder, "config", Config(3.0))) + [g(of(1), Config(k)).item() for k in (2.0, 3.0)]


@scenario
def namespaces_as_arguments_and_in_closures(compiled):
    parsed, simple = argparse.Namespace(k=2), types.SimpleNamespace(k=2)
    f, g = compiled(lambda x: x * simple.k), compiled(lambda x, n: x * n.k)
    found = twice(f, lambda: setattr(simple, "k", 3)) + [g(of(1), parsed).item()]
    parsed.k = 5
    return [*found, g(of(1), parsed).item()]


@scenario
def attributes_of_classes(compiled):
    class Settings:
        factor, table = 2, [2]

    class Model:
        k = 2

        def __call__(self, x):
            return x * self.k * Settings.factor * Settings.table[0]

    f = compiled(Model())
    return (
        twice(f, lambda: setattr(Settings, "factor", 3))
        + twice(f, lambda: setattr(Model, "k", 5))
        + twice(f, lambda: Settings.table.__setitem__(0, 7))
    )


@scenario
def a_method_that_is_replaced_on_the_class_or_on_the_object(compiled):
    class Model:
        def forward(self, x):
            return x * 2

    model = Model()
    f = compiled(lambda x: model.forward(x))
    found = twice(f, lambda: setattr(Model, "forward", lambda self, x: x * 3))
    return found + twice(f, lambda: setattr(model, "forward", lambda x: x * 5))


@scenario
def an_object_that_becomes_one_of_another_class(compiled):
    model, other = (type(name, (), {"f": lambda self, x, k=k: x * k})() for name, k in (("A", 2), ("B", 3)))
    return twice(compiled(lambda x: model.f(x)), lambda: setattr(model, "__class__", type(other)))


@scenario
def attributes_of_functions_and_defaults(compiled):
    def f(x, seen=[]):  # noqa: B006
        seen.append(1)
        f.calls += 1
        return x * f.k * len(seen)

    f.k, f.calls = 2, 0
    run = compiled(f)
    return [*twice(run, lambda: setattr(f, "k", 3)), f.calls]


@scenario
def callables_that_wrap_a_function(compiled):
    class Scaled:
        def __init__(self, f):
            functools.update_wrapper(self, f)
            self.f, self.k = f, 2

        def __call__(self, x):
            return self.f(x) * self.k

    scaled = Scaled(lambda x: x + 1)
    return twice(compiled(scaled), lambda: setattr(scaled, "k", 3))


@scenario
def modules_named_by_a_chain_through_a_variable_or_in_an_import(compiled):
    module = sys.modules["settings_of_a_test"] = types.ModuleType("settings_of_a_test")
    module.k = module.inner = 2
    names = {"module": module}
    exec("def f(x):\n    return x * module.k\ndef g(x):\n    m = module\n    return x * m.inner", names)

    def h(x):
        import settings_of_a_test

        return x * settings_of_a_test.k

    found = []
    for f in map(compiled, (names["f"], names["g"], h)):
        found += twice(f, lambda: vars(module).update(k=module.k + 1, inner=module.inner + 1))
    return found


@scenario
def a_module_that_is_imported_in_the_function_and_reads_files_meanwhile(compiled):
    def f(x):
        import pydoc_data.topics  # which opens nothing itself; the import does

        sys.modules.pop("pydoc_data.topics")
        return x * len(pydoc_data.topics.topics)

    return [compiled(f)(of(1)).item()]


@scenario
def a_global_that_is_made_and_removed(compiled):
    names = {}
    exec("def f(x):\n    return x * (k if 'k' in globals() else 7)", names)
    f = compiled(names["f"])
    return twice(f, lambda: names.update(k=2)) + twice(f, lambda: names.pop("k"))


@scenario
def names_that_only_eval_knows(compiled):
    names = {"k": 2, "eval": eval}
    exec("def f(x):\n    return x * eval('k')", names)
    return twice(compiled(names["f"]), lambda: names.update(k=3))


@scenario
def attributes_by_computed_names_and_all_of_an_object(compiled):
    bag = Bag(k1=2, k2=5)
    f, g = compiled(lambda x, i: x * getattr(bag, f"k{i}")), compiled(lambda x: x * sum(vars(bag).values()))
    found = [f(of(1), i).item() for i in (1, 2, 1)] + twice(g, lambda: setattr(bag, "k3", 11))
    bag.k1 = 7
    return [*found, f(of(1), 1).item(), g(of(1)).item()]


@scenario
def what_weak_references_properties_and_context_variables_lead_to(compiled):
    class Model:
        _k = 2

        @property
        def k(self):
            return self._k

    model, variable = Model(), contextvars.ContextVar("variable", default=2)
    weak = weakref.ref(model)
    f, g = compiled(lambda x: x * weak().k), compiled(lambda x: x * variable.get())
    return twice(f, lambda: setattr(model, "_k", 3)) + twice(g, lambda: variable.set(3))


@scenario
def elements_of_numpy_arrays_and_other_buffers(compiled):
    found = []
    for buffer in (np.array([2.0]), np.array([[2, 9]], np.uint8).T[:1, 0], bytearray(b"\2"), array.array("i", [2])):
        f = compiled(lambda x, buffer=buffer: x * float(buffer[0]))
        found += twice(f, lambda buffer=buffer: buffer.__setitem__(0, 3))
    return found


@scenario
def members_of_enumerations_dates_and_decimals(compiled):
    kind = enum.Enum("kind", "A B")
    f = compiled(lambda x, e: x * e.value)
    g = compiled(lambda x, k: x * float(k))
    h = compiled(lambda x, day: x * day.day)
    found = [f(of(1), member).item() for member in kind] + [g(of(1), decimal.Decimal(k)).item() for k in ("1.5", "2.5")]
    return found + [h(of(1), datetime.date(2026, 1, day)).item() for day in (2, 3)]


@scenario
def dicts_of_all_kinds(compiled):
    chained = collections.ChainMap({"a": 1}, {"b": 2})
    order = {"a": 2, "b": 1}
    f, g = compiled(lambda x: x * chained["b"]), compiled(lambda x: x * order[sorted(order, key=order.get)[0]])
    return twice(f, lambda: chained.maps[1].update(b=5)) + twice(g, lambda: order.update(a=0))


@scenario
def keys_that_print_alike(compiled):
    class Key:
        def __repr__(self):
            return "key"

    a, b = Key(), Key()
    f = compiled(lambda x, d: x * d[a] + d[b])
    return [f(of(1), {a: 1.5, b: 2.5}).item(), f(of(1), {a: 3.5, b: 4.5}).item()]


@scenario
def the_exact_type_of_a_number(compiled):
    f = compiled(lambda x, k: x * 2 if type(k) is float else x)
    g = compiled(lambda x, k: (x * k, type(k * 2).__name__, k.dtype.name))
    h = compiled(lambda x, k: x * (2 if isinstance(k[0], float) else 3))
    found = [f(of(1), k).item() for k in (0.5, np.float64(0.5), 1)] + [h(of(1), (k,)).item() for k in (0.5, 1)]
    return [*found, *g(of(1), np.float64(0.5))[1:]]


@scenario
def slices_and_deep_lists(compiled):
    f, x = compiled(lambda x, s: x[s]), Tensor([1.0, 2.0, 3.0])
    deep: list = []
    for _ in range(3000):
        deep = [deep]
    g = compiled(lambda x, d: x * len(d))
    return [f(x, slice(0, 2)).tolist(), f(x, slice(1, 3)).tolist(), g(of(2), deep).item()]


@scenario
def an_object_whose_getattr_raises(compiled):
    class Raises:
        def __getattr__(self, name):
            raise RuntimeError(name)

    holder = Raises()
    holder.k = 2
    return [compiled(lambda x: x * holder.k)(of(1)).item()]


@scenario
def the_default_generator_of_each_call(compiled):
    f, found = compiled(lambda x: x + ta.rand(1)), []
    first, second = ta.Generator(1), ta.Generator(2)
    for generator in (first, second, first):
        with ta.use_generator(generator):
            found.append(f(of(0)).item())

    def inside(x):
        with ta.use_generator(second):
            return x + ta.rand(1)

    inside = compiled(inside)
    return [*found, *(inside(of(0)).item() for _ in range(3)), first.counter, second.counter]


@scenario
def locks_and_what_is_not_used(compiled):
    lock, bag = threading.Lock(), Bag(iterator=iter([1]), k=2, stream=sys.stderr)

    def f(x):
        with lock:
            return x * bag.k

    return [compiled(f)(of(1)).item(), next(bag.iterator)]


@scenario
def results_that_are_no_tensors_are_new_at_each_call(compiled):
    f = compiled(lambda x: (x + 1, np.zeros(1), {1}, Bag(seen=[]), bytearray(1)))
    t, zeros, numbers, bag, buffer = f(of(1))
    t.assign(9.0)
    zeros[0] = buffer[0] = 9
    numbers.add(9)
    bag.seen.append(9)
    t, zeros, numbers, bag, buffer = f(of(1))
    return [t.item(), zeros.tolist(), numbers, bag.seen, buffer[0]]


class Pair(tuple):
    """A tuple of a class of its own."""


class Noted(dict):
    """A dict with attributes."""


Named = collections.namedtuple("Named", "a b")


@dataclasses.dataclass
class Output:
    y: Tensor
    n: int


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    y: Tensor


@scenario
def tensors_in_objects_and_containers_of_all_kinds(compiled):
    def noted(x):
        made = Noted(y=x)
        made.notes = [x]
        return made

    def lists(x):
        made = collections.defaultdict(list)
        made["y"].append(x)
        return made

    kinds = [
        (lambda x: Output(x * 2, 1), lambda r: r.y),
        (lambda x: Frozen(x * 2), lambda r: r.y),
        (lambda x: Named(x * 2, 1), lambda r: r.a),
        (lambda x: Pair((x * 2, 1)), lambda r: r[0]),
        (lambda x: noted(x * 2), lambda r: r.notes[0] + r["y"]),
        (lambda x: lists(x * 2), lambda r: r["y"][0] + len(r["z"])),
        (lambda x: collections.OrderedDict(y=x * 2), lambda r: r["y"]),
        (lambda x: collections.deque([x * 2], maxlen=3), lambda r: r[0]),
        (lambda x: {x * 2}, lambda r: next(iter(r))),
        (lambda x: functools.partial(ta.add, x * 2), lambda r: r(of(1))),
        (lambda x: (lambda z, y=x * 2: z + y), lambda r: r(of(1))),
        (lambda x: iter([x * 2, x]), next),
        (lambda x: Bag(inner=Bag(y=x * 2)), lambda r: r.inner.y),
        (lambda x: types.SimpleNamespace(y=x * 2), lambda r: r.y),
        (lambda x: ValueError(x * 2), lambda r: r.args[0]),
    ]
    found = []
    for make, get in kinds:
        f = compiled(make)
        a, b = f(of(1)), f(of(3))
        found.append((type(b).__name__, get(a).item(), get(b).item()))
    return found


@scenario
def functions_that_share_a_variable(compiled):
    def pair(x):
        total = x * 2

        def add(y):
            nonlocal total
            total = total + y

        return add, lambda: total

    add, get = compiled(pair)(of(1))
    add(of(5))
    return [get().item()]


@scenario
def copies_made_in_the_function(compiled):
    config, model = {"a": [1]}, nn.Linear(1, 1, bias=False)

    def f(x):
        own = copy.deepcopy(config)
        own["a"].append(2)
        return copy.copy(x) * len(own["a"]) + copy.deepcopy(model)(copy.deepcopy(x * 2))

    with ta.no_grad():
        model.weight.assign(2.0)
        run = compiled(f)
        found = [run(of(1)).item()]
        config["a"].append(3)
        model.weight.assign(3.0)
        return [*found, run(of(1)).item(), config]


@scenario
def counters_wherever_they_are(compiled):
    class Counting:
        __slots__ = ("calls",)
        total = 0

    counting, simple, counts, counter = Counting(), types.SimpleNamespace(n=0), np.zeros(2), collections.Counter()
    counting.calls = calls = 0

    def f(x):
        nonlocal calls
        calls += 1
        Counting.total += 1
        counting.calls += 2
        simple.n += 1
        counts[1] += 1
        counter["a"] += 1
        return x

    run = compiled(f)
    for _ in range(12):
        run(of(1))
    return [calls, Counting.total, counting.calls, simple.n, counts.tolist(), dict(counter)]


@scenario
def a_counter_that_is_a_factor(compiled):
    counting = Bag(n=0)

    def f(x):
        counting.n += 1
        return x * counting.n

    run = compiled(f)
    return [run(of(1)).item() for _ in range(5)]


@scenario
def tensors_kept_in_caches(compiled):
    @functools.lru_cache
    def table(n):
        return ta.arange(n, dtype=ta.float32)

    class Model:
        kept: dict = {}

        @functools.cached_property
        def one(self):
            return ta.ones(1)

        def __call__(self, x):
            n = x.shape[-1]
            if n not in Model.kept:
                Model.kept[n] = ta.arange(n, dtype=ta.float32)
            return x + Model.kept[n] + table(n) + self.one

    model = Model()
    f = compiled(model)
    return [f(ta.ones(3)).tolist(), f(ta.ones((2, 3))).tolist(), Model.kept[3].tolist(), model.one.tolist()]


@scenario
def a_tensor_that_another_compiled_function_keeps(compiled):
    state: dict = {}
    keep, use = compiled(lambda x: state.update(h=x * 2)), compiled(lambda x: x + state["h"])
    found = []
    for value in (1, 5):
        keep(of(value))
        found.append(use(of(1)).item())
    return found


@scenario
def tensors_in_exceptions_variables_of_threads_and_deques(compiled):
    errors, local, last = [], threading.local(), collections.deque(maxlen=2)

    def f(x):
        try:
            raise ValueError(x * 2)
        except ValueError as error:
            errors.append(error)
        local.h = x * 3
        last.append(x * 4)

    run = compiled(f)
    found = []
    for value in range(3):
        run(of(value))
        found.append(local.h.item())
    return [*found, [error.args[0].item() for error in errors], [t.item() for t in last]]


@scenario
def one_object_in_two_places(compiled):
    bag = Bag()

    def f(x):
        made = [x * 2]
        bag.p, bag.q, bag.me = made, made, bag
        return made

    run = compiled(f)
    returned = run(of(1))
    returned.append(5)
    found = [len(bag.p), bag.p is bag.q, bag.q is returned, bag.me is bag]
    run(of(3))
    return [*found, len(returned), bag.p[0].item(), returned[0].item()]


@scenario
def an_object_that_holds_itself(compiled):
    def f(x):
        made, bag = [x * 2], Bag()
        made.append(made)
        bag.me, bag.y = bag, x
        return made, bag

    (made, bag), (other, _) = map(compiled(f), (of(1), of(3)))
    return [made[1] is made, bag.me is bag, made[0].item(), other[0].item()]


@scenario
def views_that_are_kept_share_memory(compiled):
    bag, x = Bag(), Tensor([1.0, 2.0])

    def f(x):
        bag.whole = x * 2
        bag.first = bag.whole[:1]

    run = compiled(f)
    run(x)
    bag.whole.assign(7.0)
    found = [bag.first.item()]
    run(x)
    bag.first.assign(9.0)
    return [*found, bag.whole.tolist()]


@scenario
def arguments_and_state_that_are_kept_or_returned_in_containers(compiled):
    bag, mine = Bag(items=[1]), [of(1)]

    def f(mine):
        bag.mine = mine
        return bag.items

    return [compiled(f)(mine) is bag.items, bag.mine is mine]


@scenario
def the_order_of_new_keys_and_attributes(compiled):
    bag, table = Bag(), {"a": 1, "b": 2}

    def f(x):
        bag.z, bag.y, bag.x = 1, x, 2
        table["c"] = x
        del table["a"]
        table["a"] = 3
        table["z"] = 1

    compiled(f)(of(1))
    return [list(vars(bag)), list(table)]


@scenario
def a_parameter_that_is_made_in_the_function_trains(compiled):
    class Lazy(nn.Module):
        weight = None

        def forward(self, x):
            if self.weight is None:
                self.weight = nn.Parameter(ta.ones(1))
            return (x * self.weight).sum()

    model, found = Lazy(), []
    step = compiled(lambda x: model(x).backward())
    for value in (2, 3):
        step(of(value))
        found.append((type(model.weight).__name__, model.weight.requires_grad, model.weight.grad.item()))
    return [*found, [name for name, _ in model.named_parameters()]]


@scenario
def a_heap_and_a_log(compiled):
    heap, log = [], []

    def f(x, k):
        heapq.heappush(heap, k)
        log.append(f"call {len(log)}")
        return x * heap[0]

    run = compiled(f)
    return [[run(of(1), k).item() for k in (3, 1, 2)], heap, log]


@scenario
def a_trace_that_is_given_up_for_a_number(compiled):
    counting = Bag(n=0)
    w = Tensor([1.0], requires_grad=True)

    def f(x, rate):
        counting.n += 1
        y = w * x
        y.register_hook(lambda g: g * 2)
        (y.sum() * (2 if rate > 0.5 else 1)).backward()

    run = compiled(f)
    for rate in (0.3, 0.7):
        run(of(1), rate)
    return [counting.n, w.grad.item()]


@runs_as_it_is
def iterators_in_globals_closures_attributes_and_arguments(compiled):
    counter, bag = itertools.count(1), Bag(iterator=iter([1, 2, 3]))
    f, g = compiled(lambda x: x * next(counter)), compiled(lambda x: x * next(bag.iterator))
    h = compiled(lambda x, pairs: x * sum(a * b for a, b in pairs))
    found = [[f(of(1)).item(), g(of(1)).item()] for _ in range(3)]
    arguments = (zip([1, 2], [3, 4]), zip([1], [3]), ((k, 2) for k in range(3)), map(divmod, [7], [2]))
    return found + [h(of(1), pairs).item() for pairs in arguments]


@runs_as_it_is
def random_numbers_of_other_libraries_objects(compiled):
    python, numpy = random.Random(0), np.random.default_rng(0)
    f, g = compiled(lambda x: x * python.random()), compiled(lambda x: x * float(numpy.random()))
    return [[f(of(1)).item(), g(of(1)).item()] for _ in range(3)]


@runs_as_it_is
def open_files(compiled):
    stream = io.StringIO("2\n3\n")
    f = compiled(lambda x: x * int(stream.readline()))
    return [f(of(1)).item(), f(of(1)).item()]


@runs_as_it_is
def generator_functions_generators_and_coroutines(compiled):
    def parts(x):
        yield x * 1
        yield x * 2

    async def doubled(x):
        return x * 2

    f, g, h = compiled(parts), compiled(lambda x: (x * i for i in range(3))), compiled(doubled)
    return [[[y.item() for y in f(of(k))], [y.item() for y in g(of(k))], asyncio.run(h(of(k))).item()] for k in (1, 3)]


@refused("time.perf_counter_ns was asked for, .*: measure outside of it")
def the_time(compiled):
    compiled(lambda x: x * (time.perf_counter_ns() % 2))(of(1))


@refused("clock.time was asked for")
def the_time_by_a_module_that_the_function_imports(compiled):
    def f(x):
        import time as clock

        return x * clock.time()

    compiled(f)(of(1))


@refused("now was asked for")
def the_time_by_a_function_from_around_it(compiled):
    now = time.time
    compiled(lambda x: x * now())(of(1))


@refused("datetime.datetime.now was asked for")
def the_date(compiled):
    compiled(lambda x: x * datetime.datetime.now().day)(of(1))


@refused("random.random was asked for, .*: draw with tinyarr's generators")
def python_s_random_numbers(compiled):
    compiled(lambda x: x * random.random())(of(1))


@refused("np.random.rand was asked for")
def numpy_s_random_numbers(compiled):
    compiled(lambda x: x * float(np.random.rand()))(of(1))


@refused("os.environ was asked for, .*: read it outside of it")
def the_environment(compiled):
    compiled(lambda x: x * len(os.environ))(of(1))


@refused("open was asked for")
def a_file_that_is_read(compiled):
    compiled(lambda x: x * len(open(__file__).read()))(of(1))  # noqa: SIM115


@refused("Path.read_text was asked for")
def a_path_that_is_read(compiled):
    compiled(lambda x: x * len(pathlib.Path(__file__).read_text()))(of(1))


@refused("sys.stdout was asked for, .* are repeated at each call")
def writing_to_a_stream(compiled):
    compiled(lambda x: sys.stdout.write("x") * x)(of(1))


@refused("was asked for its elements")
def pickling_a_tensor(compiled):
    compiled(lambda x: pickle.loads(pickle.dumps(x * 2)))(of(1))


@refused("g, a generator, was set: do that outside of it")
def setting_a_generator(compiled):
    g = ta.Generator(3)
    compiled(lambda x: (g.load_state_dict({"key": 1, "counter": 7}), x + ta.rand(1, generator=g)))(of(1))


@refused(r"test_as_if_it_had_run.py:\d+: the tensor that is computed here was kept beyond the call")
def a_tensor_where_no_walk_comes_to(compiled):
    try:
        compiled(lambda x: vars(json).update(hidden=x * 2))(of(1))
    finally:
        vars(json).pop("hidden", None)


def observed(program, compiled):
    """What a program shows, on a machine that is in the same state for each."""
    ta.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        return repr((program(compiled), told.getvalue()))


@pytest.mark.filterwarnings("ignore:compile. ")
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_compiled_function_does_at_each_call_what_the_function_does(name):
    assert observed(SCENARIOS[name], interpreted) == observed(SCENARIOS[name], lambda f: f)


@pytest.mark.parametrize("name", RUN_AS_THEY_ARE)
def test_a_function_of_what_cant_be_seen_into_runs_as_it_is_and_says_so(name):
    with pytest.warns(UserWarning, match=r"compile: .* runs as it is: "):
        found = observed(RUN_AS_THEY_ARE[name], interpreted)
    assert found == observed(RUN_AS_THEY_ARE[name], lambda f: f)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_at_each_call_is_refused_where_it_is_asked_for(name):
    program, match = REFUSED[name]
    with pytest.raises(TraceError, match=match):
        program(interpreted)
