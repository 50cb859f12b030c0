"""What is made twice to save memory, and when nodes run: no bit depends on it."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given

import tinyarr as ta
from models.gpt2 import GPT2, Config
from tests.compiler.devices import CUDA, GUARDED, OWN_KERNELS, calls, exact, examples
from tests.compiler.test_compile import budgets, gpt2, llama3, outcome
from tests.test_random_programs import programs
from tests.tiers import slow
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.passes.order import SIMPLIFY, passes_within
from tinyarr.compiler.passes.recompute import recompute
from tinyarr.errors import ArgumentError


def training(make, memory_budget, checkpoint=False, build=None):
    """Losses and weights after three steps, and what the program's plan takes."""
    ta.manual_seed(0)
    model = make()
    optimizer = ta.optim.AdamW(model.parameters(), lr=1e-2)

    def loss_of(tokens):
        return model.loss(tokens[:, :-1], tokens[:, 1:])

    def step(tokens):
        loss = ta.checkpoint(loss_of, tokens) if checkpoint else loss_of(tokens)
        loss.backward()
        ta.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = Compiled(step, passes_within(memory_budget), build)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [run(Tensor(rng.integers(0, 65, (32, 17)))).item() for _ in range(3)]
    return losses, [p.tolist() for p in model.parameters()], run.memory[0].arena


def deep():
    config = Config(vocab_size=65, block_size=16, n_layer=6, n_head=2, n_embd=32, dropout=0.1)
    return GPT2(config, device=ta.default_device())


QUICK = [(gpt2, "cpu", None), (llama3, "cpu", Interpreter)]  # the latter with NumPy, others in C
SLOW = [(make, "cpu", build) for make in (deep, gpt2, llama3) for build in (None, Interpreter)]
ON_CUDA = [pytest.param(make, "cuda", None, marks=pytest.mark.cuda) for make in (deep, gpt2, llama3)]


@pytest.mark.parametrize(
    ("make", "device", "build"),
    [*QUICK, *(slow(*case) for case in SLOW if case not in QUICK), *ON_CUDA],
    indirect=["device"],
)
def test_a_budget_takes_less_memory_and_changes_no_bit(make, device, build):
    *plain, most = training(make, None, build=build)
    *least, fewest = training(make, 0, build=build)
    *middle, between = training(make, (most + fewest) // 2, build=build)
    assert plain == least == middle
    assert fewest < most and between <= (most + fewest) // 2


def test_where_nothing_fits_what_takes_least_is_kept():
    kept = []

    def within_nothing(graph):
        with pytest.warns(UserWarning, match="recomputation reaches"):
            kept.append((graph, recompute(graph, 0, lambda changed: len(changed.nodes))))  # more nodes take more
        return graph

    def f(x):
        early, y = ta.exp(x), x @ x
        return ((y @ y) @ y * early).sum()  # held while products are made

    Compiled(f, [*SIMPLIFY, within_nothing], Interpreter)(Tensor(np.ones((64, 64))))
    ((before, after),) = kept
    assert after is before


def test_a_checkpoint_changes_no_bit_of_training():
    assert training(deep, None)[:2] == training(deep, None, checkpoint=True)[:2]


def block_by_block(x, checkpoint):
    """The gradient of six layers of three products, each layer a checkpoint or none."""

    def layer(x):
        for _ in range(3):
            x = ta.tanh(x @ x)
        return x

    def loss(x):
        for _ in range(6):
            x = ta.checkpoint(layer, x) if checkpoint else layer(x)
        return x.sum()

    return ta.grad(loss)(x)


def test_checkpoints_hold_one_layer_at_a_time():
    x, arenas = Tensor(np.linspace(-1, 1, 2500)).reshape((50, 50)), []
    for checkpoint in (False, True):
        run = ta.compile(lambda x, c=checkpoint: block_by_block(x, c))
        assert outcome(run, x) == outcome(ta.compile(lambda x: block_by_block(x, False)), x)
        arenas.append(run.memory[0].arena)
    assert arenas[1] < 0.6 * arenas[0]


def test_a_budget_that_cannot_be_kept_is_said_and_a_wrong_one_refused():
    x = Tensor(np.ones((64, 64), np.float32))
    with pytest.warns(UserWarning, match=r"memory_budget is 10 bytes, recomputation reaches \d.*make batches smaller"):
        assert ta.compile(lambda x: (x @ x) @ (x @ (x @ x)), memory_budget=10)(x)[0, 0].item() == 64**4
    for budget in (-1, 1.5, "1 GiB"):
        with pytest.raises(ArgumentError, match=r"memory_budget is .*number of bytes"):
            ta.compile(lambda x: x, memory_budget=budget)


@pytest.mark.property
@pytest.mark.filterwarnings("ignore:compile. memory_budget")
@pytest.mark.parametrize("device", ["cpu", CUDA, OWN_KERNELS, GUARDED], indirect=True)
def test_a_random_program_gives_its_bits_under_any_budget(device):
    @examples(15, 10)
    @given(programs())
    def check(program):
        with_gradients = program.with_gradients()
        with ta.use_device("cpu"):
            inputs = [Tensor(x) for x in program.inputs]
        given = calls(inputs)
        expected = [outcome(with_gradients, *x) for x in given]
        assume("comes from outside" not in str(outcome(Compiled(with_gradients, build=Interpreter), *given[0])))
        arenas = []
        for budget in budgets(with_gradients, given[0]):
            compiled = Compiled(with_gradients, passes_within(budget), exact())
            assert [outcome(compiled, *x) for x in given] == expected
            arenas += [memory.arena for memory in compiled.memory]
            assert arenas[-1:] <= arenas[:1]

    check()


def kernels(compiled):
    return [node.call.primitive.name for node in compiled.graphs[0].nodes]


def test_what_is_made_of_nothing_is_made_when_it_is_read():
    def function(x):
        ones = ta.ones((64, 64))
        return (x @ x @ x) @ ones

    compiled = ta.compile(function)
    compiled(ta.ones((64, 64)))
    assert kernels(compiled) == ["matmul", "matmul", "full", "matmul"]


def test_a_small_reduction_runs_behind_what_makes_its_operand():
    def function(x):
        a, b = x @ x, x.T @ x
        return a, b, (a * a).sum(), (b * b).sum()

    compiled = ta.compile(function)
    compiled(ta.ones((64, 64)))
    assert kernels(compiled) == ["matmul", "sum", "matmul", "sum"]
