"""Row expressions in CUDA: a row is held in the registers of a warp, or of a block (rows.cu). Floor 3.

The operands' rows are loaded once, as they are stored, and every loop of the expression goes over them there; weights
are read where they are used, from the cache. For sums over the rows a block walks over many and adds up its share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .... import dtypes, views
from ....dtypes import Dtype
from ....ops.typing import Typed
from ....views import Shape
from ...source.row_source import Joining, RowCode
from ...source.scalar_source import TYPES as STORED
from ...source.scalar_source import identifier, stored, unravel
from ..planning.registry import Input, Launch, LaunchPlan, Operand, Output, Scratch, Source
from ..planning.row_tiling import Rows
from ..planning.types import TYPES, packed
from . import elementwise, reduce
from .norm import WALKERS

LONGEST = 64 * 1024  # elements of all rows that a block can hold in registers
FILES = ("types.cuh", "../../source/scalar.h", "rows.cu", "shares.cu")


@dataclass
class _CudaLoops:
    """Loops in CUDA over a row (row_source.Loops). columns: the inputs that are the same in all rows."""

    inputs: list[str]
    columns: dict[int, str]
    outputs: Sequence[Operand]
    index: str = "(int64_t)(COLUMN(p) + k)"
    position: str = "(row * C + COLUMN(p) + k)"
    kept: dict[str, Dtype] = field(default_factory=dict)

    def _packs(self, body: Sequence[str], before: Sequence[str] = (), after: Sequence[str] = ()) -> str:
        text = "\n".join(body)
        fetched = [line for k, line in self.columns.items() if f"(w{k}.at)" in text]
        lines = ["#pragma unroll", "EACH_PACK if (COLUMN(p) < C) {", *fetched, *before]
        return "\n".join([*lines, "#pragma unroll", "EACH {", text, "}", *after, "}"])

    def each(self, body: Sequence[str], stores: dict[int, str]) -> str:
        before, after, elements = [], [], []
        for i, value in stores.items():
            kind = TYPES[self.outputs[i].dtype]
            before.append(f"Pack<{kind}, PACK> z{i};")
            elements.append(f"{_at(f'z{i}.at', self.outputs[i].dtype)} = {value};")
            after.append(f"put<PACK, ALIGNED>(y{i}, row * C + COLUMN(p), z{i});")
        return self._packs([*body, *elements], before, after)

    def fold(self, name: str, how: Joining, value: str, body: Sequence[str]) -> str:
        loop = self._packs([*body, how.join(name, value)])
        joined = "plus" if how.name == "sum" else f"{how.name}imum_{how.dtype.name}" if how.dtype.is_float else how.name
        if how.name == "sum" or not how.dtype.is_float:
            joined = {"sum": "plus", "max": "larger", "min": "smaller"}[how.name] + f"<{how.type}>"
        return f"{how.type} {name} = {how.start};\n{loop}\n{name} = over_row<{joined}>({name});"

    def keep(self, name: str, dtype: Dtype) -> tuple[str, str]:
        return f"{STORED[dtype]} {name}_row[PACKS][PACK];", f"{name}_row[p][k]"


def _at(pack: str, dtype: Dtype) -> str:
    """Element k of a pack, as scalar expressions see it."""
    return f"as<{STORED[dtype]}, PACK>({pack}).at[k]"


def plan(call: Any, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> LaunchPlan | None:
    """The launches of a Rowwise: of all rows, and where it sums over them, of the blocks' shares."""
    typed: Typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    shape = call.primitive.shape(call.in_shapes, call.params)
    *_, n = shape
    kinds = [x.dtype for x in (*inputs, *outputs) if not isinstance(x.dtype, str)]
    if not n or set(kinds) & set(dtypes.FLOAT8):
        return None
    along = [s[-1:] == (n,) for s in call.in_shapes]
    is_column = [math.prod(s[:-1]) == 1 and math.prod(shape[:-1]) > 1 for s in call.in_shapes]
    sums = [i for i, o in enumerate(call.primitive.expressions(call.params)) if o.op == "column_sum"]
    held = [k for k, a in enumerate(along) if a and not is_column[k]]
    made = [typed.values[n].args[0] if i in sums else n for i, n in enumerate(typed.outputs)]
    arrays = len(held) + RowCode(typed, along).prepare(made) + len(sums)
    if n * max(arrays - 1, 1) > LONGEST:
        return None
    rows = Rows(Operand(shape, views.contiguous_strides(shape), dtypes.float32), max(arrays, 4 if sums else 2))
    if not rows.count:
        return LaunchPlan([step for i in sums for step in elementwise.fill(0, (outputs[i], Output(i)))])
    return _Planned(call, typed, shape, inputs, outputs, along, is_column, sums, rows).plan()


