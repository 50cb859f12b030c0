"""A program as one C library: a function for each different kernel, and one that calls them in order."""

from __future__ import annotations

import ctypes
import string
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from .... import diagnostics, dtypes, views
from ....array import Array, empty
from ....errors import OutOfBounds
from ....forking import renew_in_children
from ....ops.collective import Collective, wait
from ....ops.create import _copy
from ....ops.elementwise_primitive import Pointwise
from ....ops.primitive import Primitive
from ....ops.rowwise import Rowwise
from ....ops.typing import Typed
from ....program import Copy, Graph, Group, Node, Place, Plan, Read, Value
from ....views import Shape, View
from ...scalar_source import TYPES, identifier
from .. import c_compiler
from ..memory import Pool
from ..threads import team, thread_count
from . import collective
from .elementwise import copied, elementwise
from .index import checked
from .kernel import KERNELS, Operand, Site, indented
from .rowwise import rowwise
from .source import Source

HERE = Path(__file__).parent
_WEAK = {"bool": dtypes.bool, "signed": dtypes.int64, "float": dtypes.float64}


@dataclass(frozen=True)
class Kernel:
    """One launch: the C function, its name, and what it computes (for people)."""

    name: str
    source: str
    node: Any

    def __str__(self) -> str:
        values = (self.node.target,) if isinstance(self.node, Copy) else self.node.outputs
        made = " ".join(f"{v.dtype.name}{list(v.shape)}" for v in values)
        return f"{self.name:40} {made:40} {getattr(self.node, 'line', '')}".rstrip()


