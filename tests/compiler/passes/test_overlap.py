"""Collectives in programs: when they begin and end, and that nothing touches what they hold in between."""

import functools
import inspect
import itertools
import textwrap

import numpy as np
import pytest
from hypothesis import Phase, assume, given
from hypothesis import strategies as st

import tinyarr as ta
from models.gpt2 import GPT2, Config
from tests.compiler.memory.plan_checker import follow
from tests.compiler.passes.two_streams import ALONE, PAIR, WAYS, TwoStreams, of_two, simulated
from tests.compiler.test_compile import bits, outcome
from tests.test_random_programs import KINDS, Step, pick, programs
from tests.tiers import at_most, slow, thinned
from tinyarr import Tensor
from tinyarr import distributed as d
from tinyarr.compiler import PASSES, Compiled, Interpreter
from tinyarr.compiler.memory import alias as aliases
from tinyarr.compiler.memory import plan as planning
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.passes import schedule
from tinyarr.compiler.passes.order import passes_within
from tinyarr.compiler.uses import is_collective, is_wait, made_by, values_read
from tinyarr.program import Write


def together(draw, values) -> Step:
    """A collective of one rank, or of two, of which the other is simulated."""
    group = draw(st.sampled_from((ALONE, PAIR)))
    name = draw(st.sampled_from(("all_reduce", "all_reduce", "reduce", "broadcast", "reduce_scatter", "all_gather")))
    params = {}
    if name in ("all_reduce", "reduce_scatter"):
        params["op"] = draw(st.sampled_from(("sum", "mean")))
    if name in ("reduce", "broadcast"):
        params["root"] = draw(st.integers(0, group.size - 1))
    suits = {"reduce_scatter": lambda x: x.ndim and x.shape[0] % group.size == 0, "all_gather": lambda x: x.ndim}
    i = pick(draw, values, suits.get(name, lambda x: True))

    def run(xp, x):
        if xp is np:
            return [of_two(name, x, group.size, **params)]
        return [getattr(d, name)(x, group=group, **params)]

    return Step((i,), run)


BUCKET = 1 << 11  # bytes
WITH_COLLECTIVES = (*KINDS, *[together] * len(KINDS))


def agrees(make, inputs, passes=PASSES) -> None:
    """In each way the program gives the bits of eager mode, and leaves those in its state, again and again.

    make() gives the function, and the tensors that it writes.
    """
    expected = after_calls(*make(), inputs)
    for way in WAYS:
        function, state = make()
        compiled = Compiled(function, passes, lambda graph, way=way: TwoStreams(graph, way))
        assert after_calls(compiled, state, inputs) == expected, way
        for graph in compiled.graphs:
            follow(graph, plan(graph))


def after_calls(function, state, inputs):
    return [(outcome(function, *inputs), [bits(s) for s in state]) for _ in range(3)]


@pytest.mark.filterwarnings("ignore:compile. memory_budget")
@at_most(20, phases=[Phase.generate])
@given(programs(WITH_COLLECTIVES))
def test_random_programs_hold_what_their_collectives_read_and_make(program):
    inputs = [Tensor(x) for x in program.inputs]

    def make():
        with_gradients = program.with_gradients()
        state = [ta.copy(x) for x in with_gradients(*inputs)]

        def function(*inputs):
            under_way = [d.all_reduce(s, group=PAIR) for s in state]
            found = with_gradients(*inputs)
            for s, x in zip(state, found):
                s.assign(x + s * 0.5)
            return *found, *(x * 2 for x in under_way)

        return function, state

    with simulated():
        assume("comes from outside" not in str(outcome(Compiled(make()[0], build=Interpreter), *inputs)))
        agrees(make, inputs)
        expected = after_calls(*make(), inputs)
        for passes in ((), PASSES, passes_within(0)):
            function, state = make()
            assert after_calls(Compiled(function, passes, Interpreter), state, inputs) == expected


def busy(x):
    """x, and many results of its size that live for a moment."""
    y = x
    for _ in range(3):
        y = ta.tanh(y @ x) + x
    return y


def reads_the_operand_later(x, state):
    y = busy(x)
    total = d.all_reduce(y, group=PAIR)
    return busy(y) @ total, y @ y


def returns_the_operand(x, state):
    y = busy(x)
    return y, d.all_reduce(y, group=PAIR) @ x


def is_busy_meanwhile(x, state):
    y = busy(x)
    total = d.broadcast(y, 1, group=PAIR)
    half = d.reduce_scatter(y @ x, group=PAIR)
    other = busy(x.T)
    return other @ total, half * 3


