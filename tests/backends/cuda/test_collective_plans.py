"""Collectives on CUDA without a GPU: which calls NCCL gets, on which stream, and who waits for whom."""

import itertools
import time

import pytest

import tinyarr as ta
from models.gpt2 import GPT2
from models.gpt2 import Config as GPT2Config
from tests.backends.cuda.bound import bound
from tests.backends.cuda.recorded import KERNELS, Entry, Machine, clocks, group_of
from tests.tiers import thinned
from tinyarr import Device, dtypes, optim
from tinyarr.backends.cuda.device import events
from tinyarr.backends.cuda.planning import plans
from tinyarr.backends.cuda.planning.registry import LIBRARIES, Input, Launch, LibraryCall, Output, Scratch
from tinyarr.compiler import Compiled
from tinyarr.compiler.memory.plan import plan
from tinyarr.distributed import DataParallel, Zero, all_gather, all_reduce, broadcast, reduce, reduce_scatter
from tinyarr.errors import RankError
from tinyarr.ops import collective as ops
from tinyarr.ops.primitive import Call
from tinyarr.program import Place

META = Device("meta", like="cuda:sm_90")
SIZES = range(2, 9)
NATIVE = {"bool": "UINT8", **{name: name.upper() for name in (
    "int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "bfloat16", "float32", "float64")}}  # fmt: skip
WIDE = {"int16": "INT32", "uint16": "UINT32", "float8_e4m3fn": "FLOAT32", "float8_e5m2": "FLOAT32"}
ALL = [getattr(dtypes, name) for name in (*NATIVE, *WIDE)]
by_dtype = pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)


def steps_of(primitive, dtype, group, **params):
    """The plan's steps for (2 n, 3) elements."""
    shape = (2 * group.size, 3)
    call = Call(primitive, META, (shape,), (dtype,), {"group": group, **params})
    return plans.planner(call)(*plans.dense_operands(call)).steps


def launched(machine, steps, addresses=((64,), (128,), (192, 256))):
    """What NCCL gets when a plan's steps run."""
    kinds = {Input: 0, Output: 1, Scratch: 2}
    for step in steps:
        if isinstance(step, LibraryCall):
            at = [addresses[kinds[type(a)]][a.number] + a.offset for a in step.arguments]
            LIBRARIES[step.name](step.spec)(KERNELS, *at)
    return [entry.what for entry in machine.log if entry.kind == "nccl"]


@by_dtype
def test_what_nccl_can_add_up_it_adds_up_where_it_lies(dtype, monkeypatch):
    machine, group = Machine(monkeypatch), group_of(4, 0)
    for primitive, op in ((ops._all_reduce, "max"), (ops._all_reduce, "sum"), (ops._reduce_scatter, "sum")):
        steps = steps_of(primitive, dtype, group, op=op)
        name = "allReduce" if primitive is ops._all_reduce else "reduceScatter"
        count = 24 if name == "allReduce" else 6
        wide = WIDE.get(dtype.name)
        where = (192, 256) if wide else (64, 128)
        assert launched(machine, steps)[-1] == (name, *where, count, wide or NATIVE[dtype.name], op.upper())
        casts = [s.function for s in steps if isinstance(s, Launch)]
        assert len(casts) == (2 if wide else 0) and all("cast" in name for name in casts)


@by_dtype
def test_what_is_moved_is_moved_as_bytes(dtype, monkeypatch):
    machine, group = Machine(monkeypatch), group_of(4, 0)
    nbytes = 24 * dtype.itemsize
    launched(machine, steps_of(ops._broadcast, dtype, group, root=2))
    assert launched(machine, steps_of(ops._all_gather, dtype, group)) == [
        ("broadcast", 64, 128, nbytes, "UINT8", 2), ("allGather", 64, 128, nbytes, "UINT8"),
    ]  # fmt: skip


def every_collective(group):
    """A function of (n, 3) elements."""

    def function(x):
        total = all_reduce(x * 2, "mean", group=group)
        rooted = reduce(x, 1, group=group)
        spread = broadcast(rooted + x, group.size - 1, group=group)
        part = reduce_scatter(spread, "mean", group=group)
        return total, all_gather(part, group=group), all_reduce(x, "max", group=group)

    return function


def tasks_of(function, *shapes, dtype=ta.float32):
    """The tasks of a function's program, and their plan."""
    compiled = Compiled(function)
    compiled(*(ta.zeros(shape, dtype=dtype, device=META) for shape in shapes))
    graph = compiled.graphs[-1]
    planned = plan(graph)
    return bound(planned).tasks, planned


def _spans(task):
    """The bytes that a task works on: how, in which buffer, from where to before where."""
    read = [x for x in task.inputs if type(x) is Place]
    for kind, places, operands in (("read", read, task.reads), ("write", task.outputs, task.makes)):
        for place, x in zip(places, operands, strict=True):
            low, high = ta.views.extent(ta.views.View(x.shape, x.strides, 0))
            size = x.dtype.itemsize
            yield kind, place[:2], place.offset + low * size, place.offset + high * size
    for place, nbytes in zip(task.scratch, task.plan.scratch, strict=True):
        yield "scratch", place[:2], place.offset, place.offset + nbytes


def run(machine, tasks):
    """Launches tasks as a program does; kernels are only written down. Returns for each task its entries in the log."""
    entries = []

    def address(x):
        kind = ("arena", "state", "constant", "draw", "number", "result").index(x.buffer)
        return (kind << 56) + (x.number << 40) + x.offset

    for number, task in enumerate(tasks):
        before = len(machine.log)
        places = [[address(x) if type(x) is Place else None for x in at]
                  for at in (task.inputs, task.outputs, task.scratch)]  # fmt: skip
        for step in task.plan.steps:
            if isinstance(step, LibraryCall) and step.name.startswith("nccl"):
                launched(machine, [step], places)
            else:
                machine.log.append(Entry("kernel", KERNELS, number))
        entries.append(range(before, len(machine.log)))
    return entries


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_give_nccl_the_same_calls_in_the_same_order(size, monkeypatch):
    values, calls = {}, []
    for rank in range(size):
        machine, group = Machine(monkeypatch), group_of(size, rank, values)
        tasks, _ = tasks_of(every_collective(group), (size, 3))
        run(machine, tasks)
        (communicator,) = machine.communicators
        assert communicator.made_of == (size, bytes(range(128)), rank)
        asked = [(entry.what, entry.stream) for entry in machine.log if entry.kind == "nccl"]
        assert len({stream for _, stream in asked} | {KERNELS}) == 2
        calls.append([(name, *numbers) for (name, _, _, *numbers), _ in asked])
        memsets = [entry.what for entry in machine.log if entry.kind == "memset"]
        assert [what[1:] for what in memsets] == ([] if rank == 1 else [(0, 12 * size)])
        begun = [operation for _, _, operation in group._control.begun]
        assert begun == ["NCCL's start", "all_reduce", "reduce", "broadcast", "reduce_scatter", "all_gather",
                         "all_reduce"]  # fmt: skip
    n, nbytes = 3 * size, 12 * size
    assert calls == [[
        ("allReduce", n, "FLOAT32", "AVG"), ("reduce", n, "FLOAT32", "SUM", 1),
        ("broadcast", nbytes, "UINT8", size - 1), ("reduceScatter", 3, "FLOAT32", "AVG"), ("allGather", 12, "UINT8"),
        ("allReduce", n, "FLOAT32", "MAX"),
    ]] * size  # fmt: skip


def library_calls(task, name):
    return [step for step in task.plan.steps if isinstance(step, LibraryCall) and step.name == name]


def check_order(machine, tasks, entries):
    """Who works on what a collective works on has run before, or waits; and nobody waits before the program says so.

    Returns how many kernels each collective may run beside.
    """
    clock = clocks(machine.log)

    def before(one, other):
        """Whether entry `one` of the log has run when `other` begins."""
        stream = machine.log[one].stream
        return clock[other].get(stream, 0) >= clock[one][stream]

    starts = {s.spec.ticket: i for i, t in enumerate(tasks) for s in library_calls(t, "nccl")}
    waits = [(i, starts[s.spec]) for i, t in enumerate(tasks) for s in library_calls(t, "nccl_wait")]
    beside = []
    for number, task in enumerate(tasks):
        if not library_calls(task, "nccl"):
            continue
        ended = min(i for i, start in waits if start >= number)  # collectives run one after the other
        (at,) = [i for i in entries[number] if machine.log[i].kind == "nccl"]
        mine, count = list(_spans(task)), 0
        for other, kernel in enumerate(tasks):
            kernels = [i for i in entries[other] if machine.log[i].kind == "kernel"]
            if other == number or not kernels:
                continue
            conflict = any(
                place == there and low < b and a < high and {how, what} != {"read"}
                for how, place, low, high in mine for what, there, a, b in _spans(kernel)
            )  # fmt: skip
            if conflict:
                assert all(before(i, at) if other < number else before(at, i) for i in kernels), (task, kernel)
            if number < other < ended:
                assert not any(before(at, i) for i in kernels), "kernels wait before they must"
                count += 1
        beside.append(count)
    return beside


def training(kind, group):
    config = GPT2Config(vocab_size=21, block_size=8, n_layer=3, n_head=1, n_embd=64)
    model = GPT2(config, dtype=ta.bfloat16, device=META)
    parallel = kind(model.parameter_groups(0.1), group, bucket=2**16)
    optimizer = optim.AdamW(parallel.groups, lr=1e-3)

    def step(tokens, targets):
        loss = model.loss(tokens, targets)
        loss.backward()
        parallel.reduce()
        norm = parallel.gradient_norm()
        optimizer.step()
        optimizer.zero_grad()
        parallel.gather()
        return parallel.mean(loss), norm

    return step


@pytest.mark.parametrize(("size", "kind"), thinned([*itertools.product(SIZES, [DataParallel, Zero])], 3))
def test_a_training_step_computes_while_its_gradients_travel(kind, size, monkeypatch):
    calls, values = [], {}
    for rank in range(size) if size < 4 else (0, size - 1):
        machine, group = Machine(monkeypatch), group_of(size, rank, values)
        tasks, _ = tasks_of(training(kind, group), (2, 8), (2, 8), dtype=ta.int64)
        beside = check_order(machine, tasks, run(machine, tasks))
        calls.append([(e.what[0], *e.what[3:]) for e in machine.log if e.kind == "nccl"])
        bucket = "all_reduce" if kind is DataParallel else "reduce_scatter"
        starts = [i for i, task in enumerate(tasks) if task.title == bucket and task.makes[0].dtype is ta.bfloat16]
        (last_of_backward,) = [i for i, task in enumerate(tasks) if task.title == "index_add"]
        early = [start for start in starts if start < last_of_backward]
        assert len(early) >= 4 and len(starts) - len(early) <= 2  # the embeddings', and that of biases and norms
        assert early[0] < last_of_backward - 40 and max(beside) > 40
    assert all(found == calls[0] for found in calls)


def test_a_collective_in_place_has_one_address_and_its_wait_copies_nothing(monkeypatch):
    machine, group = Machine(monkeypatch), group_of(2, 0)
    tasks, _ = tasks_of(lambda x: all_reduce(x * 2, group=group), (64,))
    check_order(machine, tasks, run(machine, tasks))
    assert [task.title for task in tasks] == ["multiply", "all_reduce", "wait"]
    ((_, source, target, *_),) = [entry.what for entry in machine.log if entry.kind == "nccl"]
    assert source == target


def test_a_result_wanted_elsewhere_is_copied_after_the_wait(monkeypatch):
    machine, group = Machine(monkeypatch), group_of(2, 0)
    tasks, _ = tasks_of(lambda x, y: ta.concat([y, all_reduce(x * 2, group=group)]), (3, 2), (5, 2))
    check_order(machine, tasks, run(machine, tasks))
    titles = [task.title for task in tasks]
    assert titles.index("wait") < len(titles) - 1 - titles[::-1].index("copy")


@pytest.mark.parametrize("dtype", [ta.float8_e5m2, ta.int16], ids=lambda d: d.name)
def test_what_is_widened_is_waited_for_before_it_is_narrowed(dtype, monkeypatch):
    machine, group = Machine(monkeypatch), group_of(2, 0)

    def function(x):
        total = all_reduce(x, group=group)
        return x.astype(ta.float32) * 2, total

    tasks, _ = tasks_of(function, (64,), dtype=dtype)
    run(machine, tasks)
    stream = next(entry.stream for entry in machine.log if entry.kind == "nccl")
    (task,) = [task for task in tasks if task.title == "all_reduce"]
    number = tasks.index(task)
    kinds = [(entry.kind, entry.stream) for entry in machine.log]
    first = kinds.index(("nccl", stream))
    assert machine.log[first - 3].what == machine.log[first + 3].what == number  # the casts
    assert kinds[first - 2 : first + 3] == [
        ("record", KERNELS), ("wait", stream), ("nccl", stream), ("record", stream), ("wait", KERNELS),
    ]  # fmt: skip


def test_an_empty_tensor_is_neither_sent_nor_waited_for(monkeypatch):
    machine, group = Machine(monkeypatch), group_of(2, 0)
    tasks, _ = tasks_of(lambda x: all_reduce(x, group=group), (0, 3))
    assert tasks == [] and run(machine, tasks) == []


def test_collectives_begin_in_the_order_in_which_they_were_traced():
    group = group_of(2, 0)

    def function(x, y):
        late = all_reduce(ta.exp(x @ x), group=group)
        early = all_reduce(y, "max", group=group)
        return late, early

    tasks, _ = tasks_of(function, (64, 64), (8,))
    begun = [step.spec.op for task in tasks for step in library_calls(task, "nccl")]
    assert begun == ["sum", "max"]


def test_a_lost_rank_ends_the_wait_for_an_event_and_the_collectives(monkeypatch):
    machine, group = Machine(monkeypatch), group_of(2, 0)
    event = machine.module.cupy.cuda.Event()
    event.synchronize = lambda: waited.append("driver")
    waited = []
    events.wait_for(event)
    launched(machine, steps_of(ops._broadcast, ta.float32, group, root=0))
    events.wait_for(event)
    assert waited == ["driver"]  # which would not notice a lost rank

    def lost(*_):
        raise RankError("rank 1 is lost")

    group._control.wait = lost
    with pytest.raises(RankError, match="rank 1"):
        events.wait_for(event)
    for _ in range(1000):
        if not machine.communicators[0].aborted:
            time.sleep(0.001)
    assert machine.communicators[0].aborted


def test_in_eager_mode_kernels_wait_at_once(monkeypatch):
    machine, group = Machine(monkeypatch), group_of(3, 0)
    for ticket in (None, 7):  # the interpreter of a graph runs what has a ticket
        params = {} if ticket is None else {"ticket": ticket}
        launched(machine, steps_of(ops._all_reduce, ta.float32, group, op="sum", **params))
    kinds = [(entry.kind, entry.stream == KERNELS) for entry in machine.log]
    assert kinds == [("record", True), ("wait", False), ("nccl", False), ("record", False), ("wait", True)] * 2
