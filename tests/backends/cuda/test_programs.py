"""What fusion makes of a training step, as CUDA kernels: planned and compiled without a GPU, run on one."""

import functools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import tinyarr as ta
from models.gpt2 import GPT2
from models.gpt2 import Config as GPT2Config
from models.llama3 import Config as LlamaConfig
from models.llama3 import Llama3
from tests.backends.cuda.bound import bound
from tests.backends.cuda.test_plans import ARCHITECTURES
from tinyarr import Device, Tensor
from tinyarr.backends.cuda.libraries import cublaslt, cudnn
from tinyarr.backends.cuda.planning import compiler, plans
from tinyarr.backends.cuda.planning.registry import Launch, Operand
from tinyarr.compiler import PASSES, Compiled, Interpreter
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.passes.epilogue import product_epilogues
from tinyarr.compiler.passes.order import SIMPLIFY, passes_within
from tinyarr.compiler.uses import is_elementwise
from tinyarr.program import FusedPair, Read
from tinyarr.tensor import result_tensor

MODELS = {
    "gpt2": (GPT2, GPT2Config(vocab_size=200, block_size=32, n_layer=2, n_head=2, n_embd=128, dropout=0.1)),
    "llama3": (Llama3, LlamaConfig(200, 32, 2, 4, 2, 128, 256)),
}


def training(name, dtype, device, models=MODELS):
    """A compiled step in which every kernel is one of fusion's, and its tokens."""
    make, config = models[name]
    model = make(config, dtype=dtype, device=device)
    return compiled_step(model, ta.optim.AdamW(model.parameters(), lr=1e-3))


def compiled_step(model, optimizer):
    def step(x, y):
        loss = model.loss(x, y)
        loss.backward()
        norm = ta.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss, norm

    return ta.compile(step)


@functools.cache
def steps_of(name, dtype):
    device = Device("meta", like="cuda:sm_90")
    step = training(name, dtype, device)
    tokens = ta.zeros((4, 32), dtype=ta.int64, device=device)
    step(tokens, tokens)
    return step.graphs[0].nodes


def operands(reads, kinds):
    return [
        Operand(x.view.shape, x.view.strides, x.value.dtype, x.view.offset % 16 == 0) if isinstance(x, Read)
        else Operand((), (), kind) for x, kind in zip(reads, kinds)
    ]  # fmt: skip


def plan_of(step):
    """The launches of a fused node or a group; None where its two nodes run apart."""
    if isinstance(step, FusedPair):
        first, last = step.first, step.last
        stored = [i for i, v in enumerate(first.outputs) if v in step.outputs]
        planner = plans.group_planner(first.call, last.call, stored)
        reads = [*operands(last.inputs, last.call.in_dtypes), *operands(first.inputs, first.call.in_dtypes)]
        made = [*last.outputs, *(first.outputs[i] for i in stored)]
    else:
        planner = plans.planner(step.call)
        reads, made = operands(step.inputs, step.call.in_dtypes), step.outputs
    dense = [Operand(v.shape, ta.views.contiguous_strides(v.shape), v.dtype) for v in made]
    return planner and planner(reads, dense)


@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_fused_has_a_plan_of_cuda_launches(name, dtype):
    groups = [step for step in steps_of(name, dtype) if isinstance(step, FusedPair)]
    joined = [plan_of(step) for step in groups]
    assert groups and all(found is not None for found in joined)
    for step, found in zip(groups, joined):
        alone = plans.planner(step.last.call)(*plans.dense_operands(step.last.call))
        assert len(found.steps) == len(alone.steps)  # none for the elementwise node


