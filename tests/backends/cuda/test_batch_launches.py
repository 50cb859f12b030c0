"""Joined launches: that each does what its members would do, where they may be joined, and how few remain."""

import functools
import itertools
import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tinyarr as ta
from models.gpt2 import GPT2
from models.gpt2 import Config as GPT2Config
from models.llama3 import Config as LlamaConfig
from models.llama3 import Llama3
from tests.backends.cuda.bound import bound
from tests.backends.cuda.test_plans import ARCHITECTURES
from tests.backends.cuda.test_programs import compiled_step
from tests.compiler.memory.plan_checker import positions
from tests.tiers import at_most, thinned
from tinyarr import Device, Tensor
from tinyarr.backends.c.compiler import load
from tinyarr.backends.cuda.kernels import elementwise
from tinyarr.backends.cuda.planning import compiler
from tinyarr.backends.cuda.planning.registry import Input, Launch, LaunchPlan, Operand, Output, Scratch, Source, Struct
from tinyarr.backends.cuda.program import batch_launches
from tinyarr.backends.cuda.program.batch_launches import JoinedTask, join
from tinyarr.backends.cuda.program.lowering import Launchable
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.memory.plan import plan
from tinyarr.program import Place
from tinyarr.views import View

META = Device("meta", like="cuda:sm_90")
KINDS = [ta.float32, ta.bfloat16]
MODELS = {
    "gpt2": lambda **o: GPT2(GPT2Config(vocab_size=200, block_size=32, n_layer=2, n_head=2, n_embd=128), **o),
    "odd gpt2": lambda **o: GPT2(GPT2Config(vocab_size=203, block_size=32, n_layer=3, n_head=3, n_embd=75), **o),
    "llama3": lambda **o: Llama3(LlamaConfig(200, 32, 2, 4, 2, 128, 256), **o),
    "odd llama3": lambda **o: Llama3(LlamaConfig(203, 32, 3, 3, 1, 78, 101), **o),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_kind = pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)


def training(model):
    return compiled_step(model, ta.optim.AdamW(model.parameter_groups(0.1), lr=1e-3))


def lowered(model, batch, time):
    step = training(model)
    tokens = ta.zeros((batch, time), dtype=ta.int64, device=META)
    step(tokens, tokens)
    (graph,) = step.graphs
    planned = plan(graph)
    return bound(planned), planned


@functools.cache
def lowered_model(name, dtype):
    return lowered(MODELS[name](dtype=dtype, device=META), 4, 32)


def launches(tasks):
    return [step for task in tasks for step in task.plan.steps]


def test_the_end_of_a_training_step_is_a_few_launches():
    """GPT-2 124M has 148 parameters in 6 segments."""
    before, planned = lowered(GPT2(GPT2.sizes["124M"], dtype=ta.bfloat16, device=META), 64, 1024)
    squares, updates = (
        [task for task in before.tasks if task.title == title]
        for title in ("astype_square_sum", "scaled_adamw_master_update")
    )
    assert len(squares) == len(updates) == 6 and len(launches(squares + updates)) <= 3 * 6
    # Between the squares and the updates: their sum, the scale, the count of steps.
    assert before.tasks.index(updates[0]) - before.tasks.index(squares[-1]) <= 5
    assert before.tasks[-1] is updates[-1]
    # Each thread first computes powers of beta: it then takes many packs. So there are few blocks.
    assert all(step.grid[0] <= elementwise.FEW_BLOCKS for step in launches(updates))


def test_tables_stay_within_what_a_launch_may_get():
    before, planned = lowered_model("gpt2", ta.float32)
    for table in (batch_launches.TABLE, batch_launches.OLD_TABLE, 700):
        joined = [s for s in launches(join(before, planned, table).tasks) if s.function.endswith("_joined")]
        assert joined and all(8 * len(*step.arguments) <= table for step in joined)


def members_of(task):
    return task.members if isinstance(task, JoinedTask) else (task,)


