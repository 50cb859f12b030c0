"""Primitives defined by a traced expression: what elementwise operations and row expressions share. Floor 1."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from ..errors import ArgumentError
from .primitive import Primitive, apply, is_built_in, parameter_key, registry
from .scalar import Expr, as_expr, variable, with_gradient


class Expressed(Primitive):
    """A primitive defined by an expression.

    function(*inputs, **params) returns an expression or a tuple of them. Called on tensors, the primitive is applied;
    called on expressions, it is inlined. Its gradient is derived from the expression, or written by hand as another.
    """

    gradients_are_derived = True

    @staticmethod
    def is_unlisted(name: str, function: Callable, derived: bool) -> bool:
        """True where the registry leaves it out: a user's operation may be called as one of tinyarr's own."""
        return derived or (name in registry and not is_built_in(function))

    def define(self, function: Callable, derived: bool) -> None:
        """Gives the primitive its function, and the signature under which it is called."""
        self.built_in = is_built_in(function)
        self.function = function
        self.__name__ = self.__qualname__ = self.name
        names = [f"x{i}" for i in range(len(self.inputs))] if derived else self.inputs
        positional = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in names]
        options = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.__signature__ = inspect.Signature(positional + options)
        self._defaults = {p.name: p.default for p in options if p.default is not p.empty}
        self._by_hand: Callable | None = None
        self._vjps: dict[tuple, Callable] = {}
        self._expressions: dict[tuple, tuple[Expr, ...]] = {}
        self._derived: dict[tuple, Any] = {}

    def __reduce__(self):
        """Returns a name for pickle: in the registry for tinyarr's own, in its module for a user's."""
        return (_registered, (self.name,)) if registry.get(self.name) is self and self.built_in else self.__qualname__

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} operation {self.name}{self.__signature__}>"

    def __call__(self, *operands: Any, out: Any = None, **params: Any) -> Any:
        if self._defaults:
            params = self._defaults | params
        for x in operands:
            if isinstance(x, Expr):
                return self._inlined(tuple(map(as_expr, operands)), params)
        return apply(self, *operands, out=out, **params)

    def _inlined(self, operands: tuple[Expr, ...], params: dict[str, Any]) -> Any:
        """The expression of the operands, with this operation's own gradient where that isn't derived."""
        result = self.function(*operands, **params)
        if self._by_hand is None and not self.non_differentiable:
            return result
        outputs = result if isinstance(result, tuple) else (result,)
        wrapped = tuple(
            with_gradient(as_expr(o), operands, self._inlined_vjp(i, params)) for i, o in enumerate(outputs)
        )
        return wrapped if isinstance(result, tuple) else wrapped[0]

    def _inlined_vjp(self, output: int, params: dict[str, Any]) -> Callable:
        """The gradient through one output, the same object for the same parameters, so that equal nodes are shared."""
        key = (output, parameter_key(params))
        if key not in self._vjps:

            def vjp(g: Expr, out: Expr, *operands: Expr) -> list[Expr | None]:
                if self.non_differentiable:
                    return [None] * len(operands)
                cotangents = [g if i == output else as_expr(0) for i in range(len(self.outputs))]
                results = self.function(*operands, **params)
                return self.gradients_by_hand(
                    params, operands, cotangents, results if isinstance(results, tuple) else (out,)
                )

            self._vjps[key] = vjp
        return self._vjps[key]

    def __get__(self, instance, owner=None):
        return self if instance is None else MethodType(self, instance)

    def gradient(self, function: Callable) -> Callable:
        """Decorator: a gradient by hand, `(g, saved...) -> gradients`, in the scalar language.

        The parameters after `g` are named after inputs or outputs, as in `Primitive.gradient`. It returns an
        expression for each input, or the expression alone where there is one input.
        """
        others = {"g", *(f"g_{name}" for name in self.outputs), *self.outputs}
        if taken := sorted(others.intersection(self.inputs)):
            raise ArgumentError(
                f"{self.name}.gradient: an operand is called {taken[0]!r}, as a gradient or a result is: rename it"
            )
        known = {*others, *self.inputs}
        for p in inspect.signature(function).parameters.values():
            if p.name not in known and p.kind is not p.KEYWORD_ONLY:
                raise ArgumentError(f"{self.name}.gradient: parameter {p.name!r} is none of {sorted(known)}")
        self._by_hand = function
        return function

    @property
    def has_gradient(self) -> bool:
        return not self.non_differentiable

    def expressions(self, params: dict[str, Any]) -> tuple[Expr, ...]:
        """The outputs' expressions, traced once for each value of the parameters."""
        key = parameter_key(params)
        if key not in self._expressions:
            result = self.function(*map(variable, range(len(self.inputs))), **params)
            found = tuple(map(as_expr, result if isinstance(result, tuple) else (result,)))
            if len(found) != len(self.outputs):
                raise ArgumentError(
                    f"{self.name}: returned {len(found)} expressions, its outputs are {self.outputs}: name each one"
                )
            self.check(found)
            self._expressions[key] = found
        return self._expressions[key]

    def check(self, outputs: tuple[Expr, ...]) -> None:
        """Raises TypeError where the expressions hold what this language hasn't."""

    def gradients_by_hand(self, params: dict[str, Any], operands, cotangents, results) -> list[Expr | None]:
        assert self._by_hand is not None
        named = dict(zip(self.inputs, operands, strict=True)) | dict(zip(self.outputs, results, strict=True))
        named |= {f"g_{name}": g for name, g in zip(self.outputs, cotangents, strict=True)} | {"g": cotangents[0]}
        names = inspect.signature(self._by_hand).parameters
        found = self._by_hand(*[named[k] for k in names if k in named], **{k: params[k] for k in names if k in params})
        return list(found) if isinstance(found, tuple) else [found]


def _registered(name: str) -> Primitive:
    return registry[name]


def operation(
    decorator: str, function: Callable, outputs: Sequence[str]
) -> tuple[str, Callable, list[str], tuple[str, ...]]:
    """The name, function, inputs and outputs of an operation that a decorator defines by a Python function."""
    if not callable(function):
        raise TypeError(f"{decorator}: function is {type(function).__name__}: give a function of expressions")
    if isinstance(outputs, str) or len({*outputs}) != len(outputs):
        raise ArgumentError(f"{decorator}: outputs is {outputs!r}: give a sequence of names, each one once")
    name = getattr(function, "__name__", type(function).__name__)
    inputs = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            continue
        if p.default is not p.empty or p.kind is p.VAR_POSITIONAL:
            raise ArgumentError(f"{decorator}: {name}: {p.name} is no plain operand: put options behind a *")
        inputs.append(p.name)
    return name.strip("_"), function, inputs, tuple(outputs)
