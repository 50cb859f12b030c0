"""Programs lowered to CUDA launches without a GPU: do they read what the graph says, and stay within their memory?"""

import contextlib
import functools
import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

import tinyarr as ta
from models.gpt2 import GPT2
from models.gpt2 import Config as GPT2Config
from models.llama3 import Config as LlamaConfig
from models.llama3 import Llama3
from tests.backends.cuda.bound import bound
from tests.backends.cuda.place import on
from tests.backends.cuda.test_programs import MODELS as WIDER
from tests.backends.cuda.test_programs import training
from tests.compiler.memory.plan_checker import EMPTY, Follower, follow, positions
from tests.compiler.test_compile import REFUSED
from tests.compiler.trace import test_programs_with_state as with_state
from tests.samples import SAMPLES
from tests.test_primitives import operands
from tests.test_random_programs import programs as random_programs
from tests.tiers import at_most, thinned
from tinyarr import Device, Tensor, eager
from tinyarr.backends.cuda.libraries import cublaslt, cudnn
from tinyarr.backends.cuda.planning import compiler, plans
from tinyarr.backends.cuda.planning.registry import Launch, Report
from tinyarr.compiler import Compiled
from tinyarr.compiler.memory.layout import is_copy
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.passes.order import passes_within
from tinyarr.compiler.uses import is_call
from tinyarr.errors import TraceError
from tinyarr.ops.matmul import matmul_add
from tinyarr.program import FusedPair, Place, Read
from tinyarr.views import View, contiguous_strides

META = Device("meta", like="cuda:sm_90")
MODELS = {  # heads of 64, for which there is a kernel, and of 16, whose attention is composed of others
    "gpt2": (GPT2, GPT2Config(vocab_size=21, block_size=8, n_layer=2, n_head=1, n_embd=64, dropout=0.1)),
    "gpt2 of small heads": (GPT2, GPT2Config(vocab_size=21, block_size=8, n_layer=1, n_head=2, n_embd=32)),
    "llama3": (Llama3, LlamaConfig(21, 8, 1, 2, 1, 128, 64)),
    "llama3 of small heads": (Llama3, LlamaConfig(21, 8, 2, 4, 2, 64, 32)),
}
KINDS = [ta.float32, ta.bfloat16]


