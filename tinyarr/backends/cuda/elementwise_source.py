"""The text of an elementwise kernel: a loop over packs of elements, with an expression's statements inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...dtypes import Dtype
from ...ops.typing import Typed
from ...views import Shape
from ..scalar_source import TYPES, statements
from .registry import Source

THREADS = 256


@dataclass
class Varying:
    """An operand that differs from element to element: its C name, stored dtype, and strides along the merged axes."""

    name: str
    dtype: Dtype
    strides: Shape
    address: Any
    aligned: bool


def indexed(typed: Typed, shape: Shape) -> list[int]:
    """The axes whose position the expression asks for."""
    return sorted({v.value % len(shape) for v in typed.values if v.op == "index"})


@dataclass
class Loop:
    """What the text depends on.

    uniform: for the number of each uniform input whether it is a Python scalar, passed by value. varying, results: the
    other operands, which lie along `axes`, what is left of `shape` once neighbours are merged. pack: elements that a
    thread takes at once. narrow: whether 32 bits count all positions.
    """

    name: str
    typed: Typed
    uniform: dict[int, bool]
    varying: Sequence[Varying]
    results: Sequence[Varying]
    shape: Shape
    axes: Shape
    pack: int
    narrow: bool

    def source(self) -> Source:
        index, offset = ("uint32_t", "int32_t") if self.narrow else ("uint64_t", "int64_t")
        macros = (("Index", index), ("Offset", offset), ("PACK", str(self.pack)))
        return Source(("types.cuh", "../scalar.h"), macros, self._text())

    @property
    def _every(self) -> list[Varying]:
        return [*self.varying, *self.results]

    @property
    def _count(self) -> str:
        """The last argument of loads and stores where the last pack may be shorter than the others."""
        return ", count" if self.pack > 1 and len(self.axes) == 1 else ""

    def _is_packed(self, x: Varying) -> bool:
        return x.strides[-1] == 1 and self.pack > 1

    def _text(self) -> str:
        hoisted, inside = self._statements()
        size = " * ".join(f"n{a}" for a in range(len(self.axes)))
        parameters = ", ".join(self._parameters())
        step = "gridDim.x * (Index)blockDim.x"
        lines = [
            f'extern "C" __global__ void __launch_bounds__({THREADS}) tinyarr_{self.name}({parameters})',
            "{",
            *["    " + line for line in hoisted],
            f"    const Index packs = ({size} + PACK - 1) / PACK;",
            f"    for (Index pack = blockIdx.x * (Index)blockDim.x + threadIdx.x; pack < packs; pack += {step}) {{",
            *["        " + line for line in (*self._positions(), *self._loads())],
            "#pragma unroll",
            "        for (int k = 0; k < PACK; k++) {",
            *["            " + line for line in inside],
            "        }",
            *[f"        store({y.name} + at_{y.name}, out_{y.name}{self._count});" for y in self.results],
            "    }",
            "}",
            "",
        ]
        return "\n".join(lines)

    def _parameters(self) -> list[str]:
        kinds = {v.value: TYPES[v.dtype] for v in self.typed.values if v.op == "input"}
        by_value = self.uniform.items()
        parameters = [f"{kinds[k]} x{k}" if scalar else f"const {kinds[k]} *x{k}" for k, scalar in by_value]
        parameters += [f"const {TYPES[x.dtype]} *{x.name}" for x in self.varying]
        parameters += [f"{TYPES[y.dtype]} *{y.name}" for y in self.results]
        parameters += [f"Index n{a}" for a in range(len(self.axes))]
        parameters += [f"Offset {x.name}_{a}" for x in self._every for a in range(len(self.axes))]
        parameters += [f"Index {part}{axis}" for axis in indexed(self.typed, self.shape) for part in ("inner", "size")]
        return parameters

    def _positions(self) -> list[str]:
        """Where the pack's first element stands along each axis, and in each operand."""
        last = len(self.axes) - 1
        lines = ["Index first = (Index)pack * PACK, rest = first;"]
        lines += [f"Index i{a} = rest % n{a}; rest /= n{a};" for a in range(last, 0, -1)]
        lines.append("Index i0 = rest;")
        if self._count:
            lines.append("Index count = n0 - first;")
        for x in self._every:
            terms = [f"(Offset)i{a} * {x.name}_{a}" for a in range(last)]
            terms += {0: [], 1: [f"(Offset)i{last}"]}.get(x.strides[-1], [f"(Offset)i{last} * {x.name}_{last}"])
            lines.append(f"Offset at_{x.name} = {' + '.join(terms) or '0'};")
        return lines

    def _loads(self) -> list[str]:
        lines = []
        for x in self.varying:
            kind, place = TYPES[x.dtype], f"{x.name} + at_{x.name}"
            if self._is_packed(x):
                lines.append(f"Pack<{kind}, PACK> in_{x.name} = load<PACK>({place}{self._count});")
            else:
                lines.append(f"{kind} in_{x.name} = {x.name}[at_{x.name}];")
        return lines + [f"Pack<{TYPES[y.dtype]}, PACK> out_{y.name};" for y in self.results]

    def _statements(self) -> tuple[list[str], list[str]]:
        """The statements before the loop, and those for element k of a pack."""
        read = {int(x.name[1:]): f"in_{x.name}" + (".at[k]" if self._is_packed(x) else "") for x in self.varying}
        read |= {k: f"x{k}" if scalar else f"x{k}[0]" for k, scalar in self.uniform.items()}
        inputs = [read.get(k, "") for k in range(max(read, default=-1) + 1)]
        outputs = [f"out_{y.name}.at[k]" for y in self.results]
        index = [f"index{axis}" for axis in range(len(self.shape))]
        hoisted, inside = statements(self.typed, inputs, outputs, index, "position")
        positions = ["int64_t position = (int64_t)(first + k);"]
        for axis in indexed(self.typed, self.shape):
            positions.append(f"int64_t index{axis} = (Index)position / inner{axis} % size{axis};")
        return hoisted, positions + inside
