"""Programs at random that read, write, alias and replace state of every kind, compiled beside eager mode.

A program is the source of a function, and a list of calls: what is changed before each, and its arguments. It runs in
two equal worlds (worlds.py), in one of them compiled; after each call all that there is must be equal. A call that is
refused, or raises, must leave its world as it was.

By hand, for longer: `python -m tests.compiler.capture.test_random_states 10000` runs so many programs and says what
became of them.
"""

import collections
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.capture.worlds import FUNCTION, differences, execute, world
from tests.tiers import at_most
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import ArgumentError, GradientError, OutOfBounds, TraceError
from tinyarr.tape import set_recording

REFUSALS = TraceError, ArgumentError, GradientError

# Expressions that give a tensor, in the function and outside of it.
TENSORS = """a row turned corner G bag.t slotted.t ns.t table['t'] items[0] items[-1] last[-1] Shared.t pair[0] other.t
    named.t weight locked.t local.t weak().t graph.t graph.parent.t linear.weight.detach() getattr(weak(),'t')
    nested['l'][0].t other.up.t model.buffer result[0][0] result[0][-1] w.detach() model.weight.detach()""".split()
INSIDE = ["tensor_in(z)", "x", "y", "x", "y", "u", "cell_t", "u"]
NUMBERS = """
    N bag.n slotted.n ns.n table['n'] counter['n'] Shared.n pair[1] len(items) len(table) bag.pair[0] bag.pair[1]
    bag.doubled bag.shift bag.config.n listed.total() sum(bag.items) Shared.items[0] nested['d']['e'][0] helper.k
    len(seen) float(numbers[0]) float(numbers.sum()) model.calls ordered['p'] next(iter(ordered.values())) other.up.n
    mode.value float(number) named.n locked.n locked.missing weight.tag weight.scale local.n weak().n Node.made
    dataclasses.replace(bag.config).n copy.deepcopy(nested['d'])['e'][0] int(f"{bag.n}") Caller.count optimizer.lr.size
    sum(vars(bag.config).values()) getattr(bag,'n') helper.__defaults__[0][0]""".split()
NUMBERS_INSIDE = ["k", "i", "k", "cell_n", "cell_l[-1]", "number_in(z)"]
# What can be assigned.
PLACES = """G bag.t bag.u slotted.t ns.t table['t'] table['u'] items[0] Shared.t nested['l'][0].t model.buffer helper.t
    other.t locked.t local.t graph.t weight.t helper.t""""".split()
COUNTERS = """
    N bag.n slotted.n ns.n table['n'] counter['n'] Shared.n numbers[0] nested['d']['e'][0] helper.k model.calls
    locked.n locked.new weight.tag weight.scale local.n graph.n Caller.count weak().n
    bag.items[0] Shared.items[0] Bag.shift ordered['p'] listed.k Listed.k""".split()

