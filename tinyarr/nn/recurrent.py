"""Recurrent networks: RNN, GRU and LSTM, a step (a cell) or whole sequences, with PyTorch's names. Floor 5.

A sequence is a loop over time in Python, which a compiled step unrolls; the products with the inputs of all times are
one product before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import ArgumentError, ShapeError, describe
from ..ops.activation import relu
from ..ops.create import zeros
from ..ops.elementwise import tanh
from ..ops.matmul import linear
from ..ops.more.gates import gru_step, lstm_step
from ..ops.more.slices import unstack
from ..ops.random import dropout
from ..ops.shape import concat, split, stack, swapaxes
from ..random import Generator
from ..tensor import Tensor, require_tensors
from ..views import Shape
from . import new_parameters
from .module import Module

RecurrentState = tuple[Tensor, ...]  # the output h; of an LSTM also the cell c


class Recurrence(NamedTuple):
    """A kind of network: its numbers of gates and of tensors of state, and its step.

    step(x, h, state) gets what enters the gates from the input and from the last output, each (..., gates * H).
    """

    gates: int
    states: int
    step: Callable[[Tensor, Tensor, RecurrentState], RecurrentState]


def _tanh_step(x: Tensor, h: Tensor, state: RecurrentState) -> RecurrentState:
    return (tanh(x + h),)


def _relu_step(x: Tensor, h: Tensor, state: RecurrentState) -> RecurrentState:
    return (relu(x + h),)


def _gru_step(x: Tensor, h: Tensor, state: RecurrentState) -> RecurrentState:
    size = state[0].shape[-1]
    return (gru_step(*split(x, size, axis=-1), *split(h, size, axis=-1), state[0]),)


def _lstm_step(x: Tensor, h: Tensor, state: RecurrentState) -> RecurrentState:
    return lstm_step(*split(x + h, state[0].shape[-1], axis=-1), state[1])


PLAIN = {"tanh": Recurrence(1, 1, _tanh_step), "relu": Recurrence(1, 1, _relu_step)}
GATED = Recurrence(3, 1, _gru_step)
LONG = Recurrence(4, 2, _lstm_step)


def _plain(name: str, nonlinearity: str) -> Recurrence:
    if nonlinearity not in PLAIN:
        raise ArgumentError(f"{name}: nonlinearity is {nonlinearity!r}: use 'tanh' or 'relu'")
    return PLAIN[nonlinearity]


class _Recurrent(Module):
    """Base of cells and layers, which have weights for the input and for the last output, and a bias for each."""

    kind: Recurrence

    def __init__(self, input_size: int, hidden_size: int):
        if min(input_size, hidden_size) < 1:
            name = type(self).__name__
            raise ArgumentError(f"{name}: input_size is {input_size}, hidden_size {hidden_size}: both must be positive")
        self.input_size, self.hidden_size = input_size, hidden_size

    def add_weights(self, suffix: str, inputs: int, bias: bool, **place: Any) -> None:
        """Makes weight_ih, weight_hh, bias_ih and bias_hh, uniform on +-1/sqrt(hidden_size)."""
        rows, bound = self.kind.gates * self.hidden_size, 1 / math.sqrt(self.hidden_size)
        setattr(self, f"weight_ih{suffix}", new_parameters.uniform((rows, inputs), bound, **place))
        setattr(self, f"weight_hh{suffix}", new_parameters.uniform((rows, self.hidden_size), bound, **place))
        for name in ("bias_ih", "bias_hh"):
            setattr(self, name + suffix, new_parameters.uniform((rows,), bound, **place) if bias else None)

    def weights(self, suffix: str = "") -> list[Any]:
        return [getattr(self, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def begin(self, x: Tensor, given: Tensor | RecurrentState | None, lead: Shape) -> RecurrentState:
        """The state before the first step, (*lead, hidden_size) each, once it and x, (..., input_size), fit."""
        name, shape = type(self).__name__, (*lead, self.hidden_size)
        if x.shape[-1:] != (self.input_size,):
            raise ShapeError(f"{name}: {describe('x', x)}: its last axis must be {self.input_size}, input_size")
        if given is None:
            return (zeros(shape, dtype=x.dtype, device=x.device),) * self.kind.states
        state = (given,) if isinstance(given, Tensor) else tuple(given)
        require_tensors(name, **{f"state {i}": s for i, s in enumerate(state)})
        if [s.shape for s in state] != [shape] * self.kind.states:
            came = ", ".join(str(s.shape) for s in state)
            raise ShapeError(f"{name}: the state has shape {came}: it must be {self.kind.states} of shape {shape}")
        return state

    def told(self, state: RecurrentState) -> Any:
        """The state as callers know it: a tensor, or an LSTM's (h, c)."""
        return state if self.kind.states > 1 else state[0]


