"""Recurrent networks beside their equations in NumPy; tests/nn/test_torch_parity.py compares them with torch's."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.samples.gates import gru, lstm
from tests.tiers import at_most, slow
from tinyarr import Tensor, nn
from tinyarr.errors import ArgumentError, ShapeError
from tinyarr.testing import gradcheck

F64 = {"dtype": ta.float64, "generator": ta.Generator(0)}


def plain(x, h, state):
    return (np.tanh(x + h),)


def gated(x, h, state):
    return (gru(*np.split(x, 3, -1), *np.split(h, 3, -1), state[0]),)


def long(x, h, state):
    return lstm(*np.split(x + h, 4, -1), state[1])


# Outputs and cells are at most a few units, made by some ten roundings a step in at most six steps.
CLOSE = {"rtol": 1e-11, "atol": 1e-13}
KINDS = {"RNN": (plain, 1), "GRU": (gated, 1), "LSTM": (long, 2)}  # name: (a step in NumPy, tensors of state)


def told(state):
    return tuple(map(Tensor, state)) if len(state) > 1 else Tensor(state[0])


def flat(results):
    return [t for r in results for t in flat(r)] if isinstance(results, tuple) else [results]


def reference(module, step, x, state):
    """The outputs of x (T, B, I) and the last states, layer by layer and step by step."""
    numbers = {name: p.numpy() for name, p in module.named_parameters()}
    ends = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in module.directions:
            def weight(name, suffix=f"_l{layer}{direction}"):
                return numbers.get(name + suffix, np.zeros(1))

            now, found = tuple(s[len(ends)] for s in state), []
            for row in x[::-1] if direction else x:
                from_input = row @ weight("weight_ih").T + weight("bias_ih")
                now = step(from_input, now[0] @ weight("weight_hh").T + weight("bias_hh"), now)
                found.append(now[0])
            outputs.append(np.stack(found[::-1] if direction else found))
            ends.append(now)
        x = np.concatenate(outputs, axis=-1)
    return x, *map(np.stack, zip(*ends))


@given(
    st.sampled_from(list(KINDS)), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 2), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
@at_most(60, deadline=None)
def test_a_sequence_is_its_steps_one_after_the_other(kind, T, B, inputs, H, layers, bias, both, batch_first, seed):
    step, states = KINDS[kind]
    rng = np.random.default_rng(seed)
    module = getattr(nn, kind)(inputs, H, layers, bias=bias, batch_first=batch_first, bidirectional=both, **F64)
    x, state = rng.normal(size=(T, B, inputs)), rng.normal(size=(states, layers * (1 + both), B, H))
    expected = reference(module, step, x, state)
    given_ = Tensor(x.swapaxes(0, 1) if batch_first else x)
    outputs, *ends = (t.numpy() for t in flat(module(given_, told(state))))
    outputs = outputs.swapaxes(0, 1) if batch_first else outputs
    for t, e in zip((outputs, *ends), expected, strict=True):
        np.testing.assert_allclose(t, e, **CLOSE)
    alone = flat(module(Tensor(x[:, 0]), told(state[:, :, 0])))  # a sequence without a batch
    for t, e in zip(alone, expected):
        np.testing.assert_allclose(t.numpy(), e[:, 0], **CLOSE)
    begun = [t.tolist() for t in flat(module(given_))]
    assert begun == [t.tolist() for t in flat(module(given_, told(0 * state)))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_a_step_of_its_layer(kind):
    layer, cell = getattr(nn, kind)(3, 4, **F64), getattr(nn, f"{kind}Cell")(3, 4, **F64)
    cell.load_state_dict({name: layer.state_dict()[f"{name}_l0"] for name in cell.state_dict()})
    x = ta.randn(5, 2, 3, **F64)
    outputs, end = layer(x)
    state = None
    for row, output in zip(x, outputs):
        state = cell(row, state)
        np.testing.assert_allclose(flat(state)[0].numpy(), output.numpy(), **CLOSE)
    for s, e in zip(flat(state), flat(end)):
        np.testing.assert_allclose(s.numpy(), e[0].numpy(), **CLOSE)
    assert flat(cell(x[0, 0]))[0].shape == (4,)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    module = getattr(nn, kind)(2, 3, 2, bidirectional=True, **F64)
    x = ta.randn(3, 2, 2, **F64)
    assert gradcheck(lambda x: tuple(flat(module(x))), x)


@pytest.mark.parametrize("kind", ["GRU", slow("RNN"), slow("LSTM")])
def test_a_compiled_step_trains_as_an_eager_one(kind):
    modules = [getattr(nn, kind)(2, 3, dtype=ta.float64, generator=ta.Generator(1)) for _ in range(2)]

    def stepping(module):
        optimizer = ta.optim.SGD(module.parameters(), lr=0.1)

        def step(x):
            loss = (module(x)[0] ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return step

    eager, compiled = stepping(modules[0]), ta.compile(stepping(modules[1]))
    for seed in range(3):
        x = ta.randn(3, 2, 2, generator=ta.Generator(seed), dtype=ta.float64)
        assert compiled(x).item() == pytest.approx(eager(x).item(), rel=1e-11)


def test_outputs_between_layers_are_dropped_in_training_alone():
    module = nn.GRU(3, 50, 2, dropout=0.5, **F64)
    x = ta.randn(2, 4, 3, **F64)
    first, second = (module(x)[0].numpy() for _ in range(2))
    assert not np.array_equal(first, second)
    module.eval()
    first, second = (module(x)[0].numpy() for _ in range(2))
    assert np.array_equal(first, second)
    one = nn.GRU(3, 4, dropout=0.9, **F64)  # the outputs of the last layer are never dropped
    assert one(x)[0].tolist() == one.eval()(x)[0].tolist()


def test_a_relu_network_and_a_copy_of_any():
    ta.manual_seed(0)  # of which some units are below 0
    module = nn.RNN(3, 4, nonlinearity="relu", **F64)
    x = ta.randn(2, 4, 3, **F64)
    outputs = module(x)[0]
    assert outputs.min().item() == 0 and outputs.max().item() > 0
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert again(x)[0].tolist() == outputs.tolist()
    assert nn.RNNCell(3, 4, nonlinearity="relu", **F64)(x[0]).min().item() == 0


def test_initial_values_are_uniform_as_the_size_of_the_state_says():
    module = nn.LSTM(7, 16, 2, bidirectional=True, **F64)
    assert module.weight_ih_l1_reverse.shape == (64, 32) and module.bias_hh_l0.shape == (64,)
    values = np.concatenate([p.numpy().ravel() for p in module.parameters()])
    assert np.abs(values).max() <= 0.25 and abs(values.std() - 0.25 / 3**0.5) <= 5 * 0.25 / len(values) ** 0.5
    assert not any("bias" in name for name, _ in nn.GRU(2, 3, bias=False).named_parameters())


x = ta.zeros(5, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.LSTM(4, 3)(x), ShapeError, r"^LSTM: x has shape \(5, 2, 3\).*: its last axis must be 4"),
        (lambda: nn.GRU(3, 4)(x[:0]), ShapeError, r"^GRU: x has shape \(0, 2, 3\).*: it must have 2 or 3 axes"),
        (lambda: nn.GRU(3, 4)(x[0, 0]), ShapeError, "^GRU: .* it must have 2 or 3 axes and a step"),
        (lambda: nn.GRU(3, 4)(x, x), ShapeError, r"^GRU: the state has shape .*: it must be 1 of shape \(1, 2, 4\)"),
        (lambda: nn.LSTM(3, 4)(x, ta.zeros(1, 2, 4)), ShapeError, r"^LSTM: .*: it must be 2 of shape \(1, 2, 4\)"),
        (lambda: nn.LSTMCell(3, 4)(x[0], (x[0], x[0])), ShapeError, r"^LSTMCell: .*: it must be 2 of shape \(2, 4\)"),
        (lambda: nn.GRUCell(2, 4)(x[0]), ShapeError, "^GRUCell: x has shape"),
        (lambda: nn.GRU(3, 4)(x, [1]), TypeError, "^GRU: state 0 is int"),
        (lambda: nn.GRUCell(2, 4)([1]), TypeError, "^GRUCell: x is list"),
        (lambda: nn.RNN(3, 4, nonlinearity="sin"), ArgumentError, "^RNN: nonlinearity is 'sin': use 'tanh' or 'relu'"),
        (lambda: nn.RNNCell(3, 0), ArgumentError, "^RNNCell: input_size is 3, hidden_size 0: both must be positive"),
        (lambda: nn.GRU(3, 4, 0), ArgumentError, "^GRU: num_layers is 0: it must be positive"),
    ],
)
def test_what_does_not_fit_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