class TaskFollower(Follower):
    """Follows the tasks of a lowered program, with a name for each element, as Follower does the steps of its plan."""

    def __init__(self, graph, planned):
        super().__init__(graph, planned)
        lowered = bound(planned)
        numbers = range(len(planned.steps))
        self.of_steps = iter([[task for task in lowered.tasks if task.step == number] for number in numbers])
        self.end = planned.arena + lowered.scratch
        self.sizes["arena", 0] = self.end
        self.scratch = []  # of the step before

    def step(self, node, step, title):
        tasks = next(self.of_steps)
        self.check_scratch(tasks, title)
        for low, high in self.scratch:
            self.bytes_of(("arena", 0))[low:high] = EMPTY
        self.scratch = self.copied_to(tasks)
        parts = [] if node is None else [node.first, node.last] if isinstance(node, FusedPair) else [node]
        arranges = bool(parts) and parts[0].call.primitive.parts is not None
        moves = not parts or is_copy(parts[0]) or arranges
        work = [task for task in tasks if not moves and task.title != "copy"]
        for task in tasks:
            at = f"{title}: {task}"
            self.check_places(task, at)
            if arranges and task.title == "full":
                ((buffer, where, dtype),) = self.written(task)
                self.put(buffer, where, dtype, np.zeros(where.shape, np.int64))
            elif task not in work:
                ((x,), (y,)) = self.read(task), self.written(task)
                self.put(*y, self.load_at(*x).reshape(-1))
            elif len(parts) == len(work):
                self.kernel(parts[work.index(task)], task, at)
            else:
                self.joined_kernel(node, task, at)
        if node is not None and (arranges or not tasks):
            for value in node.outputs:
                there, expected = self.load(value, self.layout(value)).reshape(-1), self.names[value]
                if is_call(node, matmul_add):  # a product without terms leaves what it would be added to
                    (c, *_) = node.inputs
                    expected = self.names[c.value][positions(c.view)].reshape(-1)
                assert np.array_equal(there, expected), f"{title}: nothing makes it"
                self.store(value, self.layout(value), self.names[value])

    def copied_to(self, tasks):
        """The stretches of scratch that operands of a step's tasks lie in."""
        ends = {}
        for buffer, at, dtype in (x for task in tasks for x in (*self.read(task), *self.written(task))):
            if buffer == ("arena", 0) and at.size and at.min() >= self.plan.arena:
                ends[at.min()] = max(ends.get(at.min(), 0), at.max() + dtype.itemsize)
        return sorted(ends.items())

    def check_scratch(self, tasks, title):
        """What operands are copied into lies apart, also from where the step's kernels work."""
        copies = self.copied_to(tasks)
        assert all(b <= c for (_, b), (c, _) in itertools.pairwise(copies)), title
        own = [(x.offset, x.offset + n) for task in tasks for x, n in zip(task.scratch, task.plan.scratch) if n]
        assert all(b <= low or high <= a for a, b in own for low, high in copies), title
        kept = [(place.offset, place.offset + n) for place, n in self.plan.scratch.values()]
        for a, b in [*own, *copies]:
            assert (self.plan.arena <= a and b <= self.end) or any(low <= a and b <= high for low, high in kept), title

    def check_places(self, task, title):
        """What a task works on lies in a value's memory or in scratch, and its scratch apart from all of it."""
        spans = [("scratch", place.offset, place.offset + n) for place, n in zip(task.scratch, task.plan.scratch) if n]
        for buffer, at, dtype in (*self.read(task), *self.written(task)):
            if buffer[0] == "arena" and at.size:
                spans.append(("operand", at.min(), at.max() + dtype.itemsize))
        for kind, low, high in spans:
            assert low >= 0 and high <= (self.end if low >= self.plan.arena else self.plan.arena), title
            others = [s for s in spans if s != (kind, low, high)]
            assert kind == "operand" or all(high <= b or c <= low for _, b, c in others), title
        places = [x for x in task.inputs + task.outputs if type(x) is Place]
        operands = zip(task.reads + task.makes, places, strict=True)
        assert all(place.offset % 16 == 0 for operand, place in operands if operand.aligned), title
        for place, n in zip(task.scratch, task.plan.scratch):
            self.bytes_of(("arena", 0))[place.offset : place.offset + n] = EMPTY

    def read(self, task):
        return list(map(self.located, [x for x in task.inputs if type(x) is Place], task.reads))

    def written(self, task):
        return list(map(self.located, task.outputs, task.makes))

    @staticmethod
    def located(place, operand):
        """The buffer, the first byte of each element of an operand, and its dtype."""
        view = View(operand.shape, operand.strides, 0)
        return (place.buffer, place.number), place.offset + positions(view) * operand.dtype.itemsize, operand.dtype

    def load_at(self, buffer, at, dtype):
        return self.bytes_of(buffer)[at]

    def expect(self, asked, found, title):
        """asked: Reads of the graph."""
        for x, y in zip(asked, found, strict=True):
            expected = self.names[x.value][positions(x.view)]
            assert np.array_equal(self.load_at(*y).reshape(-1), expected.reshape(-1)), title

    def kernel(self, node, task, title):
        self.expect([x for x in node.inputs if isinstance(x, Read)], self.read(task), title)
        self.make(node.outputs, task)
        self.check_layouts(node.call, task, title)

    def joined_kernel(self, group, task, title):
        """One kernel for two nodes: it reads what they both do, but what is between."""
        first, last = group.first, group.last
        others = [x for x in last.inputs[1:] if isinstance(x, Read)]
        self.expect(others + [x for x in first.inputs if isinstance(x, Read)], self.read(task), title)
        self.make((*last.outputs, *(v for v in first.outputs if v in group.outputs)), task)
        self.check_layouts(last.call, task, title)

    def check_layouts(self, call, task, title):
        """A call's operands, which come first among those of a task, lie as its kernel takes and makes them."""
        layouts, reads = plans.layouts(call), iter(task.reads)
        inputs = [(x, next(reads)) if type(x) is Place else None for x in task.inputs]
        wanted = [*zip(inputs, layouts(call) if layouts else ())]
        wanted += zip(zip(task.outputs, task.makes), plans.out_layouts(call))
        for place, x, layout in [(*pair, layout) for pair, layout in wanted if pair]:
            assert eager.suits(View(x.shape, x.strides, place.offset // x.dtype.itemsize), layout), title

    def make(self, values, task):
        """Stores names; one of a node's values that nobody reads has no place."""
        for value, y in zip(values, self.written(task), strict=True):
            self.put(*y, self.names[value])


@functools.cache
def graphs(name, dtype, library=False):
    """Training steps, with and without what passes do, and with all made twice that can be.

    library: whether cuBLASLt is there, as it is while this is called.
    """
    tokens = ta.zeros((2, 8), dtype=ta.int64, device=META)
    found = []
    for passes in ((), passes_within(None), passes_within(0)):
        step = Compiled(training(name, dtype, META, models=MODELS).function, passes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "compile: memory_budget")
            step(tokens, tokens)
        found += step.graphs
    return found


STEPS = [*itertools.product(MODELS, KINDS, [(False, 0), (False, 512), (True, 0)])]


@pytest.mark.parametrize(("name", "dtype", "options"), thinned(STEPS, 7))  # each model, dtype and option
def test_a_lowered_training_step_reads_what_it_should(name, dtype, options, monkeypatch):
    library, guard = options
    monkeypatch.setattr(cublaslt, "is_available", lambda: library)
    monkeypatch.setattr(cublaslt, "WORKSPACE", 1 << 10)  # a name for each byte of more would take long
    for graph in graphs(name, dtype, library):
        follow(graph, plan(graph, guard))
        TaskFollower(graph, plan(graph, guard)).run()


def test_what_a_kernel_works_in_may_be_where_values_are_at_other_steps(monkeypatch):
    monkeypatch.setattr("tinyarr.compiler.memory.plan.MUCH_SCRATCH", 1)
    for graph in graphs("gpt2", ta.float32):
        planned = plan(graph)
        assert bound(planned).scratch < bound(replace(planned, scratch={})).scratch
        follow(graph, planned)
        TaskFollower(graph, planned).run()


def follow_on_meta(function, arguments):
    """Follows what a function of arguments() is lowered to, with and without what passes do."""
    with ta.use_device(META), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compile: memory_budget")
        for passes in ((), passes_within(None), passes_within(0)):
            compiled = Compiled(function, passes)
            compiled(*arguments())
            for graph in compiled.graphs:
                TaskFollower(graph, plan(graph)).run()


def with_states():
    x = ta.ones((with_state.N, with_state.N), dtype=ta.float64)
    return x, {name: ta.ones_like(x) for name in with_state.NAMES}


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in REFUSED])
@pytest.mark.property
def test_every_operation_is_lowered_to_what_reads_what_it_should(name):
    sample = SAMPLES[name]

    @at_most(3, first=1, phases=[Phase.generate])
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        inputs = operands(data.draw, case, dtype)
        follow_on_meta(lambda *x: sample.function(*x, **case.params), lambda: [on(META, x) for x in inputs])

    check()