def test_a_step_of_gpt2_at_full_size_copies_nothing(monkeypatch):
    """Joined gradients and transposed ones, of weights, are made where they are wanted."""
    for library in (cublaslt, cudnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    monkeypatch.setattr(cudnn, "_graph", lambda spec: SimpleNamespace(workspace=0))  # only planned, never run
    device = Device("meta", like="cuda:sm_90")
    config = GPT2Config(n_layer=2, n_head=12, n_embd=768)
    step = training("full", ta.bfloat16, device, models={"full": (GPT2, config)})
    tokens = ta.zeros((16, 1024), dtype=ta.int64, device=device)
    step(tokens, tokens)
    lowered = bound(plan(step.graphs[0]))
    assert {task.title for task in lowered.tasks} >= {"matmul", "matmul_bias", "matmul_bias_gelu"}
    assert [str(task) for task in lowered.tasks if task.title in ("copy", "concat")] == []


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", MODELS)
def test_every_fused_kernel_compiles_for_cuda_without_a_gpu(name, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    sources = {}
    for step in steps_of(name, dtype):
        if isinstance(step, FusedPair) or is_elementwise(step):
            sources |= {launch.source: launch.function for launch in plan_of(step).steps if isinstance(launch, Launch)}
    assert len(sources) > 10
    for source, function in sources.items():
        for architecture in ARCHITECTURES:
            assert function.encode() in compiler.compile_source(source, architecture)


def losses(name, dtype, passes, build):
    """Loss and gradient norm of six steps, each on a batch of its own, and what made them."""
    rng = np.random.default_rng(0)
    batches = [[Tensor(rng.integers(0, 200, (4, 32)), device="cuda") for _ in range(2)] for _ in range(6)]
    ta.manual_seed(0)
    run = Compiled(training(name, dtype, "cuda").function, passes, build)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compile: memory_budget")
        return [[t.item() for t in run(x, y)] for x, y in batches], run


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_with_fused_kernels_gives_the_bits_of_one_without(name, dtype):
    unfused, _ = losses(name, dtype, (*SIMPLIFY, product_epilogues), Interpreter)
    assert losses(name, dtype, PASSES, Interpreter)[0] == unfused


@pytest.mark.cuda
@pytest.mark.parametrize("guarded", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", MODELS)
def test_a_program_gives_the_bits_of_its_kernels_one_by_one(name, dtype, guarded, monkeypatch):
    """Also while it copies batches that lie elsewhere than before, is captured, and replayed."""
    if guarded:
        monkeypatch.setenv("TINYARR_GUARD", "1")
    expected, planned = losses(name, dtype, PASSES, Interpreter)
    assert losses(name, dtype, PASSES, None)[0] == expected
    for budget in () if guarded else (planned.memory[0].arena * 3 // 4, 0):
        passes = passes_within(budget)
        assert losses(name, dtype, passes, None)[0] == losses(name, dtype, passes, Interpreter)[0]


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_a_memory_budget_changes_no_bit_of_training(name):
    expected, planned = losses(name, ta.float32, PASSES, None)
    for budget in (planned.memory[0].arena * 3 // 4, 0):
        assert losses(name, ta.float32, passes_within(budget), None)[0] == expected


@pytest.mark.cuda
def test_a_timed_call_is_a_call_and_gives_the_seconds_of_each_kernel():
    x = Tensor([0.0, 1.0, 2.0], device="cuda")

    @ta.compile
    def add_sum():
        x.assign(x + x.sum())

    eager, expected = x.to("cpu"), []
    for _ in range(6):
        eager = eager + eager.sum()
        expected.append(eager.tolist())  # whole numbers far below 2**24: exact
    found = []
    for _ in range(3):  # launched, captured, replayed
        add_sum()
        found.append(x.tolist())
    [program] = add_sum.programs
    with program.timed() as calls:
        for _ in range(2):
            add_sum()
            found.append(x.tolist())
    add_sum()
    found.append(x.tolist())
    assert found == expected
    assert [len(seconds) for seconds in calls] == [len(program.kernels)] * 2
    assert all(0 < taken < 1 for seconds in calls for taken in seconds)


@pytest.mark.cuda
@pytest.mark.parametrize("build", [None, Interpreter])
def test_gradients_of_batches_add_up_in_float32_where_they_are(build):
    rng = np.random.default_rng(0)
    weight = Tensor(rng.standard_normal((96, 64)), dtype=ta.bfloat16, device="cuda", requires_grad=True)
    weight.grad_dtype = ta.float32

    def micro_step(x, g):
        ta.linear(x, weight).backward(g)

    step = Compiled(micro_step, build=build)
    exact, terms, places = np.zeros((96, 64)), np.zeros((96, 64)), set()
    for _ in range(8):
        x, g = (Tensor(rng.standard_normal((128, n)), dtype=ta.bfloat16, device="cuda") for n in (64, 96))
        step(x, g)
        places.add(weight.grad.array.data.address)
        a, b = (t.astype(ta.float64).numpy() for t in (x, g))
        exact, terms = exact + b.T @ a, terms + np.abs(b.T) @ np.abs(a)
    assert [[n.call.primitive.name for n in graph.nodes] for graph in step.graphs] == [["matmul_wide"], ["matmul_add"]]
    assert len(places) == 1 and weight.grad.dtype is ta.float32
    # Each of the sums of 128 products, which float32 holds, and that of 8 such is cut to float32 at every addition.
    assert np.all(np.abs(weight.grad.numpy() - exact) <= (128 + 8) * 2.0**-23 * terms)


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_a_group_gives_the_bits_of_its_two_nodes_on_cuda(name):
    from tinyarr.backends.cuda.device.launch import bits  # which needs CuPy

    backend, rng = Device("cuda").backend, np.random.default_rng(0)
    for step in [s for s in steps_of(name, ta.float32) if isinstance(s, FusedPair)][:12]:
        first, last = step.first, step.last

        def made(x, kind):
            if not isinstance(x, Read):
                return x
            if not x.value.dtype.is_float:
                return ta.zeros(x.view.shape, dtype=x.value.dtype, device="cuda")
            size = 1 + sum((n - 1) * s for n, s in zip(x.view.shape, x.view.strides))
            flat = Tensor(rng.uniform(0.5, 1, size).astype(np.float32), dtype=x.value.dtype, device="cuda")
            a = flat.array
            return result_tensor(type(a)(a.storage, a.dtype, x.view.shape, x.view.strides, 0))

        reads = [made(x, k) for x, k in zip(first.inputs, first.call.in_dtypes)]
        others = [made(x, k) for x, k in zip(last.inputs[1:], last.call.in_dtypes[1:])]
        middle = ta.eager.run(first.call.primitive.call(
            Device("cuda"), (id(step), "first"), [getattr(x, "array", x) for x in reads], first.call.params,
        ), [getattr(x, "array", x) for x in reads], None)  # fmt: skip
        operand = result_tensor(middle[0]).reshape(last.call.in_shapes[0])
        arrays = [operand.array, *(x.array for x in others)]
        expected = ta.eager.run(
            last.call.primitive.call(Device("cuda"), (id(step), "last"), arrays, last.call.params), arrays, None
        )
        results = [ta.empty(v.shape, dtype=v.dtype, device="cuda") for v in last.outputs]
        stored = [i for i, v in enumerate(first.outputs) if v in step.outputs]
        kept = [ta.empty(first.outputs[i].shape, dtype=first.outputs[i].dtype, device="cuda") for i in stored]
        plan = plan_of(step)
        addresses = [operand, *others, *reads]
        backend.loader.bind(plan)(
            [x.array.data.address if isinstance(x, Tensor) else bits(x) for x in addresses],
            [x.array.data.address for x in (*results, *kept)],
        )
        for a, b in zip((*results, *kept), (*expected, *(middle[i] for i in stored))):
            np.testing.assert_array_equal(a.numpy(), result_tensor(b).numpy())


def test_the_end_of_a_training_step_is_a_few_launches():
    """GPT-2 124M has 148 parameters in 6 segments."""
    device = Device("meta", like="cuda:sm_90")
    model = GPT2(GPT2.sizes["124M"], dtype=ta.bfloat16, device=device)
    step = compiled_step(model, ta.optim.AdamW(model.parameters(), lr=1e-3))
    tokens = ta.zeros((64, 1024), dtype=ta.int64, device=device)
    step(tokens, tokens)
    tasks = bound(plan(step.graphs[0])).tasks
    updates = [task for task in tasks if "adamw" in task.title]
    assert 5 <= len(updates) <= 6 and all(len(task.plan.steps) == 1 for task in updates)
    assert sum(len(task.plan.steps) for task in tasks if "square" in task.title) <= 2 * 6
