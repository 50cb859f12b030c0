"""A program as one C library: a function for each different kernel, and one that calls them in order. Floor 2."""

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

from ... import diagnostics, dtypes
from ...array import Array, empty
from ...errors import OutOfBounds
from ...forking import renew_in_children
from ...ops.collective import Collective
from ...ops.elementwise_primitive import Pointwise
from ...ops.primitive import Primitive
from ...ops.rowwise import Rowwise
from ...ops.typing import Typed
from ...program import Argument, Graph, IndexCheck, KernelCall, Lowered, Place, Wait
from ...views import Shape
from ..numpy.pool import Pool
from ..source.scalar_source import TYPES, identifier
from . import collective, compiler
from .elementwise import elementwise
from .index import checked
from .kernel import KERNELS, CCall, COperand, indented
from .numpy_call import NumpyCall
from .rowwise import rowwise
from .source import CExpression
from .threads import team, thread_count

HERE = Path(__file__).parent
_WEAK = {"bool": dtypes.bool, "signed": dtypes.int64, "float": dtypes.float64}


@dataclass(frozen=True)
class CFunction:
    """One launch: the C function, its name, and the call that it is of."""

    name: str
    source: str
    call: KernelCall | IndexCheck

    def __str__(self) -> str:
        made = "" if isinstance(self.call, IndexCheck) else " ".join(map(str, self.call.outputs))
        return f"{self.name:40} {made:40} {self.call.line}".rstrip()


class _Generator:
    def __init__(self, graph: Graph, lowered: Lowered, threads: int):
        self.graph, self.lowered, self.threads = graph, lowered, threads
        self.bodies: dict[tuple, tuple[str, CCall]] = {}
        self.functions: dict[tuple[str, str], tuple[str, str]] = {}  # name and text, by parameters and body
        self.counts: dict[str, int] = {}
        self.support: list[str] = []
        self.kernels: list[CFunction] = []
        self.sections: list[list[str]] = [[]]  # calls of C, and between them what Python does
        self.between: list[collective.CollectiveStep | NumpyCall] = []
        self.scratch = lowered.scratch  # bytes behind the arena: of all calls
        self.held = 0  # and of collectives, while they last
        self.told = diagnostics.asks("launches")

    def source(self) -> str:
        for number, call in enumerate(self.lowered.calls):
            if isinstance(call, IndexCheck):
                launch = _Launch(self)
                indices = launch.operand("indices", call.indices, readonly=True)
                title = f"check_{identifier(call.call.primitive.name)}"
                self._launch(launch, title, checked(indices, call.bounds), number, call)
            elif isinstance(call, Wait) or not is_in_c(call.call.primitive):
                self._between(call)
            else:
                self._call(number, call)
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
                f"    char *scratch = memory[0] + {self.lowered.arena};",
                "#pragma omp parallel num_threads(threads)",
                "    sections[section](memory, scratch, error);",
                "}",
                "",
            ]
        )
        header = (HERE / "program.h").read_text(encoding="utf-8")
        return "\n".join(['#include "scalar.h"', header, *products, *functions, program])

    def _call(self, number: int, call: KernelCall) -> None:
        launch = _Launch(self)
        site = launch.site(call)
        calls = [call] if call.prologue is None else [call.prologue, call]
        title = "_".join(x.call.primitive.name for x in calls)
        key = site.key
        if key not in self.bodies:  # equal layers make equal calls
            self.bodies[key] = _body(site), site
        body, site = self.bodies[key]
        if not body.strip():
            return
        self.support += [name for name in site.support if name not in self.support]
        if site.scratch:
            launch.parameters.append("char *scratch")
            before = call.scratch[0].offset - self.lowered.arena
            launch.arguments.append(f"scratch + {before}" if before else "scratch")
            self.scratch = max(self.scratch, before + site.scratch)
        self._launch(launch, identifier(title), body, number, call)

    def _launch(self, launch: _Launch, title: str, body: str, number: int, call: KernelCall | IndexCheck) -> None:
        """Calls a function of this body, for a call that has this number in the list."""
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
        self.kernels.append(CFunction(name, text, call))
        self.sections[-1].append(f"{name}({', '.join(launch.arguments)});")
        if self.told:
            self.sections[-1].append(f"launched(&since, {_quoted(str(self.kernels[-1]))});")
        if checks:
            self.sections[-1].append(f"if (stopped(error, {number}))\n        return;")

    def _between(self, call: KernelCall | Wait) -> None:
        """Python's turn, when all before it has run."""
        if isinstance(call, Wait) or isinstance(call.call.primitive, Collective):
            operand, made = (call.operand,) * 2 if isinstance(call, Wait) else (*call.inputs, *call.outputs)
            step = collective.CollectiveStep(call.call, self.where(operand), self.where(made), self.held)
            self.held += step.nbytes
            self.between.append(step)
        else:
            self.between.append(NumpyCall(call, self.buffer))
        self.sections.append([])

    def address(self, x: Argument) -> str:
        return "(void *)(memory[{}] + {})".format(*self.where(x))

    def where(self, x: Argument) -> tuple[int, int]:
        """The buffer in which an argument begins, and the byte."""
        assert x.place is not None
        return self.buffer(x.place), x.place.offset

    def buffer(self, place: Place) -> int:
        graph = self.graph
        before = {"arena": 0, "state": 1, "constant": 1 + len(graph.states)}
        before["draw"] = before["constant"] + len(graph.constants)
        before["number"] = before["draw"] + 2 * len(graph.draws)
        before["result"] = before["number"] + len(graph.numbers)
        return before[place.buffer] + place.number


