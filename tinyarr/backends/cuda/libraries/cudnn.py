"""Attention by cuDNN, through its graph frontend: half types, any strides, a deterministic backward. Floor 3.

A graph is built once a signature, which takes up to a second, and kept in the cache folder. How much workspace it needs
only the library knows, so planning builds the graph.
Source: Dao 2023, "FlashAttention-2"; cuDNN documentation, "Scaled dot product attention".
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .... import cache, dtypes
from ....dtypes import Dtype
from ....views import Shape
from ..planning.registry import Input, LaunchPlan, LibraryCall, Operand, Output, Scratch, library

MODULE = "cudnn"
# The deterministic backward pass works in B H T S half precision numbers; it is run for part of the batch at a time.
WORKSPACE = 2048 * 2**20  # bytes, about


class AttentionSpec(NamedTuple):
    """Key of a cuDNN graph: the operands' shapes (B, H, T, D) and strides, in the order of the arguments."""

    shapes: tuple[Shape, ...]
    strides: tuple[Shape, ...]
    dtype: Dtype
    causal: bool
    scale: float
    backward: bool


@functools.cache
def is_available() -> bool:
    """Returns whether nvidia-cudnn-frontend and cuDNN itself are there."""
    if importlib.util.find_spec(MODULE) is None:
        return False
    try:
        _handle()
    except Exception:  # whatever the library raises where it can't start, attention takes another path
        return False
    return True


@functools.cache
def _library() -> Any:
    """The frontend's module. On its way in it imports PyTorch, where that is installed: seconds, for nothing here."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(MODULE)
    finally:
        if hide:
            del sys.modules["torch"]


def _handle() -> int:
    return _handle_of(_device())


@functools.cache
def _handle_of(device: int) -> int:
    return _library().create_handle()


def _device() -> int:
    from cupy.cuda import runtime

    return runtime.getDevice()


class _Graph:
    """A graph that is ready to run; the operands are numbered in the order of the arguments: inputs, then outputs."""

    def __init__(self, spec: AttentionSpec):
        from cupy.cuda import runtime

        card = runtime.getDeviceProperties(_device())["name"]
        name = cache.name_of("cudnn", spec, card, _library().__version__, _library().backend_version())
        stored = cache.read(name)
        if stored is None:
            self.graph = _built(spec)
            cache.write(name, bytes(self.graph.serialize()))
        else:
            self.graph = _library().pygraph(handle=_handle())
            self.graph.deserialize(_handle(), list(stored))
        self.workspace = self.graph.get_workspace_size()

    def run(self, stream: int, *addresses: int) -> None:
        """Addresses of the inputs, the outputs and the workspace."""
        *operands, workspace = addresses
        _library().set_stream(handle=_handle(), stream=stream)
        self.graph.execute(dict(enumerate(operands)), workspace, handle=_handle())


def _built(spec: AttentionSpec) -> Any:
    cudnn = _library()
    half = {dtypes.float16: cudnn.data_type.HALF, dtypes.bfloat16: cudnn.data_type.BFLOAT16}[spec.dtype]
    wide = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=half, intermediate_data_type=wide, compute_data_type=wide, handle=_handle())

    def described(i: int) -> tuple[list[int], list[int], Any]:
        shape, strides = spec.shapes[i], spec.strides[i]
        if len(shape) == 3:  # log-sum-exp (B, H, T), which the library calls statistics (B, H, T, 1)
            return [*shape, 1], [*strides, 1], wide
        return list(shape), list(strides), half

    def tensor(i: int) -> Any:
        shape, strides, kind = described(i)
        return graph.tensor(dim=shape, stride=strides, data_type=kind, uid=i)

    aligned = cudnn.diagonal_alignment
    queries, keys = (shape[2] for shape in spec.shapes[spec.backward : spec.backward + 2])  # of q and k
    options: dict[str, Any] = {"attn_scale": spec.scale}
    if spec.causal:
        options["diagonal_alignment"] = aligned.TOP_LEFT if queries == keys else aligned.BOTTOM_RIGHT
        options["diagonal_band_right_bound"] = 0
    if spec.backward:
        g, q, k, v, out, lse = inputs = [tensor(i) for i in range(6)]
        outputs = graph.sdpa_backward(
            q=q, k=k, v=v, o=out, dO=g, stats=lse, use_deterministic_algorithm=True, **options
        )
    else:
        q, k, v = inputs = [tensor(i) for i in range(3)]
        outputs = graph.sdpa(q=q, k=k, v=v, generate_stats=True, **options)
    for i, result in enumerate(outputs, len(inputs)):
        shape, strides, kind = described(i)
        result.set_output(True).set_dim(shape).set_stride(strides).set_data_type(kind).set_uid(i)
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    return graph


def _graph(spec: AttentionSpec) -> _Graph | None:
    """The graph, or None where the library has none for these shapes."""
    return _graph_of(spec, _device())


@functools.cache
def _graph_of(spec: AttentionSpec, device: int) -> _Graph | None:
    try:
        return _Graph(spec)
    except (_library().cudnnGraphNotSupportedError, RuntimeError):
        return None


@library("cudnn")
def prepare(spec: AttentionSpec) -> Callable[..., None]:
    graph = _graph(spec)
    assert graph is not None
    return graph.run


def takes(dtype: Dtype, q: Shape, k: Shape, v: Shape) -> bool:
    """Returns whether the library is there and has attention for such operands, if for their sizes too."""
    sizes = q[-1] % 8 == v[-1] % 8 == 0 and max(q[-1], v[-1]) <= 128 and 0 not in (*q, *k)
    return dtype in (dtypes.float16, dtypes.bfloat16) and sizes and is_available()


def plan(inputs: Sequence[Operand], outputs: Sequence[Operand], *, causal: bool, scale: float) -> LaunchPlan | None:
    """Attention (q, k, v -> out, lse) or its gradient (g, q, k, v, out, lse -> dq, dk, dv); None where it can't be."""
    backward = len(inputs) == 6
    q, k, v = inputs[1:4] if backward else inputs
    if not takes(q.dtype, q.shape, k.shape, v.shape):
        return None
    B, H, T, _ = q.shape
    at_once = B if not backward else max(min(WORKSPACE // (H * T * k.shape[2] * 2), B), 1)
    every = [*inputs, *outputs]
    steps, workspace = [], 0
    for first in range(0, B, at_once):
        part = min(at_once, B - first)
        shapes = tuple((part, *x.shape[1:]) for x in every)
        spec = AttentionSpec(shapes, tuple(x.strides for x in every), q.dtype, causal, scale, backward)
        graph = _graph(spec)
        if graph is None:
            return None
        workspace = max(workspace, graph.workspace)
        offsets = [first * x.strides[0] * x.dtype.itemsize for x in every]
        arguments: list[Input | Output | Scratch] = [Input(i, offsets[i]) for i in range(len(inputs))]
        arguments += [Output(i, offsets[len(inputs) + i]) for i in range(len(outputs))]
        steps.append(LibraryCall("cudnn", spec, (*arguments, Scratch(0))))
    return LaunchPlan(steps, (max(workspace, 1),))