# Lines of the function. {t}: a tensor; {n}: a number; {p}: where a tensor can be put; {c}: a counter; {d}: a small int.
LINES = """
u = {t} * 2.0
u = {t} * {n}
u = {t} + {t2}.sum()
u = u + {t}.sum() * {n}
u = ta.tanh({t}.reshape((-1,)))
u = turn({t})
u = {t}[..., :1]
u = {t}[..., ::-1]
u = ta.copy({t})
u = ta.concat([{t}.reshape((-1,)), {t2}.reshape((-1,))])
u = helper({t})
u = table['f']({t})
u = bag.scaled({t})
u = inner({t})
u = u + ta.take({t}.reshape((-1,)), Tensor([{d}]), axis=0).sum()
u = model({t})
u = u + ta.rand((2,))[0]
u = u + ta.rand((1,), generator=g).sum()
{t}.assign({t2}.sum())
{t}.assign({n})
{t}[..., 0] = {n}
{t}[..., :1].assign({t2}.sum() * 0.5)
{p} = u
{p} = u * {n}
{p} = ta.copy({t})
{p} = {t}
{p}, {p2} = u, u
{p} = u[..., :1]
{p}, {p2} = bag.t, ns.t
{c} += {d}
{c} = {d}
{c} = int({n}) + 1
bag.kept = {n}
bag.new = [u, u]
bag.same = bag.items
if hasattr(bag, 'new'): del bag.new
items.append(u)
items.append({t})
items.insert(0, items.pop())
if len(items) > 2: items.pop(0)
last.append(u)
seen.add({d})
seen.discard({d})
made[{d}].append(u)
table['v'] = u
table['n'] = table.pop('n')
ordered.move_to_end('p')
nested['l'].append(Bag(t=u, n={d}))
nested['d'] = {{'e': [{d}, 2]}}
Shared.items = [*Shared.items, {d}]
slotted.t, ns.t = ns.t, slotted.t
bag.config = Config({d})
bag.pair = ({n}, {d})
other.up = Bag(t=u, n={d})
cell_t, cell_n = u, cell_n + {d}
cell_l.append({d})
helper.last = u
result_of_before = result[1]
if w.requires_grad: backward(lambda: w * {t}.sum())
if w.requires_grad: backward(lambda: w * v * {n})
if model.weight.requires_grad: backward(lambda: model(u))
if w.grad is not None: u = u + w.grad.sum()
w.grad = None
v.grad = w.grad
if w.grad is not None: w.grad = w.grad * 0.5
if w.grad is not None: w.grad.assign({n})
w.assign(w * 0.5)
w.assign({n})
if linear.weight.requires_grad: backward(lambda: linear(u.sum().reshape((1, 1)) * ta.ones((1, 2))))
if linear.weight.grad is not None and linear.bias.grad is not None: optimizer.step()
optimizer.zero_grad()
graph = Node(u, graph)
graph.parent = Node({t})
graph, graph.parent = (graph.parent or graph), graph
graph.parent = None
local.new = u
locked.t = u
weight.kept = [u, {n}]
bag.own = Weight(ta.copy({t}))
named = Named(u, {d})
mode = Mode.two if {n} > 2 else Mode.one
tensors.add(u)
bag.f = functools.partial(helper, scale=[{d}])
bag.g = lambda t, n={n}: t * n + u
if hasattr(bag, 'g'): u = bag.g(u)
if hasattr(bag, 'f'): u = bag.f(u)
if {n} > 3: fail(u)
attempt(u)
with ta.use_generator(g): u = u + ta.rand((1,)).sum()
table.update({{'u': u, 't': {t}}})
table.pop('v', None)
weak().seen = u
model.weight.assign(model.weight - 0.5)
""".strip().splitlines()
PREFIXES = ["", "", "", "", "if {n} > 2: ", "for j in range({d}): ", "if w.requires_grad: ", "if {t}.ndim == 1: "]

# What is changed between two calls.
CHANGES = """
{p} = Tensor([{d}.0, 0.5])
{p} = Tensor([[{d}.0], [0.5]])
{p} = Tensor([{d}.0, 2.5], dtype=ta.float64)
{p} = Tensor([{d}, 2])
{p} = {t}
{p} = {t}[..., :1]
{p} = ta.copy({t})
{p}, {p2} = bag.t, ns.t
{t}.assign({d}.0)
{t}[..., 0] = {d}.5
{c} = {d}
{c} += 1
{c} = 2.5
inner({t}).sum()
w.register_hook(lambda gradient: gradient * {d})
w.requires_grad = False
w.requires_grad = True
w.requires_grad = not w.requires_grad
v.requires_grad = not v.requires_grad
model.weight.requires_grad = not model.weight.requires_grad
w.grad = None
w.grad = ta.ones_like(w)
v.grad = w.grad
w = Tensor([1.0, 2.0], requires_grad=True)
model.weight = nn.Parameter(ta.ones((2, 2)))
model.eval() if model.training else model.train()
model.forward = lambda x: x * 3
Model.forward = lambda self, x: x * 5
Bag.scaled = lambda self, x: x * 7
bag.scaled = lambda x: x * N
bag.__class__ = Heavy
Heavy.shift = {d}
bag.config = Config({d})
bag.pair = ({d}, 0.5)
bag.pair = ({d}.5, 1)
bag.new = [{t}]
bag.n = vars(bag).pop('n')
bag.items = bag.items[:] + [{d}]
bag.items.append({d})
Shared.items[0] = {d}
items.append({t})
items[0], items[-1] = items[-1], items[0]
if len(items) > 1: items.pop()
last.append({t})
pair = ({t}, {d})
table['f'] = lambda x: x * 3
table['n'] = table.pop('n')
table[{d}] = {t}
ordered.move_to_end('p')
counter['n'] = {d}
listed.append({d})
seen.add({d})
numbers[0] = {d}
numbers = np.array([{d}.0, 3.0])
numbers = np.array([{d}])
nested['l'][0] = bag
nested['d']['e'].insert(0, {d})
other.up = Bag(t={t}, n={d})
other.up = other
helper.k = {d}
helper.__defaults__[0][0] = {d}
helper.__defaults__ = ([{d}],)
slotted = Slotted({t}, {d})
set_cells({t}, {d})
g = ta.Generator({d})
mode = Mode.two
Mode.one.tag = {d}
number = Number({d}.5)
named = Named({t}, {d})
locked.t, locked._n = {t}, {d}
weight.tag = {d}
weight.assign({d}.0)
Weight.scale = {d}
local.t = {t}
weak = weakref.ref(other)
graph = graph.parent or graph
graph.parent = graph
Node.made = 0
optimizer.lr = 0.25
linear.bias.requires_grad = not linear.bias.requires_grad
linear.weight.grad = None
linear.eval() if linear.training else linear.train()
tensors.discard(w)
bag.f = helper
bag.unseen = [{d}]
del bag.pair; bag.pair = ({d}, {d}.5)
vars(bag).pop('new', None)
g.load_state_dict({{'key': {d}, 'counter': 1}})
ta.manual_seed({d})
result = result[::1]
""".strip().splitlines()