@at_most(25, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(random_programs())
def test_lowered_random_programs_and_their_gradients_read_what_they_should(program):
    with_gradients = program.with_gradients()
    with ta.use_device(META):
        with_gradients(*map(Tensor, program.inputs))  # so that what is kept is there
    with contextlib.suppress(TraceError):  # of indices that are NumPy arrays
        follow_on_meta(with_gradients, lambda: map(Tensor, program.inputs))


@at_most(25, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(with_state.programs)
def test_lowered_programs_with_state_read_what_they_should(steps):
    follow_on_meta(functools.partial(with_state.run, steps), with_states)


@pytest.mark.parametrize("function", with_state.SPECIAL, ids=lambda f: f.__name__)
def test_what_reads_a_value_in_an_unusual_way_is_lowered_so(function):
    follow_on_meta(function, with_states)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", WIDER)
def test_every_launch_of_a_training_step_compiles_without_a_gpu(name, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    step, tokens = training(name, dtype, META), ta.zeros((4, 32), dtype=ta.int64, device=META)
    step(tokens, tokens)
    (graph,) = step.graphs
    launches = [s for task in bound(plan(graph)).tasks for s in task.plan.steps if isinstance(s, Launch)]
    for source, function in {launch.source: launch.function for launch in launches}.items():
        assert function.encode() in compiler.compile_source(source, "sm_90")


def test_what_a_kernel_reports_names_the_line_that_wrote_it():
    with ta.use_device(META):
        compiled = ta.compile(lambda x, i: ta.take(x, i, axis=0))
        compiled(ta.zeros((4, 3)), ta.zeros((2,), dtype=ta.int64))
    graph = compiled.graphs[0]
    launches = [step for task in bound(plan(graph)).tasks for step in task.plan.steps]
    (report,) = [a for launch in launches for a in launch.arguments if isinstance(a, Report)]
    message = report.message.format(value=7, position="1")
    assert message.startswith("take: indices[1] is 7, the axis has size 4") and "test_lowering.py:" in message


def lowered_on_meta(function, *inputs):
    """The tasks of a function, and the names of what its graph calls; inputs are shapes of bfloat16, or tensors."""
    with ta.use_device(META):
        compiled = ta.compile(function)
        compiled(*(ta.zeros(x, dtype=ta.bfloat16) if isinstance(x, tuple) else x for x in inputs))
    graph = compiled.graphs[0]
    return bound(plan(graph)).tasks, [node.call.primitive.name for node in graph.nodes]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w, c: (x @ w + c).T @ x, ((64, 64), (64, 64), (64, 1))),  # c is no row
        (lambda x, w, c: (x @ w + c) @ w, ((1, 64), (64, 64), (64, 1))),  # nor is x @ w all of the sum
        (lambda x, w: (h := x @ w) + h, ((1, 64), (64, 64))),
    ],
    ids=["column", "broadcast product", "twice"],
)
def test_what_is_added_to_a_product_is_a_bias_only_along_its_rows(function, shapes, monkeypatch):
    monkeypatch.setattr(cublaslt, "is_available", lambda: True)
    assert "matmul_bias" not in lowered_on_meta(function, *shapes)[1]