def scratch_of(task):
    """For each member where its scratch is."""
    rest = iter(task.scratch)
    return [tuple(itertools.islice(rest, len(member.plan.scratch))) for member in members_of(task)]


def bytes_of(places, operands):
    """For each operand its buffer, and where each of its bytes is."""
    for place, x in zip([p for p in places if type(p) is Place], operands, strict=True):
        first = place.offset + positions(View(x.shape, x.strides, 0)).reshape(-1, 1) * x.dtype.itemsize
        yield place[:2], (first + np.arange(x.dtype.itemsize)).reshape(-1)


def what_is_read(tasks, numbers, arena):
    """By task which others made the bytes that it reads, and then who made what is there in the end.

    -1 in scratch. What is joined may run in any order; here its last member comes first.
    """
    sizes = defaultdict(int)
    for task in tasks:
        for buffer, at in (*bytes_of(task.inputs, task.reads), *bytes_of(task.outputs, task.makes)):
            sizes[buffer] = max(sizes[buffer], at.max(initial=-1) + 1)
        for place, n in zip(task.scratch, task.plan.scratch):
            sizes[place[:2]] = max(sizes[place[:2]], place.offset + n)
    memory = {buffer: np.zeros(size, np.int32) for buffer, size in sizes.items()}
    found = {}
    for task in tasks:
        for member, scratch in zip(members_of(task)[::-1], scratch_of(task)[::-1]):
            number = numbers[id(member)]
            found[number] = [memory[buffer][at].tobytes() for buffer, at in bytes_of(member.inputs, member.reads)]
            for place, n in zip(scratch, member.plan.scratch):
                memory[place[:2]][place.offset : place.offset + n] = -1
            for buffer, at in bytes_of(member.outputs, member.makes):
                memory[buffer][at] = number
    return found, {b: (bytes_[:arena] if b[0] == "arena" else bytes_).tobytes() for b, bytes_ in memory.items()}


def resolved(arguments, task, scratch):
    """Arguments with places for numbers of operands."""
    places = {Input: task.inputs, Output: task.outputs, Scratch: scratch}
    flat = itertools.chain.from_iterable(a if type(a) is Struct else [a] for a in arguments)
    return tuple(
        ("at", places[type(a)][a.number], a.offset) if type(a) in places else (type(a), a) for a in flat
    )  # fmt: skip


def rows_of(step):
    """For each launch that a step joins, or for itself, its grid and its arguments."""
    if not step.function.endswith("_joined"):
        return [(step.grid, step.arguments)]
    (table,), members = step.arguments, int(dict(step.source.macros)["MEMBERS"])
    first, rest = table[:members], table[members:]
    width = len(rest) // members
    rows = [rest[at : at + width] for at in range(0, len(rest), width)]
    grids = [tuple(map(int, row[:3])) for row in rows]
    assert list(first) == list(itertools.accumulate(map(math.prod, grids), initial=0))[:-1]
    assert step.grid == (sum(map(math.prod, grids)), 1, 1)
    return [(grid, row[3:]) for grid, row in zip(grids, rows)]