def is_busy_before_the_last_reader(x, state):
    total = d.all_reduce(busy(x), group=PAIR)
    first = total @ x
    return first, busy(busy(x) + first) @ total


def reads_what_is_written(x, state):
    total = d.all_reduce(state, group=PAIR)
    state.assign(busy(x))
    return busy(busy(x)) @ total


def keeps_the_operand(x, state):
    ta.add(busy(x), x, out=state)
    return d.all_reduce(state, group=PAIR) @ x


def reads_a_constant(x, state):
    return d.all_reduce(Tensor([[1.0, 2.0, 3.0, 4.0]]), group=PAIR) + x


def joins(x, state):
    total = d.all_reduce(ta.concat([x * 2, busy(x), x @ x]), group=PAIR)
    return busy(x), total[4:8] @ x


def reads_a_part(x, state):
    y = busy(x)
    total = d.all_reduce(y[1:], group=PAIR)
    return busy(x.T)[1:] * total


def ends_the_operand_meanwhile(x, state):
    y = busy(x)
    total = d.all_reduce(y, group=PAIR)
    return busy(ta.tanh(y)) @ total


CASES = (
    reads_the_operand_later, ends_the_operand_meanwhile, returns_the_operand, is_busy_meanwhile,
    is_busy_before_the_last_reader, reads_what_is_written, keeps_the_operand, reads_a_constant, reads_a_part, joins,
)  # fmt: skip


def check(case, passes=PASSES) -> None:
    x = Tensor(np.random.default_rng(0).uniform(-0.5, 0.5, (4, 4)))

    def make():
        state = Tensor(np.random.default_rng(1).standard_normal((4, 4)))

        def function(x):
            return case(x, state)

        return function, [state]

    with simulated():
        agrees(make, [x], passes)


@pytest.mark.parametrize("case", CASES)
def test_memory_under_way_is_left_alone(case):
    check(case)


JOIN = aliases._Aliases, "join_collectives"
FAULTS = {
    "an operand that is read later is written over": (*JOIN, "self.lives[root][1] == begin", "True"),
    "what a program ends with is not read": (planning, "_in_order", "for s in changed:  # after", "for s in ():  #"),
    "a constant is written over": (*JOIN, "self._is_free(root) and", ""),
    "a part is written over from its start": (*JOIN, "and nbytes(root) == nbytes(result)", ""),
    "no alias is held until the wait": (*JOIN, "max(self.lives[root][1], end)", "self.lives[root][1]"),
    "state is not held until the wait": (*JOIN, "self._readers[root].append((end, x))", "pass"),
    "no memory is held until the wait": (planning, "lifetimes", "for life in collectives(steps)", "for life in ()"),
    "the wait comes behind the first reader": (schedule, "overlap", "= min(lives", "= max(lives"),
    "the collective begins before its operand is there": (schedule, "overlap", "after = max(", "after = min("),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plan_or_schedule_with_a_fault_is_caught(fault, monkeypatch):
    owner, name, before, after = FAULTS[fault]
    right = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(right))
    assert source.count(before) == 1
    made = dict(right.__globals__)
    exec(source.replace(before, after), made)
    monkeypatch.setattr(owner, name, made[name])
    passes = [made[name] if p is right else p for p in PASSES]
    caught = []
    for case in CASES:
        try:
            check(case, passes)
        except (AssertionError, KeyError, IndexError):  # a value may be asked for before it is there
            caught.append(case)
    assert caught


def small(dtype):
    config = Config(vocab_size=40, block_size=8, n_layer=2, n_head=2, n_embd=16)
    return GPT2(config, dtype=dtype, generator=ta.Generator(0))


def trained(scheme, group, passes=None, build=None, dtype=ta.float32, bucket=BUCKET):
    """What three steps return and leave, and their program."""
    model = small(dtype)
    kind = d.DataParallel if scheme == "data" else functools.partial(d.Zero, stage=int(scheme[-1]))
    parallel = kind(model.parameter_groups(0.1), group, bucket=bucket)
    optimizer = ta.optim.AdamW(parallel.groups, lr=1e-2)

    def step(x):
        loss = model.loss(x[:, :-1], x[:, 1:])
        loss.backward()
        parallel.reduce()
        norm = parallel.gradient_norm()
        ta.optim.clip_grad_norm(optimizer.parameters, 1.0, norm=norm)
        optimizer.step()
        parallel.gather()
        optimizer.zero_grad()
        return (*parallel.mean(loss.detach()), norm)

    run = step if passes is None else Compiled(step, passes, build)
    rng = np.random.default_rng(0)
    found = [outcome(run, Tensor(rng.integers(0, 40, (2, 9)))) for _ in range(3)]
    return found + [bits(p.detach()) for p in model.parameters()], run