def is_written(primitive: Primitive) -> bool:
    """Returns whether programs in C hold a primitive: as a function, as copies, or as Python between two sections."""
    return is_in_c(primitive) or isinstance(primitive, Collective) or primitive.parts is not None


def is_in_c(primitive: Primitive) -> bool:
    """Returns whether there is a C function for a primitive."""
    return isinstance(primitive, Pointwise | Rowwise) or primitive in KERNELS


def _body(site: CCall) -> str:
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

    def operand(self, name: str, x: Any, kind: Any = None, readonly: bool = False) -> COperand:
        """An operand of the kernel, which becomes a parameter of its function unless it is a Python scalar or None."""
        if not isinstance(x, Argument):
            return COperand(name, _WEAK[kind], (), (), constant=x)
        operand = COperand(name, x.dtype, x.shape, x.strides, readonly=readonly)
        if x.place is not None:
            self.parameters.append(f"{'const ' if readonly else ''}{operand.type} *{name}")
            self.arguments.append(self._generator.address(x))
        return operand

    def site(self, call: KernelCall) -> CCall:
        primitive, threads = call.call.primitive, self._generator.threads
        expression = None if call.prologue is None else self._expression(call.prologue, call.call.in_shapes[0])
        names = _names(primitive, primitive.inputs, len(call.inputs), "x" if expression is None else "r")
        reads = zip(names, call.inputs, call.call.in_dtypes, strict=True)
        inputs = [self.operand(name, x, kind, readonly=True) for name, x, kind in reads]
        names = _names(primitive, primitive.outputs, len(call.outputs), "out")
        outputs = [self.operand(*y) for y in zip(names, call.outputs, strict=True)]
        return CCall(call.call, inputs, outputs, threads, expression)

    def _expression(self, prologue: KernelCall, shape: Shape) -> CExpression:
        """The first result of an elementwise call as what another kernel reads, and those that are stored."""
        call = prologue.call
        reads = enumerate(zip(prologue.inputs, call.in_dtypes, strict=True))
        inputs = [self.operand(f"x{i}", x, kind, readonly=True) for i, (x, kind) in reads]
        stored = [i for i, y in enumerate(prologue.outputs) if y is not None]
        outputs = [self.operand(f"y{i}", prologue.outputs[i]) for i in stored]
        typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)
        picked = (0, *stored)
        made = Typed(typed.values, tuple(typed.outputs[i] for i in picked), tuple(typed.dtypes[i] for i in picked))
        return CExpression.of(made, shape, inputs, outputs)


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


class HostArena:
    """Memory that all programs of the process share, one at a time; it grows to what the largest needs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        renew_in_children(self, "lock", threading.Lock)
        self._block = np.empty(0, np.uint8)

    def address(self, size: int, pool: Pool) -> int:
        """Returns the address of `size` bytes, which `pool` counts."""
        if self._block.nbytes < size + 4096:
            pool.count(-self._block.nbytes)
            self._block = np.empty(0, np.uint8)  # freed before the larger one is taken
            self._block = np.empty(size + 4096, np.uint8)
            pool.count(self._block.nbytes)
        return -(-self._block.ctypes.data // 4096) * 4096


ARENA = HostArena()


def scratch_of(graph: Graph, lowered: Lowered) -> int:
    """Bytes of scratch that a program needs behind its arena."""
    generator = _Generator(graph, lowered, thread_count())
    generator.source()
    return generator.scratch + generator.held


class Library:
    """run(states, draws, numbers), as the interpreter's, by generated C.

    kernels: the launches, in order; printed, a line each.
    """

    def __init__(self, graph: Graph, lowered: Lowered, pool: Pool):
        self._graph, self._calls, self._pool = graph, lowered.calls, pool
        self.threads = thread_count()
        generator = _Generator(graph, lowered, self.threads)
        self.source = generator.source()
        self.kernels = generator.kernels
        self._held = lowered.arena + generator.scratch
        self.arena = self._held + generator.held
        self._between = generator.between
        diagnostics.tell("kernels", "\n".join({k.name: k.source for k in self.kernels}.values()))
        self._constants = [x for _, x in graph.constants]
        self._written = [s.after is not s.before for s in graph.states]
        self._library = compiler.load_cached(self.source)
        self._library.run.restype = None

    def __str__(self) -> str:
        return "\n".join(map(str, self.kernels))

    def run(self, states: Sequence[Array], draws: Sequence[tuple[int, int]], numbers: Sequence[Any]) -> list[Array]:
        given = [np.array(n, np.int64) for pair in draws for n in pair]
        given += [np.array(x, v.dtype.numpy) for x, (_, v) in zip(numbers, self._graph.numbers, strict=True)]
        results = [empty(r.value.device, r.view.shape, r.value.dtype) for r in self._graph.results]
        report = _Report(-1, 0, 0)
        arrays = [*states, *self._constants]
        with ARENA.lock:
            addresses = [ARENA.address(self.arena, self._pool), *(x.address or _address(x) for x in arrays)]
            addresses += [n.ctypes.data for n in given] + [_address(x) for x in results]
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
        call = self._calls[report.launch]
        name = call.call.primitive.name
        raise OutOfBounds(f"{name}: index {report.position} is {report.value}: out of range ({call.line})")


def _address(x: Array) -> int:
    x.address = x.storage.memory.ctypes.data + x.offset * x.dtype.itemsize
    return x.address