class _Generator:
    def __init__(self, graph: Graph, plan: Plan, threads: int):
        self.graph, self.plan, self.threads = graph, plan, threads
        self.bodies: dict[tuple, tuple[str, Site]] = {}
        self.functions: dict[tuple[str, str], tuple[str, str]] = {}  # name and text, by parameters and body
        self.counts: dict[str, int] = {}
        self.support: list[str] = []
        self.kernels: list[Kernel] = []
        self.sections: list[list[str]] = [[]]  # calls of C, and between them what Python does
        self.between: list[collective.Step] = []
        self.scratch = self.held = 0  # bytes behind the arena: of one kernel, and of collectives while they last
        self.told = diagnostics.asks("launches")

    def source(self) -> str:
        for number, read, bounds in self.plan.checks:
            launch, name = _Launch(self), self._name(number)
            indices = launch.read("indices", read, read.value.dtype)
            self._launch(launch, f"check_{identifier(name)}", checked(indices, bounds), number)
        for number, step in enumerate(self.plan.steps):
            if step is not None:
                self._step(number, step)
        template = string.Template((HERE / "product.c").read_text(encoding="utf-8"))
        products = [template.substitute(name=name, T=TYPES[getattr(dtypes, name)]) for name in self.support]
        if "float32" in self.support:
            products.append((HERE / "product_amx.c").read_text(encoding="utf-8"))
        functions = [k.source for k in {k.name: k for k in self.kernels}.values()]
        start = ["double since = omp_get_wtime();"] if self.told else []
        schedules = [
            f"SCHEDULE section_{i}(char *const *memory, char *scratch, report_t *error)\n"
            f"{{\n{indented(chr(10).join(start + calls))}\n}}\n"
            for i, calls in enumerate(self.sections)
        ]
        names = ", ".join(f"section_{i}" for i in range(len(self.sections)))
        program = "\n".join(
            [
                *schedules,
                "void run(char *const *memory, report_t *error, int threads, int section)",
                "{",
                f"    void (*const sections[])(char *const *, char *, report_t *) = {{{names}}};",
                f"    char *scratch = memory[0] + {self.plan.arena};",
                "#pragma omp parallel num_threads(threads)",
                "    sections[section](memory, scratch, error);",
                "}",
                "",
            ]
        )
        header = (HERE / "program.h").read_text(encoding="utf-8")
        return "\n".join(['#include "scalar.h"', header, *products, *functions, program])

    def _step(self, number: int, step: Node | Group | Copy) -> None:
        launch = _Launch(self)
        if isinstance(step, Node) and (isinstance(step.call.primitive, Collective) or step.call.primitive is wait):
            self._between(step)
            (read,), (value,) = step.inputs, step.outputs
            if step.call.primitive is not wait or self._same(read, value):
                return
            view = self.plan.layout(value)
            site, title = launch.copy(Copy(read, value), view), "copy"
        elif isinstance(step, Copy):
            view = views.contiguous(step.read.view.shape) if step.part is None else step.part
            if views.size(view.shape) == 0 or (step.part is None and self._same(step.read, step.target)):
                return
            site, title = launch.copy(step, view), "copy"
        elif step.call.primitive is _copy and self._same(step.inputs[0], step.outputs[0]):
            return
        elif isinstance(step, Group):
            site = launch.group(step)
            title = identifier(f"{step.first.call.primitive.name}_{step.call.primitive.name}")
        else:
            site, title = launch.node(step), identifier(step.call.primitive.name)
        key = site.key
        if key not in self.bodies:  # equal layers make equal calls
            self.bodies[key] = _body(site), site
        body, site = self.bodies[key]
        if not body.strip():
            return
        self.support += [name for name in site.support if name not in self.support]
        if site.scratch:
            launch.parameters.append("char *scratch")
            launch.arguments.append("scratch")
            self.scratch = max(self.scratch, site.scratch)
        self._launch(launch, title, body, number)

    def _name(self, number: int) -> str:
        step: Any = self.plan.steps[number]
        return step.call.primitive.name

    def _launch(self, launch: _Launch, title: str, body: str, number: int) -> None:
        """Calls a function of this body, in step `number`."""
        checks = "report(" in body
        if checks:
            launch.parameters += ["report_t *error", "int64_t launch"]
            launch.arguments += ["error", str(number)]
        parameters = ", ".join(launch.parameters)
        same = title + parameters, body
        if same not in self.functions:
            count = self.counts[title] = self.counts.get(title, -1) + 1
            name = f"{title}_kernel" + (f"_{count}" if count else "")
            self.functions[same] = name, f"KERNEL {name}({parameters})\n{{\n{indented(body)}\n}}\n"
        name, text = self.functions[same]
        self.kernels.append(Kernel(name, text, self.plan.steps[number]))
        self.sections[-1].append(f"{name}({', '.join(launch.arguments)});")
        if self.told:
            self.sections[-1].append(f"launched(&since, {_quoted(str(self.kernels[-1]))});")
        if checks:
            self.sections[-1].append(f"if (stopped(error, {number}))\n        return;")

    def _between(self, node: Node) -> None:
        """A collective begins or ends, when all before it has run."""
        (read,), (value,) = node.inputs, node.outputs
        made = self.where(value, views.contiguous(value.shape))
        step = collective.Step(node.call, self.where(read.value, read.view), made, self.held)
        self.held += step.nbytes
        self.between.append(step)
        self.sections.append([])

    def _same(self, read: Read, target: Value) -> bool:
        here, there = self.plan.place(read.value), self.plan.place(target)
        return here == there and read.view.offset == 0 and views.is_contiguous(read.view)

    def address(self, value: Value, view: View) -> str:
        buffer, offset = self.where(value, view)
        return f"(void *)(memory[{buffer}] + {offset})"

    def where(self, value: Value, view: View) -> tuple[int, int]:
        """In which buffer a view of a value begins, and at which byte."""
        place = self.plan.place(value)
        return self.buffer(place), place.offset + view.offset * value.dtype.itemsize

    def buffer(self, place: Place) -> int:
        graph = self.graph
        before = {"arena": 0, "state": 1, "constant": 1 + len(graph.states)}
        before["draw"] = before["constant"] + len(graph.constants)
        before["float"] = before["draw"] + 2 * len(graph.draws)
        before["result"] = before["float"] + len(graph.floats)
        return before[place.buffer] + place.number


def is_written(primitive: Primitive) -> bool:
    """Whether there is C for a primitive."""
    return isinstance(primitive, Pointwise | Rowwise | Collective) or primitive is wait or primitive in KERNELS


def not_written(plan: Plan) -> list[Primitive]:
    """The primitives of a program for which there is no C."""
    called = (step.call.primitive for step in plan.steps if isinstance(step, Node | Group))
    return [primitive for primitive in called if not is_written(primitive)]


