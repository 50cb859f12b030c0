"""An exponential moving average of weights, which often evaluates better than the last ones. Floor 5."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import ArgumentError, describe
from ..ops.create import copy
from ..ops.elementwise import astype
from ..segments import part, runs
from ..tape import no_grad
from ..tensor import Tensor, result_tensor
from .optimizer import load_tensors, require_parameters


class ExponentialMovingAverage:
    """Averages of parameters: with each `update()`, average = decay average + (1 - decay) p, from their values now on.

    Averages of half types are float32. Make it after the optimizer, which moves the parameters: it averages whole
    segments. `update()` may be part of a compiled step.
    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; PyTorch's AveragedModel.

    >>> import tinyarr
    >>> p = tinyarr.zeros(2, requires_grad=True)
    >>> average = tinyarr.optim.ExponentialMovingAverage([p], decay=0.75)
    >>> with tinyarr.no_grad():
    ...     _ = p.assign(1.0)
    >>> average.update()
    >>> with average.swapped():
    ...     p.tolist()
    [0.25, 0.25]
    >>> p.tolist()
    [1.0, 1.0]
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.999):
        require_parameters("ExponentialMovingAverage", parameters)
        name = type(self).__name__
        if not 0 <= decay <= 1:
            raise ArgumentError(f"{name}: decay is {decay}: it must lie in [0, 1]")
        self.decay, self.parameters = decay, tuple(dict.fromkeys(parameters))
        for p in self.parameters:
            if not isinstance(p, Tensor) or not p.is_leaf or not p.dtype.is_float:
                came = describe("a parameter", p) if isinstance(p, Tensor) else f"a parameter is {type(p).__name__}"
                raise ArgumentError(f"{name}: {came}: it must be a leaf of a floating dtype, as in model.parameters()")
        self._averaged = tuple(_Averaged(run) for run in runs(self.parameters, lambda p: p))
        found = {p: a for averaged in self._averaged for p, a in zip(averaged.parameters, averaged.views, strict=True)}
        self.averages = tuple(found[p] for p in self.parameters)

    def update(self) -> None:
        """Moves the averages towards the parameters."""
        with no_grad():
            for averaged in self._averaged:
                for average, p in averaged.pairs():
                    average.assign(average + (1 - self.decay) * (p - average))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Has the averages in the parameters' place inside the block, as for an evaluation, and puts them back."""
        kept = [copy(p.detach()) for p in self.parameters]
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(kept)

    def _write(self, values: Iterable[Tensor]) -> None:
        with no_grad():
            for p, value in zip(self.parameters, values, strict=True):
                p.assign(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by the number of their parameter; they share memory."""
        return {str(i): average for i, average in enumerate(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Writes saved averages into these. Raises ArgumentError for others' names, ShapeError for others' shapes."""
        load_tensors(self.state_dict(), state)


class _Averaged:
    """Parameters that lie side by side, and their averages in the same layout."""

    def __init__(self, parameters: Sequence[Tensor]):
        first = parameters[0].array
        self.parameters, self.offsets = tuple(parameters), tuple(p.array.offset - first.offset for p in parameters)
        self.flat, is_alone = result_tensor(first), len(parameters) == 1
        if not is_alone:
            self.flat = part(self.flat, (self.offsets[-1] + parameters[-1].size,), 0)
        self.average = astype(self.flat, self.flat.dtype.compute)
        places = zip(self.parameters, self.offsets, strict=True)
        self.views = (self.average,) if is_alone else tuple(part(self.average, p.shape, offset) for p, offset in places)

    def pairs(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Averages and parameters: all as one, or one by one where a parameter has been moved since."""
        flat = self.flat.array
        places = zip(self.parameters, self.offsets, strict=True)
        stayed = all(p.array.storage is flat.storage and p.array.offset == flat.offset + at for p, at in places)
        return [(self.average, self.flat)] if stayed else zip(self.views, self.parameters, strict=True)
