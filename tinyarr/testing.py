"""Checks of gradients against finite differences, and hypothesis strategies, for users' operations too. Floor 5.

The strategies need hypothesis, which is imported when the first of them is called; the checks need NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .autograd import gradients
from .dtypes import ALL, FLOAT8, KINDS, Dtype, float64
from .errors import ArgumentError, DtypeError, TinyarrError
from .interchange import to_numpy
from .tensor import Tensor, result_tensor
from .transforms import vjp
from .views import Shape, View, contiguous_strides

EPSILON = float(np.finfo(np.float64).eps)
STEP = EPSILON ** (1 / 3)


class GradientMismatch(TinyarrError, AssertionError):
    """A gradient that finite differences contradict."""


def gradcheck(
    function: Callable, *inputs: Any, full: bool = False, eps: float = STEP, ulps: float = 32, seed: int = 0
) -> bool:
    """Compares the gradients of `function(*inputs)` with central finite differences; True, or raises GradientMismatch.

    function: returns a tensor or a tuple of them. inputs: float64 tensors, which are differentiated, and anything
    else, which is passed as it is. By default one backward pass from a random weighting of all outputs is compared
    along one random direction of each input: a wrong gradient escapes with probability 0, whatever the sizes. With
    `full`, every element of the Jacobian is compared. The error names the input, the element and the two values.

    The tolerance follows from the step h: `eps` for elements up to 1, and in proportion for larger ones. The quotient
    (f(x + h) - f(x - h)) / 2h errs in two ways. Truncation is h**2 f'''/6 to leading order; the same quotient with 2h
    is three times as far off that, so their distance bounds it (a distance above sqrt(eps) of the derivative is no
    truncation but a kink, and is not granted). Rounding: a stable f returns, within `ulps` units in the last place
    (those of 1 for smaller results), the exact result for inputs within `ulps` units of x, and so shifts the quotient
    by at most ulps * epsilon * (max(|f|, 1) + |f' x|) / h. The default step balances the two.
    Source: Higham 2002, "Accuracy and stability of numerical algorithms", 1.5 (mixed forward-backward error).
    """
    _Check("gradcheck", function, inputs, eps, ulps, seed).run(full)
    return True


def gradgradcheck(
    function: Callable, *inputs: Any, full: bool = False, eps: float = STEP, ulps: float = 32, seed: int = 0
) -> bool:
    """gradcheck of the gradients of `function(*inputs)`, as functions of the inputs and of the output gradients."""
    outer = _Check("gradgradcheck", function, inputs, eps, ulps, seed)
    cotangents = [Tensor(outer.rng.uniform(-1, 1, o.shape)) for o in outer.outputs]

    def gradient(*arguments):
        given, cotangents = arguments[: len(inputs)], arguments[len(inputs) :]
        _, pull = vjp(lambda *variables: outer.evaluate(given, variables), *(given[i] for i in outer.numbers))
        return pull(*cotangents)

    names = [f"input {i}" for i in range(len(inputs))] + [f"the gradient of output {i}" for i in range(len(cotangents))]
    _Check("gradgradcheck", gradient, (*inputs, *cotangents), eps, ulps, seed, names).run(full)
    return True


class _Check:
    """One comparison: the function seen as one of float64 arrays, its gradients, and its finite differences."""

    def __init__(self, operation, function, inputs, eps, ulps, seed, names: Sequence[str] | None = None):
        self.operation, self.function, self.inputs = operation, function, inputs
        self.step, self.precision = eps, ulps * EPSILON
        self.names = names or [f"input {i}" for i in range(len(inputs))]
        self.rng = np.random.default_rng(seed)
        self.numbers = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.dtype.is_float]
        if not self.numbers:
            raise ArgumentError(f"{operation}: no floating tensor among the {len(inputs)} inputs: pass one of float64")
        for i in self.numbers:
            self._require_float64(self.names[i], inputs[i])
        self.variables = [inputs[i].detach() for i in self.numbers]
        for x in self.variables:
            x.requires_grad = True
        self.outputs = self.evaluate(inputs, self.variables)
        for i, o in enumerate(self.outputs):
            self._require_float64(f"output {i}", o)
        self.values = self._flat(self.outputs)

    def _require_float64(self, name: str, x: Tensor) -> None:
        if x.dtype is not float64:
            raise DtypeError(f"{self.operation}: {name} has dtype {x.dtype.name}: finite differences need float64")

    def evaluate(self, inputs: Sequence[Any], variables: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The floating outputs, with `variables` in the place of the differentiated inputs."""
        arguments = list(inputs)
        for i, x in zip(self.numbers, variables, strict=True):
            arguments[i] = x
        result = self.function(*arguments)
        results = result if isinstance(result, tuple | list) else (result,)
        return tuple(o for o in results if isinstance(o, Tensor) and o.dtype.is_float)

    @staticmethod
    def _flat(outputs: Sequence[Tensor]) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(to_numpy(o).ravel() for o in outputs)])

    def run(self, full: bool) -> None:
        """Compares; each row of `weights` is one weighting of the outputs whose gradients are taken."""
        weights = np.eye(self.values.size) if full else self._signs((1, self.values.size))
        jacobians = [np.stack(rows) for rows in zip(*map(self._gradients, weights), strict=True)]
        for which, jacobian in enumerate(jacobians):
            x = to_numpy(self.variables[which])
            if full:
                for at, direction in _basis(x.shape):
                    bad, found = self._compare(which, x, direction, weights, jacobian)
                    if bad is not None:
                        output = self._output_element(bad)
                        raise GradientMismatch(f"{self._name(which)}, element {at}, {output}: {found}")
            else:
                bad, found = self._compare(which, x, self._signs(x.shape), weights, jacobian)
                if bad is not None:
                    element = self._first_element(which, x, weights, jacobian)
                    raise GradientMismatch(f"{self._name(which)}: along a random direction {found}; {element}")

    def _signs(self, shape: Shape) -> np.ndarray:
        """Random numbers of either sign, none near 0."""
        return self.rng.uniform(0.5, 1, shape) * self.rng.choice((-1.0, 1.0), shape)

    def _gradients(self, weights: np.ndarray) -> list[np.ndarray]:
        """The gradient of the weighted sum of the outputs with respect to each variable, by backward."""
        starts = np.cumsum([0, *(o.size for o in self.outputs)])
        seeds = [Tensor(weights[a : a + o.size].reshape(o.shape)) for a, o in zip(starts, self.outputs, strict=False)]
        pairs = [(o, s) for o, s in zip(self.outputs, seeds, strict=True) if o.requires_grad]
        found = gradients([o for o, _ in pairs], self.variables, [s for _, s in pairs], retain_graph=True)
        return [np.zeros(x.shape) if g is None else to_numpy(g) for x, g in zip(self.variables, found, strict=True)]

    def _compare(self, which: int, x: np.ndarray, direction: np.ndarray, weights: np.ndarray, jacobian: np.ndarray):
        """(row of the worst contradiction along a direction or None, what it says)."""
        direction = direction * np.maximum(np.abs(x), 1)
        near, far = (self._difference(which, x, direction, weights, step) for step in (self.step, 2 * self.step))
        flat = jacobian.reshape(len(weights), x.size)
        gradient = flat @ direction.ravel()
        size = np.abs(weights) @ np.maximum(np.abs(self.values), 1) + np.abs(flat) @ np.abs(x).ravel()
        smooth = self.step**0.5 * (np.abs(flat) @ np.abs(direction).ravel() + np.abs(near))
        tolerance = np.minimum(np.abs(near - far), smooth) + self.precision * size / self.step
        excess = np.abs(gradient - near) - tolerance
        excess[np.isnan(excess)] = np.inf
        if not (excess > 0).any():
            return None, ""
        bad = int(np.argmax(excess))
        found = f"the gradient is {gradient[bad]:.9g}, finite differences give {near[bad]:.9g}"
        found += f" (tolerance {tolerance[bad]:.2g})"
        if not abs(near[bad] - far[bad]) <= smooth[bad]:
            found += f", and {far[bad]:.9g} with twice the step: the function may have a kink there"
        return bad, found

    def _difference(self, which, x: np.ndarray, direction: np.ndarray, weights: np.ndarray, step: float) -> np.ndarray:
        ends = []
        for moved in (x + step * direction, x - step * direction):
            variables = [v.detach() for v in self.variables]
            variables[which] = Tensor(moved)
            ends.append(self._flat(self.evaluate(self.inputs, variables)))
        return weights @ ((ends[0] - ends[1]) / (2 * step))

    def _first_element(self, which: int, x: np.ndarray, weights: np.ndarray, jacobian: np.ndarray) -> str:
        """Returns the origin of a contradiction along a direction: the first element that shows it alone."""
        for at, direction in _basis(x.shape):
            bad, found = self._compare(which, x, direction, weights, jacobian)
            if bad is not None:
                return f"at element {at} {found}"
        return "no element shows it alone"

    def _name(self, which: int) -> str:
        i = self.numbers[which]
        return f"{self.operation}: {self.names[i]} of shape {self.inputs[i].shape}"

    def _output_element(self, number: int) -> str:
        for i, o in enumerate(self.outputs):
            if number < o.size:
                return f"output {i}, element {_at(number, o.shape)}"
            number -= o.size
        raise AssertionError(number)


def _at(number: int, shape: Shape) -> Shape:
    return tuple(int(i) for i in np.unravel_index(number, shape))


def _basis(shape: Shape) -> Iterator[tuple[Shape, np.ndarray]]:
    """Each element's index, and the array that is 1 there and 0 elsewhere."""
    for at in np.ndindex(shape):
        direction = np.zeros(shape)
        direction[at] = 1
        yield at, direction


def shapes(*, min_ndim: int = 0, max_ndim: int = 3, min_side: int = 0, max_side: int = 4):
    """Strategy: shapes, 0-d ones and ones with sizes 0 and 1 among them."""
    from hypothesis import strategies as st

    sizes = st.integers(min_side, max_side)
    return st.lists(sizes, min_size=min_ndim, max_size=max_ndim).map(tuple)


def broadcastable_shapes(count: int, *, max_ndim: int = 3, min_side: int = 0, max_side: int = 4):
    """Strategy: tuples of `count` shapes that broadcast together."""
    from hypothesis import strategies as st

    @st.composite
    def build(draw) -> tuple[Shape, ...]:
        whole = draw(shapes(max_ndim=max_ndim, min_side=min_side, max_side=max_side))

        def part() -> Shape:
            missing = draw(st.integers(0, len(whole)))
            return tuple(draw(st.sampled_from((n, 1))) for n in whole[missing:])

        return tuple(part() for _ in range(count))

    return build()


def dtypes(kinds: Sequence[str] = KINDS, *, float8: bool = True):
    """Strategy: dtypes of the given kinds ('bool', 'unsigned', 'signed', 'float'), float8 only if wanted."""
    from hypothesis import strategies as st

    return st.sampled_from([d for d in ALL if d.kind in kinds and (float8 or d not in FLOAT8)])


def tensors(shape: Any, dtype: Any = float64, *, values: Callable | None = None, repeats: bool = True):
    """Strategy: tensors of a shape and dtype (or of strategies for them), in memory of every layout.

    The axes come in any order, with gaps, backwards, and, if `repeats`, one broadcast with stride 0; the memory between
    the elements holds NaN. values(rng, shape): the elements, an np.ndarray drawn with the np.random.Generator; by
    default normal numbers, whole numbers below 100, or bools.
    """
    from hypothesis import strategies as st

    @st.composite
    def build(draw) -> Tensor:
        size: Shape = shape if isinstance(shape, tuple) else draw(shape)
        kind: Dtype = dtype if isinstance(dtype, Dtype) else draw(dtype)
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        content = (values or _plain_values(kind))(rng, size)
        order = draw(st.permutations(range(len(size))))
        steps = [draw(st.sampled_from((1, 2, -1, -2))) for _ in size]
        if repeats and size and draw(st.booleans()):
            steps[draw(st.integers(0, len(size) - 1))] = 0
        gap = draw(st.integers(0, 2))
        extents = [max(n, 1) * abs(step) if step else 1 for n, step in zip(size, steps, strict=True)]
        packed = dict(zip(order, contiguous_strides(tuple(extents[a] for a in order)), strict=True))
        strides = tuple(packed[a] * step for a, step in enumerate(steps))
        offset = gap + sum(-s * (n - 1) for s, n in zip(strides, size, strict=True) if s < 0 < n)
        memory = np.full(gap + int(np.prod(extents)), np.nan if kind.is_float else 0).astype(kind.numpy)
        lying = np.ndarray(size, kind.numpy, memory, offset * kind.itemsize, [s * kind.itemsize for s in strides])
        lying[...] = content
        return result_tensor(Tensor(memory).array.through(View(size, strides, offset)))

    return build()


def _plain_values(dtype: Dtype) -> Callable[[np.random.Generator, Shape], np.ndarray]:
    if dtype.is_float:
        return lambda rng, shape: rng.standard_normal(shape)
    low, high = {"bool": (0, 2), "unsigned": (0, 100), "signed": (-99, 100)}[dtype.kind]
    return lambda rng, shape: rng.integers(low, high, shape)