ARGUMENTS = ["Tensor([1.0, 2.0])", "Tensor([[0.5, -1.0]])", "a", "row", "result[0][0]", "result[0][-1]", "G", "{t}",
             "{t}", "{t}[..., :1]", "turn({t})"]  # fmt: skip
KEYWORDS = ["z=bag", "z=other", "z=[{t}, {n}]", "z=({t}, {d}.5)", "z={{'t': {t}, 'n': {n}}}", "z=table", "z=pair",
            "z={t}", "z=items", "k={d}.5", "k={n}", "i={d}", "i={n}", "z=0.5", "z={n}"]  # fmt: skip
RETURNED = ["u", "x.detach()", "u[..., :1]", "{t}.detach()", "u.sum()"]
NESTED = ["[u, u]", "{{'t': {t}.detach()}}", "(u, [{t}.detach()])"]
OTHERS = ["bag", "items", "{n}", "bag.kept if hasattr(bag, 'kept') else 0", "cell_n", "nested['l'][-1]"]


class Program(NamedTuple):
    """source: of the function. calls: of each the lines that run before it, its arguments, and the gradient mode."""

    source: str
    calls: list[tuple[list[str], str, bool]]

    def __repr__(self) -> str:
        calls = "\n".join(
            "\n".join([*changes, f"result = run({arguments})" + ("" if recording else "  # under no_grad()")])
            for changes, arguments, recording in self.calls
        )
        return f"{self.source}\n{calls}\n"


@st.composite
def programs(draw) -> Program:
    def filled(template: str, tensors: list[str], numbers: list[str]) -> str:
        parts = {
            "t": tensors, "t2": tensors, "n": numbers, "p": PLACES, "p2": PLACES, "c": COUNTERS, "d": ["1", "2", "3"]
        }  # fmt: skip
        holes = {name: draw(st.sampled_from(x)) for name, x in parts.items() if f"{{{name}}}" in template}
        return template.format(**holes)

    def inside(templates: list[str]) -> str:
        return filled(draw(st.sampled_from(templates)), INSIDE + TENSORS, NUMBERS_INSIDE + NUMBERS)

    def outside(templates: list[str]) -> str:
        return filled(draw(st.sampled_from(templates)), TENSORS, NUMBERS)

    body = []
    for _ in range(draw(st.integers(1, 10))):
        line = inside(LINES)
        simple = not line.startswith(("if ", "with "))
        body.append((inside(PREFIXES) if simple else "") + line)
    returned = [inside(RETURNED), *(inside(NESTED) for _ in range(draw(st.integers(0, 1)))), inside(RETURNED)]
    others = [inside(OTHERS) for _ in range(draw(st.integers(0, 1)))]
    shown = f"({', '.join(returned)},), ({''.join(f'{x},' for x in others)})"
    run = draw(st.sampled_from(("f", "f", "f", "Caller(f)", "Caller(f).call", "functools.partial(f, i=3)")))
    source = FUNCTION.format(body="\n            ".join(body), returned=shown, run=run)
    calls = []
    for _ in range(draw(st.sampled_from((2, 3, 4, 5, 6, 12)))):
        changes = [outside(CHANGES) for _ in range(draw(st.integers(0, 2)))]
        arguments = [outside(ARGUMENTS) for _ in range(2)] + [outside(KEYWORDS) for _ in range(draw(st.integers(0, 1)))]
        calls.append((changes, ", ".join(arguments), draw(st.booleans())))
    return Program(source, calls)