@dataclass
class _Planned:
    call: Any
    typed: Typed
    shape: Shape
    inputs: Sequence[Operand]
    outputs: Sequence[Operand]
    along: Sequence[bool]
    is_column: Sequence[bool]
    sums: Sequence[int]
    rows: Rows

    def plan(self) -> LaunchPlan:
        n, rows = self.shape[-1], self.rows
        blocks = min(WALKERS, rows.grid[0]) if self.sums else rows.grid[0]
        scratch: list[int] = []
        steps: list[Any] = []
        shares: dict[int, Scratch] = {}
        values = {i: self.typed.values[self.typed.outputs[i]].args[0] for i in self.sums}
        code = RowCode(self.typed, self.along, self._loops())
        for i, v in values.items():
            width = blocks * n if code.varies[v] else rows.count
            shares[i] = Scratch(len(scratch))
            scratch.append(width * self.typed.values[v].dtype.itemsize)
        packs = [x.dtype for k, x in enumerate(self.inputs) if self.along[k]]
        packs += [y.dtype for i, y in enumerate(self.outputs) if i not in self.sums]
        aligned = all(x.aligned for k, x in enumerate(self.inputs) if self.along[k])
        aligned = aligned and all(y.aligned for i, y in enumerate(self.outputs) if i not in self.sums)
        parameters, arguments, macros, slots = self._parameters(code, shares, values)
        macros |= {"T": "float", "A": "float"} | rows.macros(packed(*packs), aligned)
        name = f"tinyarr_{identifier(self.call.primitive.name)}"
        kernels = self._kernel(name, parameters, code, values)
        source = Source(FILES, tuple((k, str(v)) for k, v in macros.items()), kernels=kernels)
        steps.append(Launch(source, name, (blocks, 1, 1), rows.block, tuple(arguments), slots=tuple(slots)))
        pairs: dict[tuple[Dtype, Dtype], list[int]] = {}
        for i, v in values.items():
            dtype, out = self.typed.values[v].dtype, self.outputs[i].dtype
            if code.varies[v]:
                pairs.setdefault((out, dtype), []).append(i)
                continue
            more, room = reduce.rows("sum", shares[i], Output(i), 1, rows.count, dtype, out, True, scratch=len(scratch))
            steps += more
            scratch += room
        for (out, dtype), every in pairs.items():
            sizes = tuple((k, str(x)) for k, x in rows.macros(1, True).items())
            text = Source(("types.cuh", "rows.cu", "shares.cu"), (("T", TYPES[out]), ("A", STORED[dtype]), *sizes))
            for i, k in zip(every[::2], [*every[1::2], every[-1]]):  # two in a launch, which takes as long as one
                given = (Output(i), Output(k), shares[i], shares[k], np.int32(blocks))
                steps.append(Launch(text, "sum_shares", (-(-n // 32), 1 + (i != k), 1), (256, 1, 1), given))
        return LaunchPlan(steps, tuple(scratch))

    def _loops(self) -> _CudaLoops:
        lvalues, columns = [], {}
        for k, (x, v) in enumerate(zip(self.inputs, self.along, strict=True)):
            if not x.shape:
                lvalues.append(f"x{k}" if isinstance(x.dtype, str) else f"x{k}[0]")
            elif not v:
                lvalues.append(f"x{k}[{self._offset(x)}]")
            elif self.is_column[k]:
                columns[k] = f"Pack<{TYPES[x.dtype]}, PACK> w{k} = fetch<PACK, ALIGNED>(x{k}, COLUMN(p));"
                lvalues.append(_at(f"w{k}.at", x.dtype))
            else:
                lvalues.append(_at(f"r{k}[p].at", x.dtype))
        return _CudaLoops(lvalues, columns, self.outputs)

    def _offset(self, x: Operand) -> str:
        """The position at which an operand's row begins."""
        whole = (*self.shape[:-1], x.shape[-1])
        strides = views.broadcast_to(views.View(x.shape, x.strides), whole).strides[:-1]
        return "({})".format(unravel("row", *_merged(tuple(self.shape[:-1]), strides)))

    def _parameters(self, code: RowCode, shares: dict[int, Scratch], values: dict[int, int]):
        """(declarations, arguments, the macros of slots, and which argument each of these is)."""
        declared: list[str] = []
        arguments: list[Any] = []
        macros: dict[str, Any] = {}
        slots: list[tuple[str, int]] = []
        for i, y in enumerate(self.outputs):
            if i in shares:
                declared.append(f"{STORED[self.typed.values[values[i]].dtype]} *y{i}")
                arguments.append(shares[i])
            else:
                if code.varies[self.typed.outputs[i]]:
                    macros[f"TO_{i}"] = f"{TYPES[y.dtype]} *"
                    slots.append((f"TO_{i}", len(arguments)))
                declared.append(f"{f'TO_{i}' if f'TO_{i}' in macros else f'{STORED[y.dtype]} *'} y{i}")
                arguments.append(Output(i))
        given = {v.value: STORED[v.dtype] for v in self.typed.values if v.op == "input"}
        for k, x in enumerate(self.inputs):
            if isinstance(x.dtype, str):
                declared.append(f"{given.get(k, 'int64_t')} x{k}")
            elif self.along[k]:
                declared.append(f"FROM_{k} x{k}")
                macros[f"FROM_{k}"] = f"const {TYPES[x.dtype]} *"
                if not self.is_column[k]:
                    slots.append((f"FROM_{k}", len(arguments)))
            else:
                declared.append(f"const {STORED[x.dtype]} *x{k}")
            arguments.append(Input(k))
        return [*declared, "int64_t rows"], [*arguments, np.int64(self.rows.count)], macros, slots

    def _kernel(self, name: str, parameters: Sequence[str], code: RowCode, values: dict[int, int]) -> str:
        typed = self.typed
        plain = [i for i in range(len(self.outputs)) if i not in self.sums]
        varying = [i for i in plain if code.varies[typed.outputs[i]]]
        single = [i for i in plain if i not in varying]
        wide = {i: v for i, v in values.items() if code.varies[v]}
        hoisted = code.hoisted()
        code.prepare([*(typed.outputs[i] for i in varying), *wide.values()])
        body = code.statistics([*(typed.outputs[i] for i in single), *(v for i, v in values.items() if i not in wide)])
        if varying or wide:
            body += code.results(varying, [f"share{i}[p][k] += v{v};" for i, v in wide.items()], list(wide.values()))
        first = [f"y{i}[row] = {stored(typed, i)};" for i in single]
        first += [f"y{i}[row] = v{v};" for i, v in values.items() if i not in wide]
        if first:
            body += ["if (threadIdx.x % THREADS == 0) {", *first, "}"]
        shares = [f"{STORED[typed.values[v].dtype]} share{i}[PACKS][PACK] = {{}};" for i, v in wide.items()]
        read = [k for k, x in enumerate(self.inputs) if self.along[k] and not self.is_column[k]]
        loads = []
        for k in read:
            at = f"{self._offset(self.inputs[k])} + COLUMN(p)"
            loads += [f"Pack<{TYPES[self.inputs[k].dtype]}, PACK> r{k}[PACKS];", "#pragma unroll"]
            loads.append(f"EACH_PACK if (COLUMN(p) < C) r{k}[p] = fetch<PACK, ALIGNED>(x{k}, {at});")
        head = "int64_t row = blockIdx.x * (int64_t)ROWS + threadIdx.x / THREADS;"
        if self.sums:
            step = "for (; row < rows; row += gridDim.x * (int64_t)ROWS) {"
        else:
            step = "if (row < rows) {"
        stores = [f"store_shares(y{i} + blockIdx.x * (int64_t)C, share{i});" for i in wide]
        return "\n".join([
            'extern "C" __global__ void __launch_bounds__(THREADS * ROWS)', f"{name}({', '.join(parameters)})", "{",
            *hoisted, *shares, head, step, *loads, *body, "}", *stores, "}", "",
        ])  # fmt: skip


def _merged(shape: Shape, strides: Shape) -> tuple[Shape, Shape]:
    shape, (strides,) = views.merge_axes(shape, [strides])
    return shape, strides
