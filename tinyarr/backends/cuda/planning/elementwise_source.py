"""The text of an elementwise expression: a kernel that loops over packs, or a function for one pack. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .... import views
from ....dtypes import Dtype
from ....ops.typing import Typed
from ....views import Shape
from ...source.scalar_source import TYPES, statements
from .registry import Source
from .types import TYPES as CUDA_TYPES

THREADS = 256
FILES = ("types.cuh", "../../source/scalar.h")


@dataclass
class Varying:
    """An operand that differs from element to element: its C name, stored dtype, and strides along the merged axes.

    held: it is in registers already, or stays there: nothing is loaded or stored.
    """

    name: str
    dtype: Dtype
    strides: Shape
    address: Any
    aligned: bool
    held: bool = False


@dataclass
class Loop:
    """Loop over elements, of which the CUDA source depends on nothing else.

    uniform: for the number of each uniform input its address, and whether it is a Python scalar, passed by value.
    varying, results: the other operands, strided along `axes`, what is left of `shape` once neighbours are merged.
    pack: elements taken at once. narrow: whether 32 bits count all positions.
    """

    name: str
    typed: Typed
    uniform: dict[int, tuple[Any, bool]]
    varying: Sequence[Varying]
    results: Sequence[Varying]
    shape: Shape
    axes: Shape
    pack: int
    narrow: bool

    def arguments(self) -> tuple[Any, ...]:
        """Returns the kernel's arguments, which are the fields of the function's struct."""
        arguments = [address for address, _ in self.uniform.values()] + [x.address for x in self._in_memory]
        arguments += [np.int64(n) for n in self.axes]
        arguments += [np.int64(s) for x in self._in_memory for s in x.strides]
        for axis in self._indexed:
            arguments += [np.int64(views.size(self.shape[axis + 1 :])), np.int64(self.shape[axis])]
        return tuple(arguments)

    def kernel(self) -> Source:
        index, offset = self._counters
        macros = (("Index", index), ("Offset", offset), ("PACK", str(self.pack)))
        count = ", count" if self.pack > 1 and len(self.axes) == 1 else ""  # the last pack may be shorter
        size = " * ".join(f"n{a}" for a in range(len(self.axes)))
        parameters = ", ".join(f"{kind} {name}" for kind, name in self._parameters())
        step = "gridDim.x * (Index)blockDim.x"
        hoisted, inside = self._statements()
        loads = [(x, f"load<PACK>({x.name} + at_{x.name}{count})") for x in self.varying]
        lines = [
            f'extern "C" __global__ void __launch_bounds__({THREADS}) tinyarr_{self.name}({parameters})',
            "{",
            *_indented(hoisted),
            f"    const Index packs = ({size} + PACK - 1) / PACK;",
            f"    for (Index pack = blockIdx.x * (Index)blockDim.x + threadIdx.x; pack < packs; pack += {step}) {{",
            "        Index first = (Index)pack * PACK;",
            *(["        Index count = n0 - first;"] if count else []),
            *_indented(self._positions() + self._loads(loads, "PACK"), 2),
            *_indented(_each("PACK", inside), 2),
            *[f"        store({y.name} + at_{y.name}, out_{y.name}{count});" for y in self.results],
            "    }",
            "}",
            "",
        ]
        return Source(FILES, macros, "\n".join(lines))

    def function(self, name: str) -> str:
        """The struct `name` and its function for N elements from position `at` on.

        That is fetch, which returns the result that is held, or put, which gets the operand that is held.
        """
        (held,) = [x for x in (*self.varying, *self.results) if x.held]
        kind, stored = TYPES[held.dtype], CUDA_TYPES[held.dtype]
        width, aligned = ("N", "Aligned") if self.pack > 1 else ("1", "false")
        if held in self.varying:
            signature = f"void put(const {name} &slot, int64_t at, Pack<{stored}, N> whole)"
            before, after, end = f"Pack<{kind}, {width}> in_{held.name} = as<{kind}, {width}>(whole.at + e);", "", ""
        else:
            signature = f"Pack<{stored}, N> fetch(const {name} &slot, int64_t at)"
            before, after, end = "", f"as<{kind}, {width}>(whole.at + e) = out_{held.name};", "return whole;"
        hoisted, inside = self._statements()
        loads = [(x, f"fetch<{width}, {aligned}>({x.name}, at_{x.name})") for x in self.varying if not x.held]
        stores = [f"put<{width}, {aligned}>({y.name}, at_{y.name}, out_{y.name});" for y in self.results if not y.held]
        body = ["Index first = at + e;", before, *self._positions(), *self._loads(loads, width)]
        body += [*_each(width, inside), *stores, after]
        lines = [
            f"struct {name} {{ {' '.join(f'{_MEMBERS.get(kind, kind)} {p};' for kind, p in self._parameters())} }};",
            "template <int N, bool Aligned> __device__ __forceinline__",
            signature,
            "{",
            "    typedef {} Index;\n    typedef {} Offset;".format(*self._counters),
            *[f"    {kind} {parameter} = slot.{parameter};" for kind, parameter in self._parameters()],
            *_indented(hoisted),
            *([f"    Pack<{stored}, N> whole;"] if end else []),
            f"    for (int e = 0; e < N; e += {width}) {{",
            *_indented([line for line in body if line], 2),
            "    }",
            *_indented([end] if end else []),
            "}",
            "",
        ]
        return "\n".join(lines)

    @property
    def _counters(self) -> tuple[str, str]:
        """The types in which positions and offsets are counted."""
        return ("uint32_t", "int32_t") if self.narrow else ("uint64_t", "int64_t")

    @property
    def _indexed(self) -> list[int]:
        """The axes whose position the expression asks for."""
        return sorted({v.value % len(self.shape) for v in self.typed.values if v.op == "index"})

    @property
    def _in_memory(self) -> list[Varying]:
        return [x for x in (*self.varying, *self.results) if not x.held]

    def _is_packed(self, x: Varying) -> bool:
        return x.held or (x.strides[-1] == 1 and self.pack > 1)

    def _parameters(self) -> list[tuple[str, str]]:
        kinds = {v.value: TYPES[v.dtype] for v in self.typed.values if v.op == "input"}
        parameters = [(kinds[k] if value else f"const {kinds[k]} *", f"x{k}") for k, (_, value) in self.uniform.items()]
        parameters += [(f"const {TYPES[x.dtype]} *", x.name) for x in self.varying if not x.held]
        parameters += [(f"{TYPES[y.dtype]} *", y.name) for y in self.results if not y.held]
        parameters += [("Index", f"n{a}") for a in range(len(self.axes))]
        parameters += [("Offset", f"{x.name}_{a}") for x in self._in_memory for a in range(len(self.axes))]
        return parameters + [("Index", f"{part}{axis}") for axis in self._indexed for part in ("inner", "size")]

    def _positions(self) -> list[str]:
        """Returns statements for the position of the pack's first element along each axis, and in each operand."""
        last = len(self.axes) - 1
        lines = ["Index rest = first;"]
        lines += [f"Index i{a} = rest % n{a}; rest /= n{a};" for a in range(last, 0, -1)]
        lines.append("Index i0 = rest;")
        for x in self._in_memory:
            terms = [f"(Offset)i{a} * {x.name}_{a}" for a in range(last)]
            terms += {0: [], 1: [f"(Offset)i{last}"]}.get(x.strides[-1], [f"(Offset)i{last} * {x.name}_{last}"])
            lines.append(f"Offset at_{x.name} = {' + '.join(terms) or '0'};")
        return lines

    def _loads(self, loads: Sequence[tuple[Varying, str]], width: str) -> list[str]:
        lines = []
        for x, packed in loads:
            kind = TYPES[x.dtype]
            if self._is_packed(x):
                lines.append(f"Pack<{kind}, {width}> in_{x.name} = {packed};")
            else:
                lines.append(f"{kind} in_{x.name} = {x.name}[at_{x.name}];")
        return lines + [f"Pack<{TYPES[y.dtype]}, {width}> out_{y.name};" for y in self.results]

    def _statements(self) -> tuple[list[str], list[str]]:
        """The statements before the loop, and those for element k of a pack."""
        read = {int(x.name[1:]): f"in_{x.name}" + (".at[k]" if self._is_packed(x) else "") for x in self.varying}
        read |= {k: f"x{k}" if by_value else f"x{k}[0]" for k, (_, by_value) in self.uniform.items()}
        inputs = [read.get(k, "") for k in range(max(read, default=-1) + 1)]
        outputs = [f"out_{y.name}.at[k]" for y in self.results]
        index = [f"index{axis}" for axis in range(len(self.shape))]
        hoisted, inside = statements(self.typed, inputs, outputs, index, "position")
        positions = ["int64_t position = (int64_t)(first + k);"]
        for axis in self._indexed:
            positions.append(f"int64_t index{axis} = (Index)position / inner{axis} % size{axis};")
        return hoisted, positions + inside


_MEMBERS = {"Index": "int64_t", "Offset": "int64_t"}  # of a struct, each 8 bytes


def _indented(lines: Sequence[str], by: int = 1) -> list[str]:
    return [line if line.startswith("#") else "    " * by + line for line in lines]


def _each(width: str, inside: Sequence[str]) -> list[str]:
    """A loop over the elements of a pack."""
    return ["#pragma unroll", f"for (int k = 0; k < {width}; k++) {{", *_indented(inside), "}"]