class World:
    """A program's variables, and its random numbers. run: the function as it is, or compiled."""

    def __init__(self, program: Program, compiled: Callable | None):
        self.generator = ta.Generator(7)
        with ta.use_generator(self.generator):
            self.variables = world(program.source, compiled or (lambda f: f))
        self.run = self.variables["run"] if compiled is None else compiled(self.variables["run"])

    def change(self, lines: list[str]) -> Exception | None:
        with ta.use_generator(self.generator), ta.no_grad():
            for line in lines:
                try:
                    execute(line, self.variables)
                except Exception as error:
                    return error
        return None

    def call(self, arguments: str, recording: bool) -> Exception | None:
        with ta.use_generator(self.generator):
            try:
                with ta.no_grad():
                    execute(f"args, kwargs = (lambda *args, **kwargs: (args, kwargs))({arguments})", self.variables)
                args, kwargs = self.variables.pop("args"), self.variables.pop("kwargs")
                with set_recording(recording):
                    tensors, others = self.run(*args, **kwargs)
            except Exception as error:
                return error
        self.variables["result"] = _new(tensors), others
        return None

    def everything(self) -> Any:
        return {**self.variables, "the default generator": self.generator, "compiled": None, "inner": None}


def _new(x: Any) -> Any:
    """What is returned, as a compiled function returns it and another does not: tensors are new ones."""
    if isinstance(x, Tensor):
        return ta.copy(x.detach())
    if isinstance(x, dict):
        return {key: _new(part) for key, part in x.items()}
    return type(x)(map(_new, x)) if isinstance(x, list | tuple) else x


def as_before(program: Program, number: int) -> Any:
    """All there is before call `number` of the program, in eager mode."""
    fresh = World(program, None)
    for changes, *call in program.calls[:number]:
        fresh.change(changes)
        fresh.call(*call)
    fresh.change(program.calls[number][0])
    return fresh.everything()


def check(
    program: Program, compiled: Callable, tolerance: float = 0, told: Callable[[str], None] = lambda what: None
) -> None:
    """Runs a program in both worlds and compares them after each call. told: gets a word on how it ended."""

    def require_equal(one: Any, other: Any) -> None:
        found = differences(one, other, tolerance)
        assert not found, found[0]

    eager, other = World(program, None), World(program, compiled)
    for number, (changes, *call) in enumerate(program.calls):
        errors = eager.change(changes), other.change(changes)
        assert type(errors[0]) is type(errors[1]), errors
        require_equal(eager.everything(), other.everything())
        errors = eager.call(*call), other.call(*call)
        if errors[1] is not None:
            told(f"raised {str(errors[1])[:70]}" if errors[0] is not None else f"refused: {str(errors[1])[:400]}")
            assert type(errors[1]) in (type(errors[0]), *REFUSALS), errors
            before = as_before(program, number)
            if isinstance(errors[1], OutOfBounds):  # which a program finds when it runs: random draws count on
                for name in ("g", "the default generator"):
                    before[name].load_state_dict(other.everything()[name].state_dict())
            if other.run._has_given_up and not differences(eager.everything(), other.everything(), tolerance):
                return  # it ran as it is
            require_equal(before, other.everything())
            return
        if isinstance(errors[0], OutOfBounds):  # where nothing is made of what was read
            return told("read nothing at a bad index")
        assert errors[0] is None, errors
        require_equal(eager.everything(), other.everything())
    told("agreed")


def interpreted(function: Callable) -> Compiled:
    return Compiled(function, build=Interpreter)


few = settings(phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck), deadline=None)


@pytest.mark.filterwarnings("ignore:compile. ")
@at_most(60, few)
@given(programs())
def test_a_program_with_state_leaves_all_there_is_as_eager_mode_does(program):
    check(program, interpreted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:compile. ")
@settings(few, max_examples=1500)
@given(programs())
def test_many_programs_with_state_leave_all_there_is_as_eager_mode_does(program):
    check(program, interpreted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:compile. ")
@at_most(60, few)
@given(programs())
def test_a_program_with_state_in_c_leaves_all_there_is_as_eager_mode_does(program):
    # Some sixty operations one after the other, each of a condition below 100, err by 6e-8 in float32.
    check(program, ta.compile, tolerance=4e-4)


def main(examples: int) -> None:
    ends: collections.Counter[str] = collections.Counter()

    @settings(few, max_examples=examples, database=None)
    @given(programs())
    def run(program):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check(program, interpreted, told=lambda end: ends.update([end]))
        ends.update(f"warned: {str(w.message)[:150]}" for w in caught)

    try:
        run()
    finally:
        for end, count in ends.most_common():
            print(f"{count:6} {end}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
