"""Primitive, the registry, and `apply`, the one function through which every operation on a Tensor passes. Floor 1.

A primitive states once what an operation is: the shapes and dtypes of its results (`infer`), its gradient, and, where
it can be written in other operations, its `composite`. How it runs is the backends' business. `apply` finds the
`Call` (the primitive specialised to shapes, dtypes and parameters, inferred once and kept), hands it to the current
executor (eager, or a trace), and puts a node on the tape where a gradient is wanted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

from .. import eager
from ..array import Array
from ..device import Device
from ..dtypes import Dtype, python_scalar, scalar_kind
from ..errors import ArgumentError, DeviceError, GradientError
from ..tape import no_grad, record, recording
from ..tensor import Tensor, require_tensors, result_tensor
from ..views import Shape, View

MOST_CALLS = 4096  # kept for one primitive; an entry takes about 2 KB

registry: dict[str, Primitive] = {}
executor: ContextVar[Any] = ContextVar("executor", default=eager)


class Rule(NamedTuple):
    """Gradient rule of a node: what it saves, and the function from output gradients to input gradients.

    saved: for each saved value whether it is an output, and its number.
    backward: (call, needs, gs, saved tensors) -> one gradient or None for each operand.
    """

    saved: tuple[tuple[bool, int], ...]
    backward: Callable[[Call, tuple[bool, ...], Sequence[Tensor | None], Sequence[Any]], Sequence[Tensor | None]]


class Call:
    """A primitive specialised to its operands' shapes and dtypes and to its parameters.

    A Python scalar among the operands has shape () and, as dtype, its kind. `launch` is the executor's prepared
    kernel; `rules` the gradient rules by which operands need one.
    """

    __slots__ = (
        "casts", "device", "differentiable", "in_dtypes", "in_shapes", "launch", "out_dtypes", "out_shapes", "params",
        "primitive", "rules",
    )  # fmt: skip

    def __init__(self, primitive: Primitive, device: Device, shapes, dtypes, params: dict[str, Any]):
        self.primitive = primitive
        self.device = device
        self.params = params
        self.casts = primitive.casts(dtypes)
        self.in_shapes: tuple[Shape, ...] = shapes
        self.in_dtypes: tuple[Dtype | str, ...] = self.casts or dtypes
        results = primitive.infer(shapes, self.in_dtypes, **params)
        self.out_shapes: tuple[Shape, ...] = tuple(shape for shape, _ in results)
        self.out_dtypes: tuple[Dtype, ...] = tuple(dtype for _, dtype in results)
        self.differentiable = not primitive.non_differentiable and any(d.is_float for d in self.out_dtypes)
        self.launch: Any = None
        self.rules: dict[tuple[bool, ...], Rule] = {}

    def rule(self, needs: tuple[bool, ...]) -> Rule:
        if needs not in self.rules:
            self.rules[needs] = self.primitive.rule(self, needs)
        return self.rules[needs]

    def __repr__(self) -> str:
        operands = ", ".join(f"{d}{list(s)}" for s, d in zip(self.in_shapes, self.in_dtypes, strict=True))
        return f"{self.primitive.name}({operands})"


class Bounds(NamedTuple):
    """The integers that operand number `operand` of a call may hold: low <= i < high, and `ignored`.

    name, first: for messages, one of them, and the number of the first.
    """

    operand: int
    low: int
    high: int
    ignored: int | None = None
    name: str = "index"
    first: int = 0


class Primitive:
    """An operation that backends implement.

    Compiler and backends compare primitives as objects and ask the traits below, never a name: a user's operation may
    be called as one of tinyarr's is.

    name: unique in the registry; a user's own may be defined again (in a notebook, say), tinyarr's may not.
    infer(shapes, dtypes, **params): one (shape, dtype) for each result; raises for operands that do not fit.
    inputs, outputs: the operands' and results' names, which the gradient uses to say what it needs saved; an output
    named `*parts` stands for any number of them.
    view(view, **params): for operations that only look at memory differently, the operand's View through them, or
    None where it takes a copy.
    composite(*operands, **params): the plain definition in other public operations.
    promotes(dtypes): the dtype to which all operands are cast first.
    variadic: takes any number of operands.
    derived: made by the library from another primitive (its gradient), and so not in the registry.

    Traits:

    reads: how kernels go through the operands. "elements": an elementwise operation, a Pointwise; a result may be made
    in the memory of any operand. "runs": the first operand a run of neighbours at a time, so that an elementwise
    expression may take its place. "any": in their own way.
    overwrites: of what reads no elements, the number of the operand in whose memory the first result may be made,
    because kernels read a row of it to the end, or an element, before they write the same one; None: no operand.
    moves: it only copies, casts or fills.
    cheap: it takes about the time of reading operands and writing results, and so may run again in place of being held.
    reduces: its result is small beside its operands.
    parts(view, in_shapes, params): for an operation that only puts operands into its result, and zeros around them: of
    a view of the result the part that each operand becomes. Such an operation is no kernel but copies.
    bounds(in_shapes, params): the Bounds of an operand of indices, which kernels check.
    gradient_of: the primitive whose derived gradient it is.
    follows_composite: its gradient is the vjp of its composite, so that where no kernel is, the composite is recorded.
    """

    cast: Callable[[Any, Dtype], Any]  # astype, which elementwise.py puts here: it is built on this module
    captured: tuple[str, ...] = ()  # of its attributes, by the walk of a compiled function: all others are caches
    gradient_of: Primitive | None = None
    gradients_are_derived = False  # and can be differentiated as they are, without the composite

    def __init__(
        self,
        name: str,
        infer: Callable,
        *,
        inputs: Sequence[str] = ("x",),
        outputs: Sequence[str] = ("out",),
        view: Callable[..., View | None] | None = None,
        composite: Callable | None = None,
        promotes: Callable[[Sequence[Dtype]], Dtype] | None = None,
        variadic: bool = False,
        derived: bool = False,
        reads: str = "any",
        overwrites: int | None = None,
        moves: bool = False,
        cheap: bool = False,
        reduces: bool = False,
        parts: Callable[[View, Sequence[Shape], dict[str, Any]], Sequence[View]] | None = None,
        bounds: Callable[[Sequence[Shape], dict[str, Any]], Bounds] | None = None,
        follows_composite: bool = False,
    ):
        if not derived and name in registry and registry[name].built_in:
            raise ArgumentError(f"Primitive: {name!r} is one of tinyarr's own: choose another name")
        self.name: str = name
        self.built_in: bool = is_built_in(infer)
        self.infer = infer
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.returns_tuple = len(self.outputs) > 1 or self.outputs[0].startswith("*")
        self.view = view
        self.composite = composite
        self.promotes = promotes
        self.variadic = variadic
        self.reads = reads
        self.overwrites = overwrites
        self.moves = moves
        self.cheap = cheap
        self.reduces = reduces
        self.parts = parts
        self.bounds = bounds
        self.follows_composite = follows_composite
        self.non_differentiable: bool = False
        self._backward: tuple[Callable, tuple[tuple[bool, int], ...], frozenset[str]] | None = None
        self._calls: dict[tuple, Call] = {}
        if not derived:
            registry[name] = self

    def __repr__(self) -> str:
        return f"Primitive({self.name})"

    def gradient(self, function: Callable) -> Callable:
        """Decorator: `function` is the gradient, `(g, saved..., *, params..., needs, shapes) -> gradients`.

        `g` is the output's gradient (`gs`, a tuple with None for unused outputs, where there are several). Every
        other positional parameter is named after an input or output, and so says what is kept for backward. The
        keyword-only ones are the primitive's own parameters that it uses, and on demand `needs` (which inputs want
        a gradient), `shapes` and `dtypes` (of the inputs). It returns a gradient, or None, for each input; the
        tensor alone where there is one input.
        """
        names = inspect.signature(function).parameters.values()
        positional = [p.name for p in names if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = frozenset(p.name for p in names if p.kind is p.KEYWORD_ONLY)
        if positional[:1] not in (["g"], ["gs"]):
            raise ArgumentError(f"{self.name}.gradient: the first parameter must be g (or gs), not {positional[:1]}")
        saved = []
        for name in positional[1:]:
            if name not in self.inputs + self.outputs:
                raise ArgumentError(f"{self.name}.gradient: {name!r} is none of {self.inputs + self.outputs}")
            is_output = name in self.outputs
            saved.append((is_output, (self.outputs if is_output else self.inputs).index(name)))
        self._backward = function, tuple(saved), keywords
        return function

    def no_gradient(self) -> Primitive:
        """Declares that no gradient flows through the operation (integer results, or constant almost everywhere)."""
        self.non_differentiable = True
        return self

    @property
    def has_gradient(self) -> bool:
        return self._backward is not None

    def casts(self, dtypes: tuple) -> tuple[Dtype, ...] | None:
        """The dtypes that the operands must be cast to first, or None where they fit as they are."""
        if self.promotes is None:
            return None
        common = self.promotes(dtypes)
        return None if all(d is common for d in dtypes) else (common,) * len(dtypes)

    def rule(self, call: Call, needs: tuple[bool, ...]) -> Rule:
        if self._backward is None:
            raise GradientError(
                f"{self.name}: has no gradient: declare one with @{self.name}.gradient or no_gradient()"
            )
        function, saved, keywords = self._backward

        def backward(call, needs, gs, values):
            kwargs = {k: v for k, v in call.params.items() if k in keywords}
            for name, value in (("needs", needs), ("shapes", call.in_shapes), ("dtypes", call.in_dtypes)):
                if name in keywords:
                    kwargs[name] = value
            grads = function(gs if self.returns_tuple else gs[0], *values, **kwargs)
            return (grads,) if grads is None or isinstance(grads, Tensor) else grads

        return Rule(saved, backward)

    def call(self, device: Device, key: tuple, operands: Sequence[Any], params: dict[str, Any]) -> Call:
        """Infers the Call for operands seen for the first time and keeps it under `key`."""
        if not self.variadic and len(operands) != len(self.inputs):
            raise ArgumentError(f"{self.name}: takes {len(self.inputs)} operands {self.inputs}, {len(operands)} came")
        shapes = tuple(x.shape if isinstance(x, Array) else () for x in operands)
        dtypes = tuple(x.dtype if isinstance(x, Array) else scalar_kind(x) for x in operands)
        if len(self._calls) >= MOST_CALLS:
            self._calls.clear()  # shapes that never come back, as in generation, must not pile up
        call = self._calls[key] = Call(self, device, shapes, dtypes, params)
        return call


def apply(primitive: Primitive, *operands: Any, out: Any = None, device: Device | None = None, **params: Any) -> Any:
    """Runs `primitive` on tensors and Python scalars under the current executor, and records it on the tape.

    Returns a Tensor, or a tuple of them where the primitive has several outputs. `out`, a tensor or tuple of them,
    is where the results are written instead; its version counter goes up. `device` is needed where no operand is a
    tensor.
    """
    if primitive.view is not None and out is None and (viewed := _viewed(primitive, operands, params)) is not None:
        return viewed
    wants_gradient = False
    arrays: list[Any] = []
    key: list[Any] = list(parameter_key(params)) if params else []
    for x in operands:
        if isinstance(x, Tensor):
            array = x.array
            arrays.append(array)
            key += array.shape, array.dtype, array.device
            if x._requires_grad:
                wants_gradient = True
        else:
            arrays.append(x)
            key.append(type(x))
    if device is not None:
        key.append(device)
    call = primitive._calls.get(tuple(key))
    if call is None:
        accepted = _as_operands(primitive, operands, device)
        if any(x is not y for x, y in zip(accepted, operands, strict=True)):
            return apply(primitive, *accepted, out=out, device=device, **params)
        call = primitive.call(_device_of(primitive, operands, device), tuple(key), arrays, params)
    if call.casts is not None:
        operands = tuple(primitive.cast(x, dtype) for x, dtype in zip(operands, call.casts, strict=True))
        return apply(primitive, *operands, out=out, **params)

    wants_gradient = wants_gradient and call.differentiable and recording.get()
    if wants_gradient and primitive.composite is not None and not primitive.has_gradient:
        return primitive.composite(*operands, **params)
    if out is not None:
        return _write(call, operands, arrays, out, wants_gradient)
    results = executor.get().run(call, arrays, None)
    if results is None:  # the executor has no kernel
        # A gradient by hand need not be that of the composite, nor round as it does.
        keeps_gradient = primitive.non_differentiable or (primitive.has_gradient and not primitive.follows_composite)
        with no_grad() if keeps_gradient else nullcontext():
            made = _composite(call)(*operands, **params)
        if not keeps_gradient:
            return made
        results = [x.array for x in (made if isinstance(made, tuple | list) else (made,))]
    tensors = list(map(result_tensor, results))
    if wants_gradient:
        record(call, operands, tensors)
    return tuple(tensors) if primitive.returns_tuple else tensors[0]


def _viewed(primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """A view that nothing records, for which no Call is kept: starts of slices seldom come again. None for others."""
    x = operands[0]
    if executor.get() is not eager or not isinstance(x, Tensor) or (x._requires_grad and recording.get()):
        return None
    array = x.array
    found: Any = primitive.view(View(array.shape, array.strides, array.offset), **params)
    if primitive.returns_tuple:
        return tuple([result_tensor(array.through(view)) for view in found])
    return None if found is None else result_tensor(array.through(found))


def _composite(call: Call) -> Callable:
    if call.primitive.composite is None:
        raise DeviceError(
            f"{call.primitive.name}: has no kernel on {call.device} and no composite: register a kernel, or define the "
            "primitive with composite="
        )
    return call.primitive.composite


def _write(call: Call, operands: Sequence[Any], arrays: Sequence[Any], out: Any, wants_gradient: bool) -> Any:
    """Runs `call` into the memory of existing tensors."""
    outs = tuple(out) if isinstance(out, tuple | list) else (out,)
    for o in outs:
        if not isinstance(o, Tensor):
            require_tensors(call.primitive.name, out=o)
        wants_gradient = wants_gradient or (o._requires_grad and recording.get())
    if len(outs) != len(call.out_shapes):
        came = f"out holds {len(outs)}, the results are {len(call.out_shapes)}"
        raise ArgumentError(f"{call.primitive.name}: {came}: give a tensor for each result")
    if wants_gradient:
        raise GradientError(
            f"{call.primitive.name}: out= takes part in a gradient: a write can't be differentiated; "
            "use where or concat to build a new tensor, or write under no_grad()"
        )
    if executor.get().run(call, arrays, [o.array for o in outs]) is None:
        eager.check_outs(call, [o.array for o in outs])
        with no_grad():
            made = _composite(call)(*operands, **call.params)
            for o, x in zip(outs, made if isinstance(made, tuple | list) else (made,), strict=True):
                o.assign(x)
    return out


def is_built_in(function: Callable) -> bool:
    """Returns whether a function is tinyarr's own; one made by exec has no module."""
    return (getattr(function, "__module__", None) or "").startswith("tinyarr.")


