"""Row expressions in C: a row is one thread's; sums over the rows are made a strip of columns at a time. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ... import views
from ...dtypes import Dtype
from ...ops.typing import Typed
from ..source.row_source import Joining, RowCode
from ..source.scalar_source import TYPES, cast, stored
from .kernel import ON_STACK, CCall, COperand, fold, in_pairs, indented, loop, parallel, rows

STRIP = 64  # columns
RUN = 32  # rows that are added one after another


class _CLoops:
    """Loops in C over a row of n elements (row_source.Loops)."""

    index = "i"

    def __init__(self, site: CCall, inputs: list[str], n: int):
        self.inputs, self._site, self._n = inputs, site, n
        self.outputs: dict[int, COperand] = {}  # rows of the results, by their numbers
        self.position = f"(row * {n} + i)"

    def each(self, body: Sequence[str], stores: dict[int, str]) -> str:
        stored = [f"{self.outputs[i].at('i')} = {value};" for i, value in stores.items()]
        return loop("i", self._n, "\n".join([*body, *stored]), "#pragma omp simd")

    def fold(self, name: str, how: Joining, value: str, body: Sequence[str]) -> str:
        return fold(name, how.type, self._n, value, how.start, how.join("{0}", "{1}"), "\n".join(body))

    def keep(self, name: str, dtype: Dtype) -> tuple[str, str]:
        kind = TYPES[dtype]
        if self._n <= ON_STACK:
            return f"{kind} {name}_row[{self._n}];", f"{name}_row[i]"
        place = self._site.take_scratch(self._site.threads * self._n * dtype.itemsize)
        room = f"{kind} *{name}_row = ({kind} *)({place}) + omp_get_thread_num() * (int64_t){self._n};"
        return room, f"{name}_row[i]"


def rowwise(site: CCall) -> str:
    """The loops of a Rowwise. Its first output may be the memory of its first input, unless there are column sums."""
    primitive, call = site.call.primitive, site.call
    typed: Typed = primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    shape = primitive.shape(call.in_shapes, call.params)
    *leading, n = shape
    count = views.size(tuple(leading))
    along = [s[-1:] == (n,) for s in call.in_shapes]
    columns = [i for i, o in enumerate(primitive.expressions(call.params)) if o.op == "column_sum"]
    if site.expression is not None:
        typed = _widened(typed, 0)
    inputs = [_over_rows(x, shape) for x in site.inputs]
    lvalues = [
        x.at()
        if not x.shape
        else replace(x, name=f"{x.name}_row", shape=x.shape[-1:], strides=x.strides[-1:]).at("i" if a else "0")
        for x, a in zip(inputs, along, strict=True)
    ]
    if site.expression is not None:
        lvalues[0] = f"{inputs[0].name}_row[i]"
    loops = _CLoops(site, lvalues, n)
    code = RowCode(typed, along, loops)
    text = code.hoisted()
    plain = [i for i in range(len(typed.outputs)) if i not in columns]
    summed = {i: typed.values[typed.outputs[i]].args[0] for i in columns}
    kept = [m for m in code.needed(summed.values()) if typed.values[m].op != "input" and not typed.values[m].uniform]
    places = {m: site.take_scratch(max(count, 1) * typed.values[m].dtype.itemsize) for m in kept}
    text += [f"{TYPES[typed.values[m].dtype]} *v{m}_of = ({TYPES[typed.values[m].dtype]} *)({at});"
             for m, at in places.items()]  # fmt: skip
    if count and (plain or kept):
        text.append(_each_row(site, code, loops, inputs, shape, plain, kept))
    for dtype in dict.fromkeys(typed.values[m].dtype for m in summed.values()):
        group = [i for i in columns if typed.values[summed[i]].dtype is dtype]
        wide = [i for i in group if code.varies[summed[i]]]
        if wide:
            text.append(_column_sums(site, code, inputs, shape, wide, summed, kept, dtype))
        text += [_total(site, code, inputs, count, i, summed[i], kept) for i in group if i not in wide]
    return "\n".join(text)


def _each_row(
    site: CCall, code: RowCode, loops: _CLoops, inputs: Sequence[COperand], shape: Sequence[int], plain: Sequence[int],
    kept: Sequence[int],
) -> str:  # fmt: skip
    typed = code.typed
    rowwise = [i for i in plain if code.varies[typed.outputs[i]]]
    single = [i for i in plain if i not in rowwise]
    outputs = [site.outputs[i] for i in plain]
    used = [x for x in inputs if x.shape]

    def body(*parts: COperand) -> str:
        results = loops.outputs = dict(zip(plain, parts[len(used) :], strict=True))
        code.prepare([typed.outputs[i] for i in rowwise])
        lines = code.statistics([*(typed.outputs[i] for i in single), *kept])
        if rowwise:
            lines += code.results(rowwise)
        lines += [f"{results[i].at('0')} = {stored(typed, i)};" for i in single]
        return "\n".join([*lines, *(f"v{m}_of[row] = v{m};" for m in kept)])

    return rows(site, [*used, *outputs], body, tuple(shape))


def _column_sums(site, code: RowCode, inputs, shape, wide, summed, kept, dtype: Dtype) -> str:
    """The sums over rows of varying values: pieces of RUN rows are joined in pairs, a strip of columns at a time."""
    n, count, kind = shape[-1], views.size(tuple(shape[:-1])), TYPES[dtype]
    values = [summed[i] for i in wide]
    numbers = code.needed(values)
    given = [f"{TYPES[code.typed.values[m].dtype]} v{m} = v{m}_of[row];" for m in numbers if m in kept]
    given += [code.statement_of(m) for m in numbers if code.typed.values[m].op == "input"]
    adds = [f"piece[{k * STRIP} + j] += v{m};" for k, m in enumerate(values)]
    inside = "\n".join(["int64_t i = first + j;", *code.inside(values), *adds])
    strip = loop("j", f"MIN({STRIP}, {n} - first)", inside, "#pragma omp simd")
    pointers = [inputs[k].row("row")[0] for k in code.read(values)]
    one_row = "\n".join([*pointers, *given, strip])
    width = STRIP * len(wide)
    run = "\n".join([
        loop("i", width, "piece[i] = 0;"),
        f"for (int64_t row = k * {RUN}; row < MIN((k + 1) * {RUN}, {count}); row++) {{\n{indented(one_row)}\n}}",
    ])  # fmt: skip
    outputs = [(k, site.outputs[i]) for k, i in enumerate(wide)]
    store = "\n".join(_stored(o, f"total[{k * STRIP} + j]", "(first + j)", dtype) for k, o in outputs)
    column = "\n".join([
        in_pairs(kind, max(-(-count // RUN), 1), width, run),
        loop("j", f"MIN({STRIP}, {n} - first)", store),
    ])  # fmt: skip
    head = f"for (int64_t first = 0; first < {n}; first += {STRIP}) {{"
    return f"{parallel(-(-n // STRIP), n * count)}\n{head}\n{indented(column)}\n}}"


def _total(site, code: RowCode, inputs, count: int, output: int, value: int, kept: Sequence[int]) -> str:
    """The sum over rows of a statistic."""
    v = code.typed.values[value]
    lines = []
    for m in code.needed([value]):
        if m in kept:
            lines.append(f"{TYPES[code.typed.values[m].dtype]} v{m} = v{m}_of[i];")
        elif code.typed.values[m].op == "input" and not code.typed.values[m].uniform:
            x = inputs[code.typed.values[m].value]
            lines.append(
                f"{TYPES[code.typed.values[m].dtype]} v{m} = {x.name}[{x.offset('i', range(len(x.shape) - 1))}];"
            )
    total = fold("of_all", TYPES[v.dtype], count, f"v{value}", before="\n".join(lines))
    text = f"{total}\n{_stored(site.outputs[output], 'of_all', '0', v.dtype)}"
    return f"#pragma omp single\n{{\n{indented(text)}\n}}"


def _stored(out: COperand, value: str, position: str, dtype: Dtype) -> str:
    return f"{out.at(position)} = {cast(value, dtype, out.dtype)};"


def _over_rows(x: COperand, shape: Sequence[int]) -> COperand:
    """An operand broadcast to all rows; a 0-d one, or a Python scalar, as it is."""
    if not x.shape:
        return x
    whole = (*shape[:-1], x.shape[-1])
    return x if x.shape == whole else replace(
        x, shape=whole, strides=views.broadcast_to(views.View(x.shape, x.strides), whole).strides
    )  # fmt: skip


def _widened(typed: Typed, number: int) -> Typed:
    """The expression with an input that comes in the dtype in which it is computed."""
    values = [replace(v, dtype=v.dtype.compute) if v.op == "input" and v.value == number else v for v in typed.values]
    return replace(typed, values=tuple(values))
