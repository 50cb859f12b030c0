"""Compiled functions against eager mode: the same bits, for every operation, random programs and training."""

import contextlib
import os

import numpy as np
import pytest
from hypothesis import Phase, assume, given
from hypothesis import strategies as st

import tinyarr as ta
from models.gpt2 import GPT2, Config
from models.llama3 import Config as LlamaConfig
from models.llama3 import Llama3
from tests.compiler.devices import CUDA, GUARDED, again, calls, exact, examples, own_kernels
from tests.samples import SAMPLES
from tests.test_primitives import in_tuple, operands
from tests.test_random_programs import programs
from tests.tiers import at_most
from tinyarr import Tensor
from tinyarr.compiler import PASSES, Compiled, Interpreter
from tinyarr.compiler.passes.order import passes_within
from tinyarr.errors import TinyarrError, TraceError

# The shape of the result is among the elements; the record makes an optimizer, which moves its parameters.
REFUSED = {"nonzero", *(name for name in SAMPLES if name.endswith("_update"))}
ATTENTION = ("scaled_dot_product_attention", "scaled_dot_product_attention_gradient")  # may be composed of products


def bits(x):
    return x.dtype.name, x.shape, ta.copy(x).numpy().tobytes() if isinstance(x, Tensor) else x


def outcome(function, *args):
    """The results' bits, or the error."""
    try:
        return [bits(x) for x in in_tuple(function(*args))]
    except TinyarrError as error:
        return type(error), str(error)


def budgets(run, inputs) -> list[int | None]:
    """None, half of what is then taken, and 0: that can't be kept says a warning, which other tests read."""
    compiled = Compiled(run, build=Interpreter)
    taken = compiled.memory[0].arena if isinstance(outcome(compiled, *inputs), list) else 0
    return [None, taken // 2, 0]


@pytest.mark.property
@pytest.mark.filterwarnings("ignore:compile. memory_budget")
@pytest.mark.parametrize("device", ["cpu", CUDA, GUARDED], indirect=True)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_operation_compiled_gives_the_bits_of_eager_mode(name, device):
    sample = SAMPLES[name]
    guarded = "TINYARR_GUARD" in os.environ

    @examples(6, 2, first=1)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        with ta.use_device("cpu"):
            inputs = operands(data.draw, case, dtype)

        def run(*x):
            return sample.function(*x, **case.params)

        assume(name not in REFUSED or all(x.size for x in inputs))  # of nothing, nothing is asked
        given = calls(inputs)
        ta.manual_seed(0)
        expected = [outcome(run, *x) for x in given]
        for budget in (None, 0) if name in REFUSED else [None] if guarded else budgets(run, given[0]):
            compiled = Compiled(run, passes_within(budget), exact())
            ta.manual_seed(0)
            for want, x in zip(expected, given):
                if name in REFUSED:
                    with pytest.raises(TraceError):
                        compiled(*x)
                else:
                    assert outcome(compiled, *x) == want

    with own_kernels() if device == "cuda" and name in ATTENTION else contextlib.nullcontext():
        check()


@at_most(100, first=15, phases=[Phase.generate])
@given(programs())
def test_a_random_program_and_its_gradients_compiled_give_the_bits_of_eager_mode(program):
    with_gradients = program.with_gradients()
    inputs = [Tensor(x) for x in program.inputs]
    compiled = Compiled(with_gradients, build=Interpreter)
    oracle = Compiled(with_gradients, passes=(), build=Interpreter)
    assume("comes from outside" not in str(outcome(compiled, *inputs)))  # indices that are NumPy arrays
    for x in (inputs, inputs, [again(x) for x in inputs]):
        assert outcome(compiled, *x) == outcome(oracle, *x) == outcome(with_gradients, *x)
    assert len(compiled.graphs) <= 2, compiled.explain()  # the program keeps what it has drawn


def gpt2():
    config = Config(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1)
    return GPT2(config, device=ta.default_device())


def llama3():
    return Llama3(LlamaConfig(65, 16, 2, 4, 2, 32, 64), device=ta.default_device())


@pytest.mark.parametrize("device", ["cpu", CUDA, GUARDED], indirect=True)
@pytest.mark.parametrize("make", [gpt2, llama3])
def test_training_compiled_gives_the_bits_of_eager_mode(make, device):
    rng = np.random.default_rng(0)
    batches = [Tensor(rng.integers(0, 65, (2, 17))) for _ in range(6)]
    found = []
    for passes in (None, (), PASSES):
        compiled = passes is not None
        ta.manual_seed(0)
        model = make()
        optimizer = ta.optim.AdamW(model.parameters(), lr=1e-2)

        def micro_step(tokens, model=model):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            return loss

        def update(model=model, optimizer=optimizer):
            norm = ta.optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return norm

        if compiled:
            micro_step, update = (Compiled(f, passes, exact()) for f in (micro_step, update))
        log = []
        for i, tokens in enumerate(batches):
            log.append(micro_step(tokens).item())
            if i % 3 == 2:
                optimizer.lr = 1e-3 * i
                log.append(update().item())
        found.append((log, [bits(p) for p in model.parameters()], [bits(t) for t in optimizer.state_dict().values()]))
        if compiled and passes is PASSES:
            assert len(micro_step.graphs) == 2 and len(update.graphs) == 1  # the first micro-step finds no gradients
    assert found[0] == found[1] == found[2]


def test_the_interpreter_writes_all_of_a_result_in_reverse():
    weights = ta.Tensor([[1.0, 10.0, 100.0], [3.0, 5.0, 7.0]])
    reverse = ta.grad(lambda x: (ta.flip(x, axis=1) * weights).sum())
    assert Compiled(reverse, build=Interpreter)(ta.ones((2, 3))).tolist() == [[100, 10, 1], [7, 5, 3]]