def defined(primitive: Primitive | str) -> Primitive:
    """The primitive itself, or that of a name in the registry. Raises ArgumentError where there is none."""
    if isinstance(primitive, Primitive):
        return primitive
    if primitive not in registry:
        raise ArgumentError(f"kernel: no primitive is called {primitive!r}: define it before its kernels")
    return registry[primitive]


def parameter_key(params: dict[str, Any]) -> tuple:
    """The parameters as a key that tells 1 from 1.0 and True, and 0.0 from -0.0, which Python calls equal."""
    return tuple([(k, type(v), repr(v) if type(v) is float else v) for k, v in params.items()])


def _as_operands(primitive: Primitive, operands: Sequence[Any], device: Device | None) -> tuple[Any, ...]:
    """Operands that `apply` doesn't know: NumPy scalars become Python ones, anything else is refused."""
    result = []
    for name, x in zip(primitive.inputs * len(operands), operands, strict=False):
        x = python_scalar(x)
        if not isinstance(x, Tensor) and scalar_kind(x) is None:
            advice = "make it a tensor with tinyarr.Tensor(...)"
            raise TypeError(f"{primitive.name}: {name} is {type(x).__name__}: {advice}")
        result.append(x)
    if device is None and not any(isinstance(x, Tensor) for x in result):
        raise TypeError(f"{primitive.name}: needs at least one tensor, got {result}: make one with tinyarr.Tensor(...)")
    return tuple(result)


def _device_of(primitive: Primitive, operands: Sequence[Any], device: Device | None) -> Device:
    """The one device on which all operands are. Raises DeviceError where they are on several."""
    places: set[Any] = {x.device for x in operands if isinstance(x, Tensor)} or {device}
    if len(places) > 1:
        where = ", ".join(
            f"{name} is on {x.device}"
            for name, x in zip(primitive.inputs * len(operands), operands, strict=False)
            if isinstance(x, Tensor)
        )
        raise DeviceError(f"{primitive.name}: {where}: move them to one device with .to(device)")
    return places.pop()