class _Cell(_Recurrent):
    """Base of cells: one step of x (..., input_size)."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *,
        generator: Generator | None = None, dtype=None, device=None,
    ):  # fmt: skip
        super().__init__(input_size, hidden_size)
        self.add_weights("", input_size, bias, generator=generator, dtype=dtype, device=device)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        require_tensors(type(self).__name__, x=x)
        state = self.begin(x, state, x.shape[:-1])
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights()
        return self.told(self.kind.step(linear(x, weight_ih, bias_ih), linear(state[0], weight_hh, bias_hh), state))


class RNNCell(_Cell):
    """One step of a plain recurrent network: h' = tanh(x W_ih.T + b_ih + h W_hh.T + b_hh), or relu.

    x (..., input_size), h (..., hidden_size) or None for zeros: h' (..., hidden_size).
    Source: Elman 1990, "Finding structure in time".
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", *,
        generator: Generator | None = None, dtype=None, device=None,
    ):  # fmt: skip
        self.kind = _plain("RNNCell", nonlinearity)
        super().__init__(input_size, hidden_size, bias, generator=generator, dtype=dtype, device=device)


class GRUCell(_Cell):
    """One step of a gated recurrent unit (see ops/more/gates.py), whose gates are in the order r, z, n.

    x (..., input_size), h (..., hidden_size) or None for zeros: h' (..., hidden_size).
    Source: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", appendix A.
    """

    kind = GATED


class LSTMCell(_Cell):
    """One step of a long short-term memory (see ops/more/gates.py), whose gates are in the order i, f, g, o.

    x (..., input_size), state (h, c), each (..., hidden_size), or None for zeros: (h', c').
    Source: Hochreiter & Schmidhuber 1997, "Long short-term memory", with the forget gate of Gers et al. 2000.
    """

    kind = LONG


class _Sequence(_Recurrent):
    """Base of layers: all steps of a sequence, in one or more layers, one or both directions."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, *,
        generator: Generator | None = None, dtype=None, device=None,
    ):  # fmt: skip
        super().__init__(input_size, hidden_size)
        if num_layers < 1:
            raise ArgumentError(f"{type(self).__name__}: num_layers is {num_layers}: it must be positive")
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.directions = ("", "_reverse")[: 1 + bidirectional]
        self.generator = generator
        for layer in range(num_layers):
            inputs = len(self.directions) * hidden_size if layer else input_size
            for direction in self.directions:
                suffix = f"_l{layer}{direction}"
                self.add_weights(suffix, inputs, bias, generator=generator, dtype=dtype, device=device)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        require_tensors(type(self).__name__, x=x)
        turned = self.batch_first and x.ndim == 3
        x = swapaxes(x, 0, 1) if turned else x
        if x.ndim not in (2, 3) or not len(x):
            raise ShapeError(f"{type(self).__name__}: {describe('x', x)}: it must have 2 or 3 axes and a step at least")
        given = self.begin(x, state, (self.num_layers * len(self.directions), *x.shape[1:-1]))
        starts = list(zip(*map(unstack, given), strict=True))
        ends: list[RecurrentState] = []
        for layer in range(self.num_layers):
            if layer:
                x = dropout(x, self.dropout, training=self.training, generator=self.generator)
            outputs = []
            for direction in self.directions:
                output, end = self._run(x, starts[len(ends)], f"_l{layer}{direction}", bool(direction))
                outputs.append(output)
                ends.append(end)
            x = concat(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        return swapaxes(x, 0, 1) if turned else x, self.told(tuple(map(stack, zip(*ends, strict=True))))

    def _run(self, x: Tensor, state: RecurrentState, suffix: str, backwards: bool) -> tuple[Tensor, RecurrentState]:
        """Outputs (T, ..., hidden_size) and the last state of one layer in one direction."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights(suffix)
        inputs, outputs = unstack(linear(x, weight_ih, bias_ih)), []
        for step in reversed(inputs) if backwards else inputs:
            state = self.kind.step(step, linear(state[0], weight_hh, bias_hh), state)
            outputs.append(state[0])
        return stack(outputs[::-1] if backwards else outputs), state


class RNN(_Sequence):
    """Plain recurrent network over a sequence, a step of which is RNNCell's; returns (outputs, last state).

    x is (T, B, input_size), with `batch_first` (B, T, input_size), without a batch (T, input_size). Outputs are those
    of the last layer, (T, B, hidden_size), in x's order. A state is (num_layers, B, hidden_size), zeros unless given.
    `dropout`: the share of outputs that is zeroed between layers in training. `bidirectional`: a second network goes
    from the last step to the first. The outputs of both are joined, and there are twice as many states.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, *,
        generator: Generator | None = None, dtype=None, device=None,
    ):  # fmt: skip
        self.kind = _plain("RNN", nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            generator=generator, dtype=dtype, device=device,
        )  # fmt: skip


class GRU(_Sequence):
    """Gated recurrent units over a sequence, a step of which is GRUCell's; else as RNN."""

    kind = GATED


class LSTM(_Sequence):
    """Long short-term memory over a sequence, a step of which is LSTMCell's; its state is (h, c), else as RNN.

    >>> import tinyarr
    >>> lstm = tinyarr.nn.LSTM(3, 5, num_layers=2)
    >>> outputs, (h, c) = lstm(tinyarr.zeros(7, 4, 3))
    >>> outputs.shape, h.shape, c.shape
    ((7, 4, 5), (2, 4, 5), (2, 4, 5))
    """

    kind = LONG
