"""NumPy evaluation of scalar expressions, tile by tile. Floor 1.

A typed expression becomes a list of steps `ufunc(arguments, out=register)`. Large operands are walked in tiles that
stay in cache, so an expression of twenty operations reads and writes main memory once; the registers are scratch of
known size. Uniform values (0-d operands, Python scalars, constants) are computed once, before the first tile.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import dtypes
from ...dtypes import Dtype
from ...ops.typing import COMPARISONS, Typed, TypedStep, dtype_constant, fits_int64
from .functions import APPROXIMATE, FUNCTIONS, philox_scratch, random_bits

TILE = 32768  # elements; six float32 registers of this size fill 3/4 of a 1 MiB L2 cache

Specs = list[tuple[tuple[int, ...], Any]]


# find(tiles, typed) returns what evaluates an expression faster than NumPy, with its bits, or None: C, for large draws.
faster: list[Callable[[Any, Typed], Callable | None]] = []


class Tile(NamedTuple):
    """Position of a tile (first element in row-major order, corner, number of axes), and scratch for random bits."""

    start: int
    corner: tuple[int, ...]
    ndim: int
    scratch: Sequence[np.ndarray]


def compile_call(call: Any) -> tuple[Specs, Callable, bool, str | None]:
    """Returns scratch, function(inputs, outputs, scratch), whether in place is safe, and the operands' layout."""
    typed: Typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    # Several outputs of which one is an operand itself could overwrite what another still has to copy.
    overwrites = len(typed.outputs) > 1 and any(typed.values[n].op == "input" for n in typed.outputs)
    approximate = any(v.op in APPROXIMATE and not v.uniform for v in typed.values)
    in_place, layout = not overwrites and not approximate, "forward" if approximate else None
    simple = _single_ufunc(typed)
    if simple is not None:
        return [], simple, in_place, layout
    program = Tiles(typed, call.in_shapes, call.out_shapes[0])
    run = next((run for find in faster if (run := find(program, typed)) is not None), program.run)
    return program.scratch(), run, in_place, layout


def _single_ufunc(typed: Typed) -> Callable | None:
    """The direct call, where the expression is one ufunc of operands in their own dtype."""
    values = typed.values
    operand_casts = [v for v in values if v.op == "cast" and v.uniform and values[v.args[0]].op == "input"]
    steps = [v for v in values if v.op != "input" and v not in operand_casts]
    if len(steps) != 1 or len(typed.outputs) != 1 or values[typed.outputs[0]] is not steps[0]:
        return None
    function = FUNCTIONS.get(steps[0].op)
    if not isinstance(function, np.ufunc) or typed.dtypes[0] is not steps[0].dtype:
        return None
    picks: list[tuple[Any, Callable | None]] = []
    for v in (values[a] for a in steps[0].args):
        if v.op == "cast":
            picks.append((values[v.args[0]].value, _uniform_cast(v.dtype)))
        else:
            picks.append((v.value, None))
    if picks == [(0, None), (1, None)]:
        return lambda inputs, outputs: function(inputs[0], inputs[1], out=outputs[0])

    def run(inputs: Sequence[Any], outputs: Sequence[np.ndarray]) -> None:
        function(*[inputs[i] if convert is None else convert(inputs[i]) for i, convert in picks], out=outputs[0])

    return run


def _uniform_cast(dtype: Dtype) -> Callable:
    """Converts a Python scalar or 0-d array to a NumPy scalar of `dtype`; an integer that does not fit is an error."""
    scalar_type = dtype.numpy.type

    def convert(x: Any) -> Any:
        if type(x) is int or (type(x) is float and dtype.is_float):
            return scalar_type(dtype_constant("scalar operand", x, dtype))
        return np.asarray(x).astype(scalar_type)[()]

    return convert


