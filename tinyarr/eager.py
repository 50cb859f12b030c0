"""The eager executor: allocate the results, run the backend's kernel, at once. Floor 1.

`run` prepares a launch for each Call the first time and keeps it: which memory the results need, which operands must be
copied to fit the kernel's layout, and the kernel itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import views
from .array import Array, empty
from .errors import ArgumentError, DeviceError, DtypeError, OutOfBounds, ShapeError
from .views import View

Launch = Callable[[Sequence[Any], Sequence[Array] | None], Sequence[Array] | None]


def run(call, operands: Sequence[Any], outs: Sequence[Array] | None) -> Sequence[Array] | None:
    """Runs `call` on arrays and Python scalars; returns fresh arrays, or writes into `outs` and counts their versions.

    Returns None where the backend has no kernel and the primitive's composite must serve.
    """
    launch = call.launch
    if launch is None:
        launch = call.launch = _prepare(call)
    return launch(operands, outs)


def _prepare(call) -> Launch:
    if call.primitive.view is not None:
        return _view_launch(call)
    kernel = call.device.backend.kernel(call)
    if kernel is None:
        return _composite_launch(call)
    backend = call.device.backend
    results = [
        (shape, dtype, views.contiguous_strides(shape), views.size(shape) * dtype.itemsize)
        for shape, dtype in zip(call.out_shapes, call.out_dtypes, strict=True)
    ]
    empty = backend.empty
    function = kernel.function
    several, only = len(results) != 1, results[0]  # a comprehension over one result costs 0.2 µs
    layouts = None
    if kernel.layouts is not None:
        dense = [views.contiguous_strides(shape) for shape in call.in_shapes]
        layouts = list(zip(kernel.layouts(call), dense, strict=True))

    def launch(operands: Sequence[Any], outs: Sequence[Array] | None) -> Sequence[Array]:
        if outs is not None:
            return _write(call, launch, kernel, operands, outs)
        if layouts is not None:
            operands = [
                x if type(x) is not Array or x.strides == dense else fit(x, layout)
                for x, (layout, dense) in zip(operands, layouts, strict=True)
            ]
        outputs = [empty(*result) for result in results] if several else [empty(*only)]
        try:
            function(_handles(operands), [x.data for x in outputs] if several else (outputs[0].data,))
        except OverflowError:
            raise _too_wide(call, operands) from None
        return outputs

    return launch


def _too_wide(call: Any, operands: Sequence[Any]) -> DtypeError:
    wide = next((x for x in operands if type(x) is int and not -(2**63) <= x < 2**63), 0)
    shown = wide if wide.bit_length() <= 128 else f"of {wide.bit_length()} bits"
    return DtypeError(f"{call.primitive.name}: the Python integer {shown} does not fit int64: use a float or astype")


def _handles(operands: Sequence[Any]) -> list[Any]:
    """Returns the kernel's arguments: the arrays' handles, and Python scalars as they are."""
    # `_data` first, because the property costs 0.1 µs.
    return [(x.data if x._data is None else x._data) if type(x) is Array else x for x in operands]


def _composite_launch(call) -> Launch:
    """Leaves a call to its composite, once its indices are checked as a kernel does."""
    bounds = None if call.primitive.bounds is None else call.primitive.bounds(call.in_shapes, call.params)

    def launch(operands: Sequence[Any], outs: Sequence[Array] | None) -> None:
        if bounds is not None and call.device.kind != "meta":
            found = call.device.backend.to_numpy(operands[bounds.operand]).reshape(-1)
            bad = ((found < bounds.low) | (found >= bounds.high)) & (found != bounds.ignored)
            if bad.any():
                at = int(bad.argmax())
                also = "" if bounds.ignored is None else f", or ignore_index ({bounds.ignored})"
                raise OutOfBounds(
                    f"{call.primitive.name}: {bounds.name} {bounds.first + at} is {found[at]}: "
                    f"use {bounds.low} to {bounds.high - 1}{also}"
                )

    return launch


def _view_launch(call) -> Launch:
    def views_of(view: View) -> list[View] | None:
        found = call.primitive.view(view, **call.params)
        return [found] if isinstance(found, View) else found

    dense = views.contiguous(call.in_shapes[0])
    of_dense = views_of(dense)
    assert of_dense is not None

    def launch(operands: Sequence[Any], outs: Sequence[Array] | None) -> Sequence[Array]:
        if outs is not None:
            raise ArgumentError(f"{call.primitive.name}: out= came, but the result is a view: assign it instead")
        (x,) = operands
        if x.strides != dense.strides:
            found = views_of(x.view)
            if found is not None:
                return [x.through(view) for view in found]
            x = contiguous_copy(x)
        return [Array(x.storage, x.dtype, shape, strides, x.offset + offset) for shape, strides, offset in of_dense]

    return launch


def observe(x: Array) -> None:
    """Does nothing where Python is about to read an array's elements: they are there. A trace refuses."""