def _body(site: Site) -> str:
    if site.call is None:
        return copied(site.inputs[0], site.outputs[0])
    primitive = site.call.primitive
    if isinstance(primitive, Pointwise):
        body = elementwise(site)
    else:
        body = rowwise(site) if isinstance(primitive, Rowwise) else KERNELS[primitive](site)
    if primitive.bounds is not None:
        bounds = primitive.bounds(site.call.in_shapes, site.params)
        others = [x for x in (*site.inputs, *site.outputs) if x is not site.inputs[bounds.operand]]
        if not all(x.size for x in others):  # the kernel may look at no index
            return f"{checked(site.inputs[bounds.operand], bounds)}\n{body}"
    return body


class _Launch:
    """The parameters of a kernel, and what is passed for them."""

    def __init__(self, generator: _Generator):
        self._generator = generator
        self.parameters: list[str] = []
        self.arguments: list[str] = []

    def read(self, name: str, x: Any, dtype: Any) -> Operand:
        if not isinstance(x, Read):
            return Operand(name, _WEAK[dtype], (), (), constant=x)
        operand = Operand(name, x.value.dtype, x.view.shape, x.view.strides, readonly=True)
        self.parameters.append(f"const {operand.type} *{name}")
        self.arguments.append(self._generator.address(x.value, x.view))
        return operand

    def made(self, name: str, value: Value, shape: Shape) -> Operand:
        """An output as its kernel sees it: in the shape in which the kernel goes through it."""
        view = views.reshape(self._generator.plan.layout(value), shape)
        assert view is not None, "a layout is chosen only where the kernel can write it"
        return self.write(name, value, view)

    def write(self, name: str, value: Value, view: View) -> Operand:
        operand = Operand(name, value.dtype, view.shape, view.strides)
        self.parameters.append(f"{operand.type} *{name}")
        self.arguments.append(self._generator.address(value, view))
        return operand

    def copy(self, copy: Copy, view: View) -> Site:
        inputs = [self.read("x", copy.read, copy.read.value.dtype)]
        return Site(None, inputs, [self.write("out", copy.target, view)], self._generator.threads)

    def node(self, node: Node) -> Site:
        primitive = node.call.primitive
        names = _names(primitive, primitive.inputs, len(node.inputs), "x")
        inputs = [self.read(*x) for x in zip(names, node.inputs, node.call.in_dtypes, strict=True)]
        names = _names(primitive, primitive.outputs, len(node.outputs), "out")
        outputs = [self.made(*y) for y in zip(names, node.outputs, node.call.out_shapes, strict=True)]
        is_part = self._generator.plan.is_part
        placed = frozenset(i for i, x in enumerate(node.inputs) if isinstance(x, Read) and is_part(x.value))
        return Site(node.call, inputs, outputs, self._generator.threads, placed=placed)

    def group(self, group: Group) -> Site:
        first, last = group.first, group.last
        operands = zip(first.inputs, first.call.in_dtypes, strict=True)
        inputs = [self.read(f"x{i}", x, dtype) for i, (x, dtype) in enumerate(operands)]
        typed = first.call.primitive.typed(first.call.in_shapes, first.call.in_dtypes, first.call.params)
        stored = [i for i, v in enumerate(first.outputs) if v in group.outputs]
        outputs = [self.made(f"y{i}", first.outputs[i], first.call.out_shapes[i]) for i in stored]
        numbers, dtypes = typed.outputs, typed.dtypes
        expression = Typed(
            typed.values, (numbers[0], *(numbers[i] for i in stored)), (dtypes[0], *(dtypes[i] for i in stored))
        )
        shape, primitive = last.call.in_shapes[0], last.call.primitive
        source = Source.of(expression, shape, inputs, outputs)
        names = _names(primitive, primitive.inputs, len(last.inputs), "r")
        read = [Operand(names[0], source.dtype, shape, views.contiguous_strides(shape), readonly=True)]
        read += [self.read(*x) for x in zip(names[1:], last.inputs[1:], last.call.in_dtypes[1:], strict=True)]
        names = _names(primitive, primitive.outputs, len(last.outputs), "out")
        results = [self.made(*y) for y in zip(names, last.outputs, last.call.out_shapes, strict=True)]
        return Site(last.call, read, results, self._generator.threads, expression=source)