def function_of(v: TypedStep) -> Callable:
    """Returns the function of a value: it returns it where it is uniform, else its last argument takes it."""
    if v.uniform:
        if v.op == "cast":
            return _uniform_cast(v.dtype)
        compute = function_of(dataclasses.replace(v, uniform=False))

        def uniform(*arguments: Any) -> Any:
            result = np.empty((), v.dtype.numpy)
            compute(*arguments, out=result)
            return result[()]

        return uniform
    if v.op == "bitcast":
        return lambda x, out: np.copyto(out, np.asarray(x).view(v.dtype.numpy))
    if v.op == "index":
        return functools.partial(_index, v.value)
    if v.op == "random_bits":
        return functools.partial(_random_bits, v.value)
    return FUNCTIONS[v.op]


def _index(axis: int, tile: Tile, out: np.ndarray) -> None:
    axis %= tile.ndim
    first = tile.corner[axis]
    positions = np.arange(first, first + out.shape[axis])
    out[...] = positions.reshape([-1 if a == axis else 1 for a in range(tile.ndim)])


def _random_bits(stream: int, key: Any, counter: Any, tile: Tile, out: np.ndarray) -> None:
    random_bits(int(key), int(counter), stream, tile.start, out, tile.scratch)


class Tiles:
    """The steps of one typed expression for operands of given shapes."""

    def __init__(self, typed: Typed, in_shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]):
        values = typed.values
        self.typed = typed
        self.shape = shape
        self.size = math.prod(shape)
        # What is known before a run, by value number; the last entry is for the tile, which positional steps take.
        self.constants = [v.dtype.numpy.type(v.value) if v.op == "constant" else None for v in values] + [None]
        self.uniform_inputs = [(i, v.value) for i, v in enumerate(values) if v.op == "input" and v.uniform]
        self.inputs = [(i, v.value) for i, v in enumerate(values) if v.op == "input" and not v.uniform]
        used = {a for v in values if v.op != "cast" and v.op not in COMPARISONS for a in v.args} | {*typed.outputs}
        # The inputs that int64 must hold.
        self.integers = [k for i, k in self.uniform_inputs if values[i].dtype is dtypes.int64 and i in used]
        computed = [i for i, v in enumerate(values) if v.op not in ("input", "constant")]
        self.uniform = [(i, function_of(values[i]), values[i].args) for i in computed if values[i].uniform]
        self.order = self._ordered([i for i in computed if not values[i].uniform])
        self.steps = self._steps()
        # Without positions, operands of one contiguous shape can be walked as if they had one axis.
        self.flat = not any(v.op == "index" for v in values) and all(s == shape or not s for s in in_shapes)
        self._place_results()

    def _ordered(self, varying: list[int]) -> list[int]:
        return varying

    def _steps(self) -> list[tuple]:
        return [(i, function_of(v), self._arguments(v)) for i in self.order for v in [self.typed.values[i]]]

    def _arguments(self, v: TypedStep) -> tuple[int, ...]:
        return (*v.args, len(self.typed.values)) if v.op in ("index", "random_bits") else v.args

    def _room(self, i: int | None = None) -> int:
        """The elements of a step's register in the largest tile; of any step's at most."""
        return min(self.size, TILE)

    def _place_results(self) -> None:
        """Gives each step its destination: an output's tile, or a register, free again after its last use.

        A step may write into an output only when no operand, whose memory the output may share, is read after it.
        """
        values, outputs = self.typed.values, self.typed.outputs
        last_use = {a: at for at, i in enumerate(self.order) for a in values[i].args}
        last_input_read = max((last_use.get(i, -1) for i, _ in self.inputs), default=-1)
        self.direct: dict[int, int] = {}
        for o, (n, stored) in enumerate(zip(outputs, self.typed.dtypes, strict=True)):
            fits = stored is values[n].dtype and values[n].op != "random_bits"  # which need contiguous memory
            if n in self.order[max(last_input_read, 0) :] and fits and n not in self.direct:
                self.direct[n] = o
        self.copied = [(o, n) for o, n in enumerate(outputs) if self.direct.get(n) != o]
        self.register: dict[int, int] = {}
        self.starts = [0]
        free: dict[int, list[int]] = {}
        for at, i in enumerate(self.order):
            if i not in self.direct:
                nbytes = self._room(i) * values[i].dtype.itemsize
                if free.get(nbytes):
                    self.register[i] = free[nbytes].pop()
                else:
                    self.register[i] = len(self.starts) - 1
                    self.starts.append(self.starts[-1] + -(-nbytes // 64) * 64)
            for a in set(values[i].args):
                if last_use.get(a) == at and a in self.register and a not in outputs:
                    free.setdefault(self._room(a) * values[a].dtype.itemsize, []).append(self.register[a])

    def scratch(self) -> Specs:
        """One block for the registers, and what random bits need."""
        specs: Specs = [((self.starts[-1],), np.uint8)] if self.register else []
        if any(v.op == "random_bits" for v in self.typed.values):
            specs = [((self.starts[-1],), np.uint8), *philox_scratch(self._room())]
        return specs

    def known(self, inputs: Sequence[Any]) -> list[Any]:
        """The values that are the same for all elements, by number."""
        known = self.constants.copy()
        for i, k in self.uniform_inputs:
            known[i] = inputs[k]
        for k in self.integers:
            if type(inputs[k]) is int and not fits_int64(inputs[k]):
                raise OverflowError(inputs[k])  # NumPy would compute with Python's integers
        for i, function, args in self.uniform:
            known[i] = function(*[known[a] for a in args])
        return known

    def run(self, inputs: Sequence[Any], outputs: Sequence[np.ndarray], scratch: Sequence[np.ndarray] = ()) -> None:
        known = self.known(inputs)
        if self.size == 0:
            return
        if not self.steps:  # but copies: of constants, of operands
            return self._tile(known, inputs, outputs, [], ..., None)
        if self.size <= TILE:
            tile = Tile(0, (0,) * len(self.shape), len(self.shape), scratch[1:])
            self._tile(known, inputs, outputs, self._registers(self.shape, scratch), ..., tile)
            return
        operands = [inputs[k] for _, k in self.inputs]
        if self.flat and all(x.flags.c_contiguous for x in (*operands, *outputs)):
            operands = [x.reshape(-1) for x in operands]
            outputs = [o.reshape(-1) for o in outputs]
            tiles = _flat_tiles(self.size)
        else:
            operands = [np.broadcast_to(x, self.shape) for x in operands]
            tiles = block_tiles(self.shape)
        inputs = list(inputs)
        for (_, k), x in zip(self.inputs, operands, strict=True):
            inputs[k] = x
        registers: dict[tuple[int, ...], list] = {}
        for where, shape, start, corner in tiles:
            if shape not in registers:
                registers[shape] = self._registers(shape, scratch)
            tile = Tile(start, corner, len(self.shape), scratch[1:])
            self._tile(known, inputs, outputs, registers[shape], where, tile)

    def _tile(self, known: list, inputs: Sequence, outputs: Sequence, registers: list, where: Any, tile: Any) -> None:
        known[-1] = tile
        for i, k in self.inputs:
            known[i] = inputs[k][where]
        for i, function, args in self.steps:
            target = registers[i]
            if target is None:
                target = outputs[self.direct[i]][where]
            if len(args) == 2:
                function(known[args[0]], known[args[1]], out=target)
            elif len(args) == 1:
                function(known[args[0]], out=target)
            else:
                function(*[known[a] for a in args], out=target)
            known[i] = target
        for o, n in self.copied:
            np.copyto(outputs[o][where], known[n], casting="unsafe")

    def _registers(self, shape: tuple[int, ...], scratch: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        registers: list[np.ndarray | None] = [None] * len(self.constants)
        for i, r in self.register.items():
            registers[i] = np.ndarray(shape, self.typed.values[i].dtype.numpy, scratch[0], self.starts[r])
        return registers


def _flat_tiles(size: int) -> Iterator:
    for start in range(0, size, TILE):
        stop = min(start + TILE, size)
        yield slice(start, stop), (stop - start,), start, (start,)


def block_tiles(shape: tuple[int, ...], most: int = TILE) -> Iterator:
    """Tiles of whole inner axes and a range of one axis: each is a run of consecutive elements in row-major order."""
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= most:
        axis -= 1
        inner *= shape[axis]
    axis -= 1  # the axis that is cut: everything before it is walked index by index
    rows = max(most // inner, 1)
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
