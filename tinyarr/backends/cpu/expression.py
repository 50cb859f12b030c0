"""NumPy evaluation of scalar expressions, tile by tile.

A typed expression becomes a list of steps `ufunc(arguments, out=register)`. Large operands are walked in tiles that
stay in cache, so an expression of twenty operations reads and writes main memory once; the registers are scratch of
known size. Uniform values (0-d operands, Python scalars, constants) are computed once, before the first tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import DtypeError
from ...ops.typing import Typed
from .functions import FUNCTIONS, philox_scratch, random_bits

TILE = 32768  # elements; six float32 registers of this size fill 3/4 of a 1 MiB L2 cache

Specs = list[tuple[tuple[int, ...], Any]]


def compile_call(call: Any) -> tuple[Specs, Callable]:
    """(scratch, function(inputs, outputs, scratch)) that evaluates an Elementwise call."""
    typed: Typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    simple = _single_ufunc(typed)
    if simple is not None:
        return [], simple
    program = _Program(call.primitive.name, typed, call.in_shapes, call.out_shapes[0])
    return program.scratch(), program.run


def _single_ufunc(typed: Typed) -> Callable | None:
    """The direct call, where the expression is one ufunc of operands in their own dtype."""
    computed = [v for v in typed.values if v.op not in ("input", "constant")]
    scalar_casts = [v for v in computed if v.op == "cast" and typed.values[v.args[0]].uniform]
    steps = [v for v in computed if v not in scalar_casts]
    if len(steps) != 1 or len(typed.outputs) != 1 or typed.values[typed.outputs[0]] is not steps[0]:
        return None
    step, stored = steps[0], typed.dtypes[0]
    function = FUNCTIONS.get(step.op)
    if not isinstance(function, np.ufunc) or stored is not step.dtype or stored.compute is not stored:
        return None
    picks: list[tuple[int, Any]] = []
    for a in step.args:
        value = typed.values[a]
        convert = None
        if value.op == "cast":
            convert = value.dtype.numpy.type
            value = typed.values[value.args[0]]
        if value.op != "input" or (convert is not None and value.dtype.compute is not value.dtype):
            return None
        picks.append((value.value, convert))  # type: ignore[arg-type]
    if len(picks) == 2 and picks == [(0, None), (1, None)]:
        return lambda inputs, outputs: function(inputs[0], inputs[1], outputs[0])

    def run(inputs: Sequence[Any], outputs: Sequence[np.ndarray]) -> None:
        function(*[inputs[i] if c is None else _scalar(c, inputs[i]) for i, c in picks], outputs[0])

    return run


def _scalar(convert: Callable, x: Any) -> Any:
    """A Python scalar or 0-d array as a NumPy scalar."""
    try:
        return convert(x)
    except OverflowError as e:
        raise DtypeError(f"scalar operand: {e}: use astype on the tensor first") from None


class _Program:
    """The steps of one typed expression for operands of given shapes."""

    def __init__(self, name: str, typed: Typed, in_shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]):
        self.name = name
        self.typed = typed
        self.shape = shape
        self.size = math.prod(shape)
        values = typed.values
        self.steps = [i for i, v in enumerate(values) if not v.uniform and v.op != "input"]
        self.flat = not any(v.op == "index" for v in values) and all(s == shape or not s for s in in_shapes)
        last_use = {a: i for i in self.steps for a in values[i].args}
        last_input_read = max((i for a, i in last_use.items() if values[a].op == "input" and not values[a].uniform), default=-1)
        # An output is computed straight into its tile when no operand, whose memory it may share, is read afterwards.
        self.direct: dict[int, int] = {}
        for o, (n, stored) in enumerate(zip(typed.outputs, typed.dtypes, strict=True)):
            if n in self.steps and n >= last_input_read and stored is values[n].dtype and n not in self.direct:
                self.direct[n] = o
        self._assign_registers(last_use)

    def _assign_registers(self, last_use: dict[int, int]) -> None:
        """A register for every step that needs one; a register is free again after its value's last use."""
        values, outputs = self.typed.values, set(self.typed.outputs)
        self.register: dict[int, int] = {}
        self.sizes: list[int] = []
        free: dict[int, list[int]] = {}
        for i in self.steps:
            if i not in self.direct:
                itemsize = values[i].dtype.itemsize
                if free.get(itemsize):
                    self.register[i] = free[itemsize].pop()
                else:
                    self.register[i] = len(self.sizes)
                    self.sizes.append(itemsize)
            for a in set(values[i].args):
                if last_use.get(a) == i and a in self.register and a not in outputs:
                    free.setdefault(values[a].dtype.itemsize, []).append(self.register[a])

    def scratch(self) -> Specs:
        n = min(self.size, TILE)
        specs: Specs = [((n * size,), np.uint8) for size in self.sizes]
        if any(self.typed.values[i].op == "random_bits" for i in self.steps):
            specs += philox_scratch(n)
        return specs

    def run(self, inputs: Sequence[Any], outputs: Sequence[np.ndarray], scratch: Sequence[np.ndarray] = ()) -> None:
        values = self.typed.values
        known: list[Any] = [None] * len(values)
        for i, v in enumerate(values):
            if v.uniform:
                known[i] = self._uniform(v, known, inputs)
        if self.size == 0:
            return
        varying = [(i, v.value) for i, v in enumerate(values) if v.op == "input" and not v.uniform]
        if self.size <= TILE:
            tiles: Iterator = iter([(..., self.shape, 0, None)])
        elif self.flat and all(x.flags.c_contiguous for x in (*outputs, *(inputs[k] for _, k in varying))):
            inputs = [x.reshape(-1) if isinstance(x, np.ndarray) and x.ndim else x for x in inputs]
            outputs = [o.reshape(-1) for o in outputs]
            tiles = _flat_tiles(self.size)
        else:
            inputs = [np.broadcast_to(x, self.shape) if isinstance(x, np.ndarray) and x.ndim else x for x in inputs]
            tiles = _block_tiles(self.shape)
        shaped: dict[tuple[int, ...], list[np.ndarray | None]] = {}
        for where, shape, start, corner in tiles:
            for i, k in varying:
                known[i] = inputs[k][where]
            if shape not in shaped:
                shaped[shape] = self._shape_registers(shape, scratch)
            registers = shaped[shape]
            for i in self.steps:
                target = registers[i]
                if target is None:
                    target = outputs[self.direct[i]][where]
                known[i] = target
                self._step(i, known, target, scratch, start, corner)
            for o, n in enumerate(self.typed.outputs):
                if self.direct.get(n) != o:
                    np.copyto(outputs[o][where], known[n], casting="unsafe")

    def _shape_registers(self, shape: tuple[int, ...], scratch: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        values = self.typed.values
        return [
            np.ndarray(shape, values[i].dtype.numpy, scratch[self.register[i]]) if i in self.register else None
            for i in range(len(values))
        ]

    def _uniform(self, v: Any, known: list[Any], inputs: Sequence[Any]) -> Any:
        if v.op == "input":
            return inputs[v.value]
        if v.op == "constant":
            return v.dtype.numpy.type(v.value)
        if v.op == "cast":
            x = known[v.args[0]]
            if isinstance(x, bool | int | float):
                return _scalar(v.dtype.numpy.type, x)
            return np.asarray(x).astype(v.dtype.numpy)[()]
        result = np.empty((), v.dtype.numpy)
        self._apply(v, [known[a] for a in v.args], result)
        return result[()]

    def _step(self, i: int, known: list[Any], target: np.ndarray, scratch: Sequence[np.ndarray], start: int, corner: Any) -> None:
        v = self.typed.values[i]
        if v.op == "random_bits":
            key, counter = (known[a] for a in v.args)
            random_bits(int(key), int(counter), v.value, start, target, scratch[len(self.sizes) :])
        elif v.op == "index":
            axis = v.value % len(self.shape)
            first = corner[axis] if corner is not None else 0
            positions = np.arange(first, first + target.shape[axis])
            target[...] = positions.reshape([-1 if a == axis else 1 for a in range(target.ndim)])
        else:
            self._apply(v, [known[a] for a in v.args], target)

    def _apply(self, v: Any, arguments: list[Any], target: np.ndarray) -> None:
        if v.op == "cast":
            np.copyto(target, arguments[0], casting="unsafe")
        elif v.op == "bitcast":
            target[...] = np.asarray(arguments[0]).view(v.dtype.numpy)
        else:
            FUNCTIONS[v.op](*arguments, target)


def _flat_tiles(size: int) -> Iterator:
    for start in range(0, size, TILE):
        stop = min(start + TILE, size)
        yield slice(start, stop), (stop - start,), start, None


def _block_tiles(shape: tuple[int, ...]) -> Iterator:
    """Tiles of whole inner axes and a range of one axis: each is a run of consecutive elements in row-major order."""
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= TILE:
        axis -= 1
        inner *= shape[axis]
    axis -= 1  # the axis that is cut: everything before it is walked index by index
    rows = max(TILE // inner, 1)
    for outer in np.ndindex(shape[:axis]):
        first = 0
        for n, i in zip(shape, outer, strict=False):
            first = first * n + i
        for start in range(0, shape[axis], rows):
            stop = min(start + rows, shape[axis])
            where = (*(slice(i, i + 1) for i in outer), slice(start, stop))
            tile_shape = (1,) * axis + (stop - start,) + shape[axis + 1 :]
            corner = (*outer, start) + (0,) * (len(shape) - axis - 1)
            yield where, tile_shape, (first * shape[axis] + start) * inner, corner