def check(before, after, arena):
    """That joined tasks do what they did: in another order where that is the same, in scratch of their own."""
    numbers = {id(task): number for number, task in enumerate(before.tasks, 1)}
    assert sorted(numbers[id(m)] for task in after.tasks for m in members_of(task)) == sorted(numbers.values())
    assert what_is_read(after.tasks, numbers, arena) == what_is_read(before.tasks, numbers, arena)
    for task in after.tasks:
        if not isinstance(task, JoinedTask):
            continue
        blocks = sorted((p.offset, p.offset + n) for p, n in zip(task.scratch, task.plan.scratch, strict=True))
        assert all(b <= c for (_, b), (c, _) in itertools.pairwise(blocks))
        assert all(arena + before.scratch <= a and b <= arena + after.scratch for a, b in blocks)
        expected, level = defaultdict(list), 0
        for member, scratch in zip(task.members, scratch_of(task), strict=True):
            for number, step in enumerate(member.plan.steps):
                expected[step.function, resolved(step.arguments, member, scratch)].append((number, step))
        for step in task.plan.steps:
            shared = []
            for grid, arguments in rows_of(step):
                own = expected[step.function.removesuffix("_joined"), resolved(arguments, task, task.scratch)]
                number, launch = own.pop(0)
                assert number >= level and launch.block == step.block
                assert grid == launch.grid or (launch.one_pass and grid[1:] == (1, 1))
                level = number
                if launch.one_pass:
                    shared.append((launch.one_pass, grid[0]))
            fewest = -(-sum(n for n, _ in shared) // elementwise.FEW_BLOCKS)
            assert max([-(-n // blocks) for n, blocks in shared], default=0) == fewest  # passes of a thread
        assert not any(expected.values())


@pytest.mark.parametrize(("name", "dtype"), thinned([*itertools.product(MODELS, KINDS)], 3))
def test_joined_tasks_do_what_they_did(name, dtype):
    before, planned = lowered_model(name, dtype)
    after = join(before, planned)
    assert len(after.tasks) < len(before.tasks)
    check(before, after, planned.arena)


ARENA, SCRATCH = 256, 512  # bytes of made-up programs
SOURCES = [Source(("kernel.cuh",), text=text) for text in "ab"]


@st.composite
def tasks(draw):
    """A task of one or two launches, which works on a few bytes of the arena, of its scratch, and of state."""
    places = st.sampled_from([Place("arena", 0, at) for at in (0, 4, 8, 64, 128, ARENA, ARENA + 4)])
    places |= st.sampled_from([Place("state", number) for number in range(3)])
    inputs, outputs = draw(st.lists(places, max_size=2)), draw(st.lists(places, min_size=1, max_size=2, unique=True))
    reads, makes = (
        [Operand((draw(st.integers(1, 3)),), (draw(st.sampled_from([1, 2])),), ta.float32) for _ in x]
        for x in (inputs, outputs)
    )
    blocks = draw(st.sampled_from([(), (), (8,), (4, 100)]))
    scratch = [Place("arena", 0, ARENA + 128 * i) for i in range(len(blocks))]
    arguments = [Input(i) for i in range(len(inputs))], [Scratch(i) for i in range(len(blocks))]
    results = [Output(i, 4) for i in range(len(outputs))]
    each = [[*arguments[0], *arguments[1]], [*arguments[1], *results]] if blocks else [[*arguments[0], *results]]
    joinable, source = draw(st.integers(0, 9)) > 0, draw(st.sampled_from(SOURCES))
    steps = [
        Launch(source, f"step{i}", (draw(st.integers(1, 3)), draw(st.integers(1, 3)), 1), (32, 1, 1), (*x, np.int64(i)),
               types=("int64_t",) * (len(x) + 1) * joinable) for i, x in enumerate(each)
    ]  # fmt: skip
    title = draw(st.sampled_from("xy"))
    return Launchable(title, "", LaunchPlan(steps, blocks), *map(tuple, (inputs, outputs, scratch, reads, makes)))


@given(st.lists(tasks(), max_size=12), st.sampled_from([100, 300, batch_launches.TABLE]), st.sampled_from([0, 512]))
@at_most(300)
def test_tasks_are_joined_only_where_their_order_does_not_matter(made, table, guard):
    before = SimpleNamespace(tasks=made, scratch=SCRATCH)
    read, _ = what_is_read(made, {id(task): number for number, task in enumerate(made)}, ARENA)
    assume(all(-1 not in np.frombuffer(x, np.int32) for found in read.values() for x in found))  # of others' scratch
    after = join(before, SimpleNamespace(arena=ARENA, guard=guard), table)
    check(before, after, ARENA)


def test_updates_of_what_is_not_read_are_joined_and_others_are_not():
    def task(read, written, n=4, aligned=True):
        x, at = Operand((n,), (1,), ta.float32, aligned), [Place("arena", 0, 4 * offset) for offset in (read, written)]
        copied = LaunchPlan(elementwise.copy((x, Input(0)), (x, Output(0))))
        return Launchable("copy", "", copied, (at[0],), (at[1],), (), (x,), (x,))

    def joined(*made):
        after = join(SimpleNamespace(tasks=made, scratch=0), SimpleNamespace(arena=4096, guard=0))
        return [len(members_of(task)) for task in after.tasks]

    assert joined(task(0, 4), task(0, 8), task(12, 16)) == [3]
    assert joined(task(0, 4), task(4, 8)) == joined(task(0, 4), task(7, 8)) == [1, 1]  # reads what was written
    assert joined(task(0, 4), task(4, 8), task(12, 16)) == [1, 2]
    assert joined(task(0, 4), task(8, 0)) == joined(task(0, 4), task(8, 4)) == [1, 1]  # writes over it
    assert joined(task(0, 4), task(0, 5)) == joined(task(0, 4), task(0, 1)) == [1, 1]
    # The third works where the second one reads. It is like the first, but of another kernel: they can't be joined.
    odd, last = replace(task(12, 16), title="odd"), task(32, 36, aligned=False)
    last = replace(last, plan=replace(last.plan, scratch=(16,)), scratch=(Place("arena", 0, 48),))
    apart = [task(20, 24), odd, last]
    assert join(SimpleNamespace(tasks=apart, scratch=0), SimpleNamespace(arena=4096, guard=0)).tasks == apart
    blocks = batch_launches.LARGE + 1
    assert joined(task(0, 4), task(0, 2**24, blocks * 1024)) == [1, 1]


HOST = """
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef struct { uint32_t x, y, z; } uint3, dim3;
static uint3 blockIdx;
#define alignas _Alignas
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __grid_constant__
"""
KERNEL = """
typedef struct { const int64_t *add; int64_t times; } slot;
KERNEL(32, count, int *out, slot from, int few, float scale)
{
    int64_t at = (BLOCK.z * GRID.y + BLOCK.y) * GRID.x + BLOCK.x;
    if (BLOCK.x < GRID.x && BLOCK.y < GRID.y && BLOCK.z < GRID.z)
        out[at] += (int)(*from.add * from.times * scale) + few;
}
"""
RUN = """
void run(const Table *table, uint32_t block) { blockIdx.x = block; JOINED(*table); }
"""


def test_each_block_does_the_work_of_one_block_of_a_member():
    """Compiled for the host, as C: how the table is laid out, the search, and the grids."""
    rng = np.random.default_rng(0)
    grids = [tuple(map(int, rng.integers(1, 5, 3))) for _ in range(37)]
    added = [np.array([number + 1]) for number in range(37)]
    out = [np.zeros(grid, np.int32) for grid in grids]
    members = [
        Launch(
            Source(("kernel.cuh",), text=KERNEL), "count", grid, (32, 1, 1),
            (Output(0, 16), Struct((Input(0), np.int64(-3))), np.int32(-number), np.float32(0.5)),
            types=("int *", "slot", "int", "float"),
        ) for number, grid in enumerate(grids)
    ]  # fmt: skip
    (joined,) = batch_launches._launches(members, batch_launches.TABLE)
    (table,) = joined.arguments
    addresses = iter([n for y, x in zip(out, added) for n in (y.ctypes.data, x.ctypes.data)])
    words = b"".join(
        (next(addresses) if type(a) in (Input, Output) else int.from_bytes(a.tobytes().ljust(8, b"\0"), "little"))
        .to_bytes(8, "little") for a in table
    )  # fmt: skip
    run = load(HOST + compiler.text_of(joined.source).replace('extern "C" ', "") + RUN).run
    for block in rng.permutation(joined.grid[0]):
        run(words, int(block))
    for number, y in enumerate(out):
        assert np.all(y == int((number + 1) * -3 * 0.5) - number)


@pytest.mark.parity
@pytest.mark.slow
@every_kind
@every_model
def test_joined_launches_compile_without_a_gpu(name, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    before, planned = lowered_model(name, dtype)
    joined = [step for step in launches(join(before, planned).tasks) if step.function.endswith("_joined")]
    assert len(joined) > 3
    for step in joined:
        for architecture in ARCHITECTURES:
            assert step.function.encode() in compiler.compile_source(step.source, architecture)


@pytest.mark.parametrize("like", ["cpu", "cuda:sm_90"])
def test_sums_of_what_is_read_later_stay_together_where_launches_are_joined(like):
    def kept(x):
        parts = [ta.exp(x @ x), ta.tanh(x @ x)]
        sums = [part.sum() for part in parts]
        return sums, [part @ x for part in parts]

    def freed(x):
        y = ta.exp(x)
        y = y @ y
        return ta.tanh(x @ x.mT), y.sum()

    def names(function):
        compiled = ta.compile(function)
        compiled(ta.ones((64, 64), device=Device("meta", like=like)))
        return [node.call.primitive.name for node in compiled.graphs[0].nodes]

    together = ["matmul", "exp", "tanh", "sum", "sum", "matmul", "matmul"]
    behind_their_operands = ["matmul", "exp", "sum", "tanh", "sum", "matmul", "matmul"]
    assert names(kept) == (behind_their_operands if like == "cpu" else together)
    assert names(freed) == ["exp", "matmul", "sum", "matmul", "tanh"]


@pytest.mark.cuda
@pytest.mark.parametrize("table", [batch_launches.TABLE, 700])
@every_kind
@every_model
def test_a_joined_training_step_gives_the_bits_of_one_whose_launches_are_apart(name, dtype, table, monkeypatch):
    from tinyarr.backends.cuda.program import program  # which needs CuPy

    rng = np.random.default_rng(0)
    tokens = [Tensor(rng.integers(0, 200, (4, 32)), device="cuda") for _ in range(2)]
    found = []
    for joins in (True, False):
        monkeypatch.setattr(program, "join", lambda low, p, _, joins=joins: join(low, p, table) if joins else low)
        ta.manual_seed(0)
        model = MODELS[name](dtype=dtype, device="cuda")
        step = training(model)
        losses = [[x.item() for x in step(*tokens)] for _ in range(4)]
        assert any(isinstance(task, JoinedTask) for task in step.programs[0].kernels) == joins
        found.append((losses, [p.astype(ta.float64).tolist() for p in model.parameters()]))
    assert found[0] == found[1]


@pytest.mark.cuda
@every_kind
def test_a_full_table_of_updates_gives_the_bits_of_eager_mode(dtype):
    rng = np.random.default_rng(0)
    shapes = [tuple(map(int, rng.integers(1, 80, n % 3))) for n in range(150)] + [(100, 2500)] * 3
    start, gradients = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))
    found = []
    for build in (None, Interpreter):
        parameters = [Tensor(x, dtype=dtype, device="cuda", requires_grad=True) for x in start]
        optimizer = ta.optim.AdamW(parameters, lr=1e-2)

        def step(parameters=parameters, optimizer=optimizer):
            norm = ta.optim.clip_grad_norm(parameters, 1.0)
            optimizer.step()
            return norm

        run, norms = Compiled(step, build=build), []
        for p, g in zip(parameters, gradients):
            p.grad = Tensor(g, dtype=dtype, device="cuda")
        for _ in range(5):  # captured from the second call on; each scales the gradients down to a norm of 1
            norms.append(run().item())
            for p in parameters:
                p.grad.assign(p.grad * 3)
        found.append((norms, [p.astype(ta.float64).tolist() for p in parameters]))
        if build is None:
            joined = [task for task in run.programs[0].kernels if isinstance(task, JoinedTask)]
            sizes = [8 * len(s.arguments[0]) for s in launches(joined) if s.function.endswith("_joined")]
            assert batch_launches.OLD_TABLE < max(sizes) <= batch_launches.TABLE
    assert found[0] == found[1]