def constant(x: Array) -> None:
    """Does nothing where an array was made of Python numbers. A trace remembers it."""


def check_outs(call, outs: Sequence[Array]) -> None:
    """Raises where results of `call` can't be written into `outs`."""
    for out, shape, dtype in zip(outs, call.out_shapes, call.out_dtypes, strict=True):
        if out.device is not call.device:
            raise DeviceError(f"{call.primitive.name}: out is on {out.device}, the operands on {call.device}")
        if out.shape != shape:
            raise ShapeError(
                f"{call.primitive.name}: out has shape {out.shape}, the result {shape}: they must be equal"
            )
        if out.dtype is not dtype:
            raise DtypeError(
                f"{call.primitive.name}: out has dtype {out.dtype.name}, the result {dtype.name}: they must be equal"
            )
        if 0 in out.strides and any(n > 1 and s == 0 for n, s in zip(out.shape, out.strides, strict=True)):
            raise ShapeError(
                f"{call.primitive.name}: out is a broadcast view: several elements share memory, copy it first"
            )


def _write(call, launch: Launch, kernel, operands: Sequence[Any], outs: Sequence[Array]) -> Sequence[Array]:
    """Runs into existing memory, through a temporary where the kernel can't bear its strides or an operand in it."""
    check_outs(call, outs)
    clash = False
    for x in operands:
        if type(x) is Array:
            clash = clash or any(out.overlaps(x) and not (kernel.in_place and out.same_place(x)) for out in outs)
    if clash or not (kernel.in_place or all(views.is_contiguous(out.view) for out in outs)):
        fresh = launch(operands, None)
        assert fresh is not None
        for out, x in zip(outs, fresh, strict=True):
            out.device.backend.copy(x, out)
    else:
        if kernel.layouts is not None:
            operands = [fit(x, layout) for x, layout in zip(operands, kernel.layouts(call), strict=True)]
        try:
            kernel.function(_handles(operands), _handles(outs))
        except OverflowError:
            raise _too_wide(call, operands) from None
    for out in outs:
        out.storage.version += 1
    return outs


def contiguous_copy(x: Array) -> Array:
    """A row-major copy in memory of its own."""
    result = empty(x.device, x.shape, x.dtype)
    x.device.backend.copy(x, result)
    return result


def fit(x: Any, layout: str) -> Any:
    """`x` itself where its strides suit the kernel, else a row-major copy.

    Layouts: 'any' strides; 'forward', none negative; 'rows', the last axis contiguous and the rows apart; 'vectors',
    the last axis contiguous and every row beginning at a multiple of 8 elements; 'matrices', the last two axes without
    gaps; 'dense', row-major without gaps; 'matrix', one of the last two axes contiguous and the other at least as long
    apart (what a BLAS takes, transposed or not), and a single row or column contiguous (else it adds up otherwise).
    """
    return x if type(x) is not Array or suits(x.view, layout) else contiguous_copy(x)


def suits(view: View, layout: str) -> bool:
    """Returns whether a kernel that asks for a layout takes the view as it is.

    A transposed matrix is a 'matrix' for a BLAS, but not dense; every other column of one is neither:

    >>> from tinyarr.eager import suits
    >>> from tinyarr.views import View
    >>> [suits(View((3, 2), (1, 3)), layout) for layout in ("matrix", "dense", "rows")]
    [True, False, False]
    >>> suits(View((3, 2), (4, 2)), "matrix")
    False
    """
    if layout == "any":
        return True
    if views.size(view.shape) <= 1 and layout != "forward":  # NumPy walks backwards through a single element too
        return True
    if layout == "forward":
        return not view.strides or min(view.strides) >= 0
    if layout == "dense":
        return views.is_contiguous(view)
    if layout == "rows":
        apart = len(view.shape) < 2 or view.strides[-2] >= view.shape[-1]  # else NumPy's products don't use the BLAS
        return not view.shape or (view.strides[-1] == 1 and apart)
    if layout == "vectors":
        return view.strides[-1] == 1 and not any(s % 8 or s < 0 for s in (view.offset, *view.strides[:-1]))
    if layout == "matrices":
        return view.strides[-2:] == views.contiguous_strides(view.shape[-2:])
    if len(view.shape) < 2:
        return view.strides[-1:] == (1,)
    (m, n), (sm, sn) = view.shape[-2:], view.strides[-2:]
    if (m == 1 and sn != 1) or (n == 1 and sm != 1):
        return False
    return (sn == 1 and sm >= n) or (sm == 1 and sn >= m)
