"""From a plan to running kernels: load the machine code once, write the arguments in at each call, launch. Floor 3."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from cupy.cuda import driver
from cupy.cuda.function import Module

from ..planning.compiler import compile_source
from ..planning.registry import (
    LIBRARIES,
    Input,
    Launch,
    LaunchPlan,
    LibraryCall,
    Output,
    Report,
    Scratch,
    Source,
    Struct,
)
from .device_errors import DeviceErrors
from .memory import DeviceMemory

_KINDS = {Input: 0, Output: 1, Scratch: 2}


class Loader:
    """The loaded modules of one device, by source, and the libraries' prepared calls."""

    def __init__(self, arch: str, stream: Any, memory: DeviceMemory, reports: DeviceErrors):
        self._arch = arch
        self.stream = stream
        self.memory = memory
        self.reports = reports
        self._modules: dict[Source, Module] = {}
        self._prepared: dict[tuple, Callable] = {}

    def compile(self, plans: Iterable[LaunchPlan]) -> None:
        """Compiles what the plans need and isn't there yet, side by side."""
        launches = [step for plan in plans for step in plan.steps if isinstance(step, Launch)]
        sources = list(dict.fromkeys(x.source for x in launches if x.source not in self._modules))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            codes = pool.map(lambda source: compile_source(source, self._arch), sources)
            for source, code in zip(sources, codes, strict=True):
                self._load(source, code)

    def _load(self, source: Source, code: bytes) -> Module:
        module = self._modules[source] = Module()
        module.load(code)
        return module

    def function(self, launch: Launch) -> Any:
        module = self._modules.get(launch.source)
        if module is None:
            module = self._load(launch.source, compile_source(launch.source, self._arch))
        function = module.get_function(launch.function)
        if launch.shared_bytes:
            attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, attribute, launch.shared_bytes)
        return function

    def prepare(self, call: LibraryCall) -> Callable:
        key = call.name, call.spec
        if key not in self._prepared:
            self._prepared[key] = LIBRARIES[call.name](call.spec)
        return self._prepared[key]

    def steps(self, plan: LaunchPlan) -> list[Callable[[Sequence[Sequence[int]]], None]]:
        """Each step of a plan, to be called by one thread at a time with addresses of inputs, outputs and scratch."""
        return [_bind(step, self) for step in plan.steps]

    def bind(self, plan: LaunchPlan) -> Callable[[Sequence[int], Sequence[int]], None]:
        """run(inputs, outputs): addresses (Python scalars as their 64 bits) in, the plan's steps launched."""
        steps = self.steps(plan)
        allocate, scratch = self.memory.allocate, plan.scratch
        lock = threading.Lock()  # the arguments' memory belongs to the plan

        def run(inputs: Sequence[int], outputs: Sequence[int]) -> None:
            blocks = [allocate(n) for n in scratch]
            addresses = inputs, outputs, [block.memory.ptr for block in blocks]
            with lock:
                for step in steps:
                    step(addresses)

        return run


def _bind(step: Launch | LibraryCall, loader: Loader) -> Callable:
    if isinstance(step, LibraryCall):
        return _bind_library(step, loader)
    function = loader.function(step)
    members = [tuple(a) if isinstance(a, Struct) else (a,) for a in step.arguments]
    words = (ctypes.c_uint64 * max(sum(map(len, members)), 1))()
    pointers = (ctypes.c_void_p * max(len(members), 1))()
    patches = []
    i = 0
    for number, parts in enumerate(members):
        pointers[number] = ctypes.addressof(words) + 8 * i
        for argument in parts:
            if type(argument) in _KINDS:
                patches.append((i, _KINDS[type(argument)], argument.number, argument.offset))
            elif isinstance(argument, np.ndarray):
                pointers[number] = argument.ctypes.data
            elif type(argument) is Report:
                words[i] = loader.reports.address(argument)
            else:
                words[i] = bits(argument)
            i += 1
    shape = (*step.grid, *step.block, step.shared_bytes, loader.stream.ptr, ctypes.addressof(pointers), 0)

    def run(addresses: Sequence[Sequence[int]]) -> None:
        for i, kind, number, offset in patches:
            words[i] = addresses[kind][number] + offset
        driver.launchKernel(function.ptr, *shape)

    run.keeps = pointers, step.arguments  # type: ignore[attr-defined]  # whose addresses are in use
    return run


def _bind_library(step: LibraryCall, loader: Loader) -> Callable:
    call, stream = loader.prepare(step), loader.stream.ptr
    picks = [(_KINDS[type(a)], a.number, a.offset) for a in step.arguments]

    def run(addresses: Sequence[Sequence[int]]) -> None:
        call(stream, *[addresses[kind][number] + offset for kind, number, offset in picks])

    return run


def bits(x: Any) -> int:
    """A scalar argument as 64 bits, its own in the lowest bytes; Python's int and float are int64 and float64."""
    if type(x) in (bool, int):
        if not -(2**63) <= x < 2**63:
            raise OverflowError(x)
        return x & (2**64 - 1)
    if type(x) is float:
        return struct.unpack("<Q", struct.pack("<d", x))[0]
    return int.from_bytes(np.asarray(x).tobytes().ljust(8, b"\0"), "little")