def _names(primitive: Primitive, names: Sequence[str], count: int, numbered: str) -> list[str]:
    """A name for each operand in C: its own where a kernel written by hand knows it by that, else a number.

    The operands of elementwise operations may bear any name, C's keywords and macros among them.
    """
    if not isinstance(primitive, Pointwise | Rowwise) and len(names) == count:
        return list(names)
    return [f"{numbered}{i}" for i in range(count)]


def _quoted(text: str) -> str:
    """A text as a C string."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'


class _Report(ctypes.Structure):
    _fields_ = [("launch", ctypes.c_int64), ("position", ctypes.c_int64), ("value", ctypes.c_int64)]


class Arena:
    """Memory that all programs of the process share, one at a time; it grows to what the largest needs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        renew_in_children(self, "lock", threading.Lock)
        self._block = np.empty(0, np.uint8)

    def address(self, size: int, pool: Pool) -> int:
        """Where `size` bytes begin, which `pool` counts."""
        if self._block.nbytes < size + 4096:
            pool.count(-self._block.nbytes)
            self._block = np.empty(0, np.uint8)  # freed before the larger one is taken
            self._block = np.empty(size + 4096, np.uint8)
            pool.count(self._block.nbytes)
        return -(-self._block.ctypes.data // 4096) * 4096


ARENA = Arena()


def scratch_of(graph: Graph, plan: Plan) -> int:
    """Bytes of scratch that a program needs behind its arena."""
    generator = _Generator(graph, plan, thread_count())
    generator.source()
    return generator.scratch + generator.held


class Library:
    """run(states, draws, floats), as the interpreter's, by generated C.

    kernels: the launches, in order; printed, a line each.
    """

    def __init__(self, graph: Graph, plan: Plan, pool: Pool):
        self._graph, self._plan, self._pool = graph, plan, pool
        self.threads = thread_count()
        generator = _Generator(graph, plan, self.threads)
        self.source = generator.source()
        self.kernels = generator.kernels
        self.arena = plan.arena + generator.scratch + generator.held
        self._between, self._held = generator.between, plan.arena + generator.scratch
        diagnostics.tell("kernels", "\n".join({k.name: k.source for k in self.kernels}.values()))
        self._constants = [x for _, x in graph.constants]
        self._written = [s.after is not s.before for s in graph.states]
        self._library = c_compiler.load_cached(self.source)
        self._library.run.restype = None

    def __str__(self) -> str:
        return "\n".join(map(str, self.kernels))

    def run(self, states: Sequence[Array], draws: Sequence[tuple[int, int]], floats: Sequence[float]) -> list[Array]:
        numbers = [np.array(n, np.int64) for pair in draws for n in pair]
        numbers += [np.array(x, np.float64) for x in floats]
        results = [empty(r.value.device, r.view.shape, r.value.dtype) for r in self._graph.results]
        report = _Report(-1, 0, 0)
        arrays = [*states, *self._constants]
        with ARENA.lock:
            addresses = [ARENA.address(self.arena, self._pool), *(x.address or _address(x) for x in arrays)]
            addresses += [n.ctypes.data for n in numbers] + [_address(x) for x in results]
            self._run(addresses, report)
        if report.launch >= 0:
            self._raise(report)
        for x in compress(states, self._written):
            x.storage.version += 1
        return results

    def _run(self, addresses: Sequence[int], report: _Report) -> None:
        memory = array("Q", addresses)  # a fifth of the time that ctypes takes for the same
        begun: dict[int, Callable[[], None]] = {}
        threads = team(self.threads)
        for section, step in enumerate([*self._between, None]):
            self._library.run(ctypes.c_void_p(memory.buffer_info()[0]), ctypes.byref(report), threads, section)
            if step is None or report.launch >= 0:
                break
            step.run(addresses, addresses[0] + self._held, begun)
        for finish in begun.values():  # after a bad index: until then they read and write the arena
            finish()

    def _raise(self, report: _Report) -> None:
        step = self._plan.steps[report.launch]
        name = step.call.primitive.name
        raise OutOfBounds(f"{name}: index {report.position} is {report.value}: out of range ({step.line})")


def _address(x: Array) -> int:
    x.address = x.storage.memory.ctypes.data + x.offset * x.dtype.itemsize
    return x.address