def test_a_bias_along_rows_is_added_by_the_product(monkeypatch):
    monkeypatch.setattr(cublaslt, "is_available", lambda: True)
    assert "matmul_bias" in lowered_on_meta(lambda x, w, b: (x @ w + b).T @ x, (64, 64), (64, 64), (64,))[1]


def test_a_kernel_writes_no_more_than_single_elements_at_a_misaligned_address(monkeypatch):
    monkeypatch.setattr(cublaslt, "is_available", lambda: True)
    with ta.use_device(META):
        rows = ta.zeros((2,), dtype=ta.int64)
    for function, shapes in (
        (lambda c, x, w, b: ta.concat([c, (x @ w + b).reshape((-1,))]), ((3,), (8, 8), (8, 8), (8,))),
        (lambda c, x: ta.concat([c, ta.take(x, rows, axis=0).reshape((-1,))]), ((3,), (8, 8))),
    ):
        tasks, _ = lowered_on_meta(function, *shapes)
        made = [y for task in tasks if task.title in ("matmul_bias", "take") for y in task.makes]
        assert made and all(y.aligned for y in made)


def test_our_own_attention_reads_and_writes_its_results_in_rows(monkeypatch):
    monkeypatch.setattr(cudnn, "is_available", lambda: False)
    step, tokens = training("gpt2", ta.bfloat16, META), ta.zeros((4, 32), dtype=ta.int64, device=META)
    step(tokens, tokens)
    tasks = bound(plan(step.graphs[0])).tasks
    attention = [task for task in tasks if task.title.startswith("scaled_dot_product_attention")]
    assert len(attention) == 4
    for task in attention:
        assert all(x.strides == contiguous_strides(x.shape) for x in (*task.makes, *task.reads[4:]))
