"""Typing of a scalar expression: from an `Expr` graph and the operands' dtypes to typed values. Floor 1.

The result is what backends print or evaluate: a list in which each value names its operation, its arguments (numbers
of earlier values), and the dtype in which it is computed. Every conversion is an explicit `cast`. Half types are
computed in float32 and rounded once, when the output is stored. Constants and Python scalars are weak: among
themselves they are computed in float64 and int64, and they take the dtype of the strong operand that they meet.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from .. import dtypes
from ..dtypes import Dtype
from ..errors import DtypeError
from .scalar import Expr, operation_of, topological

Type = Dtype | str
"""A strong type is a Dtype; a weak one the kind of a Python scalar: 'bool', 'signed' or 'float'."""

_WEAK_COMPUTE = {"bool": dtypes.bool, "signed": dtypes.int64, "float": dtypes.float64}


@dataclass(frozen=True, slots=True)
class TypedStep:
    """One step: `op` applied to earlier values `args`, computed in `dtype`.

    `value` is the number of an input, a constant, the axis of an index, or the stream of random bits. A `uniform`
    value is the same for all elements: it depends on 0-d operands and constants alone and is computed once.
    """

    op: str
    args: tuple[int, ...]
    dtype: Dtype
    value: Any
    uniform: bool


@dataclass(frozen=True, slots=True)
class Typed:
    """A typed expression: its values in order, which of them are the outputs, and the dtypes they are stored in."""

    values: tuple[TypedStep, ...]
    outputs: tuple[int, ...]
    dtypes: tuple[Dtype, ...]


def _compute(t: Type) -> Dtype:
    return _WEAK_COMPUTE[t] if isinstance(t, str) else t.compute


def _kind(t: Type) -> str:
    return t if isinstance(t, str) else t.kind


def _unify(types: list[Type]) -> Type:
    strong = [t for t in types if isinstance(t, Dtype)]
    highest = max((t for t in types if isinstance(t, str)), key=dtypes.KINDS.index, default=None)
    if not strong:
        assert highest is not None
        return highest
    result = strong[0]
    for t in strong[1:]:
        result = dtypes.promote(result, t)
    return result if highest is None else dtypes.promote_weak(result, highest)


def _reject(name: str, op: str, types: list[Type], needs: str):
    came = ", ".join(t if isinstance(t, str) else t.name for t in types)
    raise DtypeError(f"{name}: {op} of {came}: the operands must be {needs}")


def _operand_and_result_type(name: str, node: Expr, types: list[Type]) -> tuple[Type, Type]:
    """The type in which `node` takes its arguments, and the type of its result."""
    rule = operation_of(node).typing
    if rule == "cast" or rule == "bitcast":
        assert isinstance(node.value, Dtype)
        if rule == "bitcast" and (isinstance(types[0], str) or types[0].itemsize != node.value.itemsize):
            _reject(name, node.op, types, f"of {node.value.name}'s size")
        return types[0], node.value
    if rule == "weak":
        kind = _kind(types[0])
        kind = "signed" if kind == "unsigned" else kind
        return kind, kind
    if rule == "random_bits":
        return dtypes.uint64, dtypes.uint32
    t = _unify(types[1:] if rule == "where" else types)
    if rule == "arithmetic" and _kind(t) == "bool":
        if isinstance(t, Dtype):
            _reject(name, node.op, types, "numbers: use & | ^ ~ on bool, or astype")
        t = "signed"
    elif rule == "float" and _kind(t) != "float":
        t = "float" if isinstance(t, str) else dtypes.float32
    elif rule == "wide float" and (isinstance(t, str) or t.compute is not t or not t.is_float):
        _reject(name, node.op, types, "float32 or float64; half types are computed in float32")
    elif rule == "predicate":
        t = t if _kind(t) == "float" else dtypes.float64
    elif rule == "bits" and _kind(t) == "float":
        _reject(name, node.op, types, "bool or integers")
    elif rule == "fold" and node.op.endswith("sum") and _kind(t) != "float":  # as ops.reduce.sum does
        t = "signed" if isinstance(t, str) else dtypes.uint64 if t.kind == "unsigned" else dtypes.int64
    elif rule == "integers" and _kind(t) in ("bool", "float"):
        _reject(name, node.op, types, "integers")
    result = dtypes.bool if rule in ("comparison", "predicate") else t
    return t, result


def type_expression(
    name: str, outputs: tuple[Expr, ...], operands: tuple[Type, ...], uniform: tuple[bool, ...]
) -> Typed:
    """Types `outputs` for operands of the given types; `uniform` tells which of them are 0-d or Python scalars.

    `name` is the operation's, for messages. Raises DtypeError where a dtype does not fit.
    """
    values: list[TypedStep] = []
    known: dict[tuple, int] = {}
    typed: dict[Expr, tuple[int, Type]] = {}

    def emit(op: str, args: tuple[int, ...], dtype: Dtype, value=None, is_uniform: bool | None = None) -> int:
        key = (op, args, dtype, type(value), repr(value) if type(value) is float else value)
        if key not in known:
            if is_uniform is None:
                is_uniform = all(values[a].uniform for a in args)
            known[key] = len(values)
            values.append(TypedStep(op, args, dtype, value, is_uniform))
        return known[key]

    def convert(number: int, dtype: Dtype) -> int:
        source = values[number]
        if source.dtype is dtype:
            return number
        # Only a weak constant: another one, or a float made an integer, is rounded like any value.
        is_weak = source.op == "constant" and source.dtype in _WEAK_COMPUTE.values()
        if is_weak and (dtype.is_float or not source.dtype.is_float):
            return emit("constant", (), dtype, dtype_constant(name, source.value, dtype), True)
        return emit("cast", (number,), dtype)

    for node in topological(outputs):
        if node.op == "input":
            t = operands[node.value]
            stored = _WEAK_COMPUTE[t] if isinstance(t, str) else t
            number = emit("input", (), stored, node.value, uniform[node.value])
            typed[node] = convert(number, _compute(t)), t
        elif node.op == "constant":
            kind = dtypes.scalar_kind(node.value)
            assert kind is not None
            typed[node] = emit("constant", (), _WEAK_COMPUTE[kind], node.value, True), kind
        elif node.op == "custom":
            typed[node] = typed[node.args[0]]
        elif node.op == "index":
            typed[node] = emit("index", (), dtypes.int64, node.value, False), dtypes.int64
        else:
            arguments = [typed[a] for a in node.args]
            t, result = _operand_and_result_type(name, node, [type_ for _, type_ in arguments])
            wanted = [_compute(t)] * len(arguments)
            if node.op == "where":
                wanted[0] = dtypes.bool
            elif node.op == "bitcast":
                assert isinstance(t, Dtype)
                wanted[0] = t
            numbers = [convert(n, d) for (n, _), d in zip(arguments, wanted, strict=True)]
            if node.op in ("cast", "weak"):
                stored = result if isinstance(result, Dtype) else _compute(result)
                typed[node] = convert(convert(numbers[0], stored), _compute(result)), result
            else:
                is_uniform = False if operation_of(node).typing in ("random_bits", "fold") else None
                computed = node.value if node.op == "bitcast" else _compute(result)
                number = emit(node.op, tuple(numbers), computed, node.value, is_uniform)
                typed[node] = convert(number, _compute(result)), result

    numbers, stores = [], []
    for output in outputs:
        number, t = typed[output]
        store = dtypes.DEFAULT[t] if isinstance(t, str) else t
        source = values[number]
        if source.op == "cast" and values[source.args[0]].dtype is store:
            numbers.append(source.args[0])  # already rounded to what is stored
        else:
            numbers.append(convert(number, store.compute))
        stores.append(store)
    expression = Typed(tuple(values), tuple(numbers), tuple(stores))
    return with_integers(name, expression, {}) if any(map(_is_wide, values)) else expression


COMPARISONS = {
    "equal": operator.eq, "not_equal": operator.ne, "less": operator.lt, "less_equal": operator.le,
    "greater": operator.gt, "greater_equal": operator.ge,
}  # fmt: skip


def with_integers(name: str, typed: Typed, given: dict[int, int]) -> Typed:
    """The expression with Python integers as constants in the place of some inputs, the others numbered anew.

    An integer that int64 can't hold may be cast, or compared with what int64 holds; else it raises DtypeError.
    """
    values: list[TypedStep] = []
    for v in typed.values:
        args = [values[a] for a in v.args]
        if v.op == "input" and v.value in given:
            v = TypedStep("constant", (), v.dtype, given[v.value], True)
        elif v.op == "input":
            v = replace(v, value=v.value - sum(i < v.value for i in given))
        elif any(map(_is_wide, args)):
            if v.op == "cast":
                result = dtype_constant(name, args[0].value, v.dtype)
            elif v.op in COMPARISONS:  # any int64 is on the same side of it as 0 is
                result = COMPARISONS[v.op](*(a.value if a.op == "constant" else 0 for a in args))
            else:
                raise _too_wide(name, next(a.value for a in args if _is_wide(a)), dtypes.int64)
            v = TypedStep("constant", (), v.dtype, result, True)
        values.append(v)
    for n in typed.outputs:
        if _is_wide(values[n]):
            raise _too_wide(name, values[n].value, dtypes.int64)
    # Nothing uses the wide ones any more, and no backend could say them.
    return replace(typed, values=tuple(replace(v, value=0) if _is_wide(v) else v for v in values))


def fits_int64(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _is_wide(v: TypedStep) -> bool:
    return v.op == "constant" and v.dtype is dtypes.int64 and not fits_int64(v.value)


def integer_casts(typed: Typed) -> list[tuple[int, Dtype]]:
    """The numbers of inputs that are cast before anything else is done to them, and to which dtypes."""
    casts = [(typed.values[v.args[0]], v.dtype) for v in typed.values if v.op == "cast"]
    return [(source.value, dtype) for source, dtype in casts if source.op == "input"]


def _too_wide(name: str, value: int, dtype: Dtype) -> DtypeError:
    shown = value if value.bit_length() <= 128 else f"of {value.bit_length()} bits"
    advice = "use a float or astype" if dtype is dtypes.int64 else "use astype on the tensor first"
    return DtypeError(f"{name}: the Python integer {shown} does not fit {dtype.name}: {advice}")


def dtype_constant(name: str, value, dtype: Dtype):
    """A Python scalar as a constant of `dtype`. Raises DtypeError for an integer that the dtype can't hold."""
    if dtype.kind == "float":
        try:
            return float(value)
        except OverflowError:
            raise _too_wide(name, value, dtype) from None
    if dtype.kind == "bool":
        return bool(value)
    bits = dtype.itemsize * 8 - (dtype.kind == "signed")
    low = -(2**bits) if dtype.kind == "signed" else 0
    if not low <= value < 2**bits:
        raise _too_wide(name, value, dtype)
    return +value if isinstance(value, int) else int(value)