SCHEMES = [*itertools.product([ta.float32, ta.bfloat16], ["data", "zero1", "zero2"])]


@pytest.mark.filterwarnings("ignore:compile. memory_budget")
@pytest.mark.parametrize(("dtype", "scheme"), thinned(SCHEMES, 2))  # each scheme, and both dtypes
def test_training_gives_its_bits_with_any_passes_and_whenever_collectives_take_effect(scheme, dtype):
    with simulated():
        expected, _ = trained(scheme, PAIR, dtype=dtype)
        for passes in ((), PASSES, passes_within(0)):
            assert trained(scheme, PAIR, passes, Interpreter, dtype)[0] == expected
        for way in WAYS:
            found, run = trained(scheme, PAIR, PASSES, functools.partial(TwoStreams, way=way), dtype)
            assert found == expected, way
        assert len(run.graphs) == 1
        follow(run.graphs[0], plan(run.graphs[0]))


@pytest.mark.parametrize("scheme", ["data", slow("zero1"), "zero2"])
def test_each_bucket_is_on_its_way_before_the_last_backward_kernel(scheme):
    """But for the one with the gradients that come last, and those of biases and norms, which follow it everywhere.

    And each is waited for when its result is first read.
    """
    with simulated():
        _, run = trained(scheme, PAIR, PASSES)
    nodes = run.graphs[0].nodes
    name = "all_reduce" if scheme == "data" else "reduce_scatter"
    starts = [i for i, n in enumerate(nodes) if is_collective(n) and n.call.primitive.name == name]
    starts = [i for i in starts if nodes[i].call.in_shapes[0] not in ((), (1,))]  # but the norm and the loss
    maker = {v: i for i, n in enumerate(nodes) for v in made_by(n)}
    needed = {i: before(nodes, maker, i) for i in starts}
    names = ["write" if isinstance(n, Write) else n.call.primitive.name for n in nodes]
    arranging = {i for i, name in enumerate(names) if name in ("concat", "copy", "astype", "full")}
    last = max(max(needed[i] - arranging) for i in starts)
    first_late = next(i for i in starts if i > last)
    assert last in needed[first_late]
    matrices, others = (g["parameters"] for g in small(ta.float32).parameter_groups(0.1))
    assert starts.index(first_late) == buckets_of(matrices, BUCKET) - 1 > 4
    assert sum(p.size for p in others) < 0.1 * sum(p.size for p in matrices)
    for i, previous in zip(starts, [-1, *starts]):
        since = max(*(needed[i] - arranging), previous)
        between = set(range(since + 1, i)) - arranging
        assert all(is_collective(nodes[j]) for j in between), "it could begin earlier"
        assert i >= first_late or since > previous, "it had to wait for another one"
    readers = {v: i for i, n in reversed(list(enumerate(nodes))) for v in values_read(n)}
    for i, node in enumerate(nodes):
        if is_wait(node):
            until = readers.get(node.outputs[0], len(nodes))
            assert all(is_wait(n) for n in nodes[i:until]), "it could be waited for later"


def before(nodes, maker, position: int) -> set[int]:
    """The positions of all that a node's operands are made of."""
    found, more = set(), [position]
    while more:
        for value in values_read(nodes[more.pop()]):
            if value in maker and maker[value] not in found:
                found.add(maker[value])
                more.append(maker[value])
    return found


@pytest.mark.parametrize("bucket", [slow(1), 1 << 11, slow(1 << 30)])
def test_there_are_as_many_collectives_as_buckets(bucket):
    with simulated():
        for scheme in ("data", "zero1"):
            _, run = trained(scheme, ALONE, PASSES, bucket=bucket)
            names = [n.call.primitive.name for n in run.graphs[0].nodes if is_collective(n)]
            groups = small(ta.float32).parameter_groups(0.1)
            runs = [g["parameters"] for g in groups]
            runs = [[*runs[1], *runs[0]]] if scheme == "data" else runs  # the last comes first
            expected = sum(buckets_of(run, bucket) for run in runs)
            if scheme == "data":
                assert names.count("all_reduce") == expected + 1  # the loss
            else:
                assert names.count("reduce_scatter") == names.count("all_gather") == expected
                assert names.count("all_reduce") == 2  # the loss and the norm


def buckets_of(parameters, nbytes: int) -> int:
    """A bucket is full when it has so many bytes of float32."""
    count = held = 0
    for p in reversed(parameters):
        count += held == 0
        held += p.size * 4
        held = 0 if held >= nbytes else held
    return count
