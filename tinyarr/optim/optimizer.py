"""Optimizer: parameters in segments, their state, and the update of both, in place, by one expression. Floor 1.

A kind of optimizer is a formula in the scalar language over a parameter, its gradient and its state. It becomes an
elementwise primitive that runs over whole segments. Learning rate and step are 0-d tensors, so that a compiled step
reads them; they are weak in the expression: computed with in float64, once, then taking the parameter's dtype. A
parameter of a half type has a float32 master copy, which is what is updated; where the parameter was written since, by
hand or by loading weights, the update starts from what was written. `load_masters` starts the copies from weights that
were never rounded. A step taken only `where` a condition holds is the same expression with that condition as one more
0-d operand.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import dtypes
from ..errors import ArgumentError, DeviceError, DtypeError, ShapeError, describe
from ..nn.module import Parameter, clear_gradients
from ..ops.create import copy, full
from ..ops.elementwise import astype
from ..ops.elementwise import where as choose
from ..ops.elementwise_primitive import Elementwise
from ..ops.primitive import apply, is_built_in
from ..ops.scalar import Expr, bitcast, cast, random_bits, weak
from ..ops.scalar import where as _where
from ..random import Generator, default_generator
from ..segments import SEGMENT, Segment, buckets, gradient, pack, part, runs
from ..tape import no_grad
from ..tensor import Tensor, require_tensors


class _Packed:
    """Parameters of one group and dtype in a segment, and the segments of their state by name.

    names: gives each its name in the optimizer's state_dict.
    """

    def __init__(
        self, parameters: Sequence[Tensor], names: Iterator[str], options: dict[str, Any], kinds: Sequence[str],
        masters: bool,
    ):  # fmt: skip
        # Tuples, so that a compiled step need not look at each call whether they still hold the same tensors.
        self.parameters = tuple(parameters)
        self.names = tuple(next(names) for _ in parameters)
        self.options = options
        self.segment = pack(parameters)
        dtype = self.segment.flat.dtype
        self.state: dict[str, Segment] = {kind: self.segment.zeros(dtype.compute) for kind in kinds}
        if masters and dtype.compute is not dtype:
            self.state["master"] = self.segment.astype(dtype.compute)
        self.views = {kind: tuple(s.view(i) for i in range(len(parameters))) for kind, s in self.state.items()}

    def updates(self, elementwise: bool) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Yields each tensor with a gradient, that, and its state. If `elementwise`, runs of parameters are flat."""
        flat, numbers = self.segment.flat.array, {}
        for i, (p, offset) in enumerate(zip(self.parameters, self.segment.offsets, strict=True)):
            if p.grad is None:
                continue
            if p.grad.shape != p.shape:
                raise ShapeError(f"step: a gradient has shape {p.grad.shape}, its parameter {p.shape}")
            if elementwise and p.array.storage is flat.storage and p.array.offset == flat.offset + offset:
                numbers[p] = i
            else:  # its array was replaced, perhaps by another optimizer's segment
                yield p, p.grad, self._state(i)
        for run in runs(numbers):
            if len(run) == 1:
                yield run[0], gradient(run), self._state(numbers[run[0]])
            else:
                g, start = gradient(run), self.segment.offsets[numbers[run[0]]]
                state = {kind: part(segment.flat, g.shape, start) for kind, segment in self.state.items()}
                yield part(self.segment.flat, g.shape, start), g, state

    def _state(self, i: int) -> dict[str, Tensor]:
        return {kind: views[i] for kind, views in self.views.items()}


OptionRule = tuple[Callable[[Any], bool], str]  # a test of an option's value, and the same in words

POSITIVE: OptionRule = (lambda x: x > 0, "it must be positive")
COUNT: OptionRule = (lambda x: operator.index(x) > 0, "it must be an int of 1 or more")
NOT_NEGATIVE: OptionRule = (lambda x: x >= 0, "it must be 0 or more")
FRACTION: OptionRule = (lambda x: 0 <= x < 1, "it must lie in [0, 1)")
FRACTIONS: OptionRule = (lambda xs: len(xs) == 2 and all(0 <= x < 1 for x in xs), "both must lie in [0, 1)")


def require_parameters(operation: str, parameters: Any) -> None:
    """Raises TypeError for what can't be walked over, and for a tensor or group alone."""
    if isinstance(parameters, Tensor | dict) or not isinstance(parameters, Iterable):
        advice = "model.parameters(), or a list of tensors or groups"
        raise TypeError(f"{operation}: parameters is {type(parameters).__name__}: pass {advice}")


def parameter_groups(parameters: Iterable[Any], name: str = "parameter_groups") -> list[dict[str, Any]]:
    """Parameters as one group, or groups as they are. Raises TypeError, on behalf of `name`, for what holds none."""
    require_parameters(name, parameters)
    groups = list(parameters)
    if groups and not isinstance(groups[0], dict):
        return [{"parameters": groups}]
    return [
        {"parameters" if key == "params" else key: value for key, value in group.items()}
        if isinstance(group, dict)
        else group
        for group in groups
    ]


class Optimizer:
    """Base of optimizers: parameter groups, the learning rate, the step, saving and loading.

    `parameters` is an iterable of parameters, or a list of groups, dicts with the key "parameters" (or "params") and
    any of the optimizer's options. "lr_scale" (default 1) multiplies the learning rate for a group; a group's own "lr"
    is kept as that scale, so that what is assigned to `lr` later changes all in proportion. A frozen nn.Parameter,
    which has no gradient, keeps its value until it is thawed. Making an optimizer moves the parameters into its
    segments. `rules` says what values options may have.

    A class of one's own says how a parameter changes in one of two ways. `formula(p, g, *state, lr, step, *options)`
    returns the new parameter and state as expressions of the scalar language; options come in the order of `defaults`,
    a pair as two, a bool by keyword. Of state that an optimizer leaves out of its own `state_names` it gets None.

    >>> import tinyarr
    >>> class SignDescent(tinyarr.optim.Optimizer):
    ...     def __init__(self, parameters, lr=0.1, weight_decay=0.0):
    ...         super().__init__(parameters, lr, {"weight_decay": weight_decay})
    ...     @staticmethod
    ...     def formula(p, g, lr, step, weight_decay):
    ...         return (p - lr * (tinyarr.sign(g) + weight_decay * p),)
    >>> p = tinyarr.Tensor([1.0, 2.0], requires_grad=True)
    >>> (p * p).sum().backward()
    >>> SignDescent([p], lr=0.5).step()
    >>> p.tolist()
    [0.5, 1.5]

    Or it defines `update`, with operations on tensors. elementwise, beside update() in a class: that makes each element
    of its own alone, whatever the shape. Then it gets many parameters at once, those of a segment that have gradients,
    as flat tensors; else one after the other.
    """

    state_names: tuple[str, ...] = ()
    rules: dict[str, OptionRule] = {}
    formula: Callable[..., tuple] | None = None
    masters = True  # parameters of half types have float32 copies; else those of bfloat16 are rounded stochastically
    generator: Generator | None = None  # draws for that; None is the default one
    elementwise = True  # as the update by a formula is
    segment_bytes = SEGMENT

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        owner: Any = cls
        if "formula" in vars(owner):
            for has_master in (False, True):
                update_primitive(owner, owner.state_names, has_master, ())

    def __init__(self, parameters: Iterable[Any], lr: float, defaults: dict[str, Any]):
        name = type(self).__name__
        groups = parameter_groups(parameters, name)
        self._check({"lr": lr, **defaults})
        seen: set[Tensor] = set()
        self._packed: list[_Packed] = []
        for group in groups:
            allowed = {"lr": lr, **defaults, "lr_scale": 1.0}
            if not isinstance(group, dict) or "parameters" not in group or group.keys() - allowed - {"parameters"}:
                came = f"has {list(group)}" if isinstance(group, dict) else f"is a {type(group).__name__}"
                raise ArgumentError(f"{name}: a group {came}: it is a dict of 'parameters' and some of {[*allowed]}")
            options = {**allowed, **{k: v for k, v in group.items() if k != "parameters"}}
            self._check(options)
            own = options.pop("lr")
            if own != lr == 0:
                raise ArgumentError(f"{name}: lr is 0, and a group's lr, {own}, is kept as a multiple of it: raise it")
            options["lr_scale"] *= own / lr if own != lr else 1.0
            by_dtype: dict[Any, list[Tensor]] = {}
            for p in group["parameters"]:
                trains = isinstance(p, Parameter) or (isinstance(p, Tensor) and p.is_leaf and p.requires_grad)
                if not trains:
                    came = describe("a parameter", p) if isinstance(p, Tensor) else f"a parameter is {type(p).__name__}"
                    need = "it must be a leaf tensor with requires_grad=True, as in model.parameters()"
                    raise ArgumentError(f"{name}: {came}: {need}")
                if p in seen:
                    raise ArgumentError(f"{name}: a parameter of shape {p.shape} came twice: name each one once")
                seen.add(p)
                by_dtype.setdefault(p.dtype, []).append(p)
            for ps in by_dtype.values():
                number = len({packed.names[0].split(".")[0] for packed in self._packed})
                names = (f"{number}.{i}" for i in itertools.count())
                for together in buckets(ps, self.segment_bytes):  # as backward finishes them, the last layers first
                    self._packed.append(_Packed(together, names, options, self.state_names, self.masters))
        if not self._packed:
            raise ArgumentError(f"{name}: got no parameters: pass model.parameters()")
        device = self._packed[0].segment.flat.device
        self._lr = full((), float(lr), dtype=dtypes.float64, device=device)
        self._step = full((), 0, dtype=dtypes.int64, device=device)

    def _check(self, options: dict[str, Any]) -> None:
        for option, (holds, words) in {"lr": NOT_NEGATIVE, "lr_scale": NOT_NEGATIVE, **self.rules}.items():
            try:
                sound = option not in options or holds(options[option])
            except TypeError:
                sound = False
            if not sound:
                raise ArgumentError(f"{type(self).__name__}: {option} is {options[option]!r}: {words}")

    @property
    def lr(self) -> Tensor:
        """The learning rate, a 0-d float64 tensor; assigning a number writes into it."""
        return self._lr

    @lr.setter
    def lr(self, value: float | Tensor) -> None:
        if type(dtypes.python_scalar(value)) in (int, float):  # what a trace puts in a float's place has no value yet
            self._check({"lr": value})
        self._lr.assign(value)

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter."""
        return [p for packed in self._packed for p in packed.parameters]

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's state by name, sharing memory with the optimizer's. Raises ArgumentError for a stranger."""
        for packed in self._packed:
            for i, p in enumerate(packed.parameters):
                if p is parameter:
                    return {name: views[i] for name, views in packed.views.items()}
        raise ArgumentError(f"state_of: {describe('the tensor', parameter)}: it is none of the optimizer's parameters")

    def load_masters(self, parameters: Iterable[Tensor], weights: Iterable[Tensor]) -> None:
        """Starts the float32 copies of half-precision parameters from `weights`, which the parameters then round.

        Without it the copies start from the rounded parameters, and the first small updates are lost in rounding: a
        model is then drawn, or its checkpoint loaded, in float32 too. parameters and weights correspond one to one.
        """
        pairs = list(parameters), list(weights)
        shapes = [[t.shape for t in side] for side in pairs]
        if shapes[0] != shapes[1]:
            different = next((p for p in zip(*shapes, strict=False) if p[0] != p[1]), tuple(map(len, shapes)))
            raise ShapeError(f"load_masters: parameters and weights differ: {different[0]} and {different[1]}")
        given = dict(zip(*pairs, strict=True))
        with no_grad():
            for packed in self._packed:
                for p, master in zip(packed.parameters, packed.views.get("master", ())):
                    if p in given:
                        master.assign(given[p].detach().to(master.device))
                        p.assign(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradient of every parameter, or makes it 0."""
        clear_gradients(self.parameters, set_to_none)

    def step(self, *, where: Tensor | None = None) -> None:
        """Updates every parameter that has a gradient, in place.

        where: a 0-d bool tensor on the parameters' device, such as `isfinite(norm)`. If it is False nothing changes,
        not a parameter, its state or the step, whatever the gradients are; so bad gradients are left out without
        asking for a value. Random numbers are drawn all the same. Raises TypeError, ShapeError, DtypeError or
        DeviceError for anything else.
        """
        update: Callable[..., None] = self.update
        taken: int | Tensor = 1
        if where is not None:
            self._check_where(where)
            update, taken = self._update_where(where), astype(where, dtypes.int64)
        with no_grad():
            self._step.assign(self._step + taken)
            for packed in self._packed:
                for p, g, state in self._together(packed):
                    update(p, g, state, packed.options)

    def _together(self, packed: _Packed) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Yields the tensors that update() gets at a time, with their gradients and state."""
        return packed.updates(vars(_owner(type(self), "update")).get("elementwise", False))

    def _check_where(self, where: Tensor) -> None:
        require_tensors("step", where=where)
        if where.shape != ():
            raise ShapeError(f"step: where has shape {where.shape}: it must be 0-d: use all() or any()")
        if where.dtype is not dtypes.bool:
            raise DtypeError(f"step: where has dtype {where.dtype.name}: it must be bool: compare, or use isfinite()")
        if where.device is not self._step.device:
            raise DeviceError(
                f"step: where is on {where.device}, the parameters on {self._step.device}: move it with to()"
            )

    def _update_where(self, where: Tensor) -> Callable[..., None]:
        """`update` that changes nothing if `where` is False."""
        own: Any = self.update
        if "where" in inspect.signature(own).parameters:
            return functools.partial(own, where=where)

        def update(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], options: dict[str, Any]) -> None:
            written = parameter, *state.values()
            before = [copy(x) for x in written]
            own(parameter, gradient, state, options)
            for x, old in zip(written, before, strict=True):
                x.assign(choose(where, x, old))

        return update

    def update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], options: dict[str, Any], *,
        where: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Writes the new parameter and state. `state` has the tensors of `state_names`, and "master" for half types.

        One that is defined in a class may leave the keyword `where` out, which is what `step` was given: then `step`
        keeps copies and puts them back. If it takes it, it must leave all as they are where that is False.
        """
        if self.formula is None:
            raise ArgumentError(f"{type(self).__name__}: has no update(): define how a parameter changes, or a formula")
        x = {"p": parameter, "g": gradient, **state, "lr": self._lr, "step": self._step, "where": where}
        flags: dict[str, Any] = {"dtype": parameter.dtype} if "master" in state else {}
        numbers = [options["lr_scale"]]
        for name, value in options.items():
            if isinstance(value, bool):
                flags[name] = value
            elif name != "lr_scale":
                numbers += value if isinstance(value, tuple | list) else [value]
        if "master" not in state and parameter.dtype.compute is not parameter.dtype:
            x["key"], x["counter"] = (self.generator or default_generator()).take()
        named = tuple(name for name in ("key", "counter", "where") if x.get(name) is not None)
        update = update_primitive(_owner(type(self), "formula"), self.state_names, "master" in state, named)
        operands = [x[name] for name in update.inputs[: update.inputs.index("lr_scale")]]
        apply(update, *operands, *numbers, out=tuple(x[name.removesuffix("_out")] for name in update.outputs), **flags)

    def state_dict(self) -> dict[str, Tensor]:
        """Name to tensor: lr, step, and each parameter's state by group, parameter and name; they share memory."""
        state = {"lr": self._lr, "step": self._step}
        for packed in self._packed:
            for kind, views in packed.views.items():
                state |= {f"{name}.{kind}": view for name, view in zip(packed.names, views, strict=True)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Writes a saved state into this one's, of tensors or other arrays. Errors as of load_tensors."""
        load_tensors(self.state_dict(), state)


def load_tensors(own: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors, or arrays of NumPy or DLPack, into those of the same names.

    Raises ArgumentError for other names, ShapeError for another shape; then nothing has been written.
    """
    if own.keys() != state.keys():
        difference = sorted(map(str, own.keys() ^ state.keys()))[:5]
        raise ArgumentError(f"load_state_dict: the states differ in {difference}: made by another optimizer or model?")
    given = {name: x if isinstance(x, Tensor) else Tensor(x, device=own[name].device) for name, x in state.items()}
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            raise ShapeError(f"load_state_dict: {name} has shape {given[name].shape}, expected {tensor.shape}")
    for name, tensor in own.items():
        tensor.assign(given[name])


def _owner(kind: type, name: str) -> Any:
    """The class in which a class finds an attribute."""
    return next(base for base in kind.__mro__ if name in vars(base))


@functools.cache
def update_primitive(owner: Any, kept: tuple[str, ...], has_master: bool, named: tuple[str, ...]) -> Elementwise:
    """The formula of a class as a primitive.

    kept: what of the formula's state there is. has_master: a float32 master copy is updated, and the parameter is that
    cast to `dtype`. named: more operands: "key" and "counter", with which a parameter without a master is rounded
    stochastically; "where", and nothing changes if it is False.
    """
    formula, kinds = owner.formula, owner.state_names
    parameters = inspect.signature(formula).parameters.values()
    numbers = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY][4 + len(kinds) :]
    flags = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    written = ["p", *["master"] * has_master, *kept]
    inputs = [*written, "g", *named, "lr", "step", "lr_scale", *numbers]
    if len(set(inputs)) < len(inputs):
        raise ArgumentError(f"{owner.__name__}: its formula has operands {inputs}: give each a name of its own")

    def function(*operands: Expr, **flags: Any) -> tuple[Expr, ...]:
        x, dtype = dict(zip(inputs, operands, strict=True)), flags.pop("dtype", None)
        p = _current(x["master"], x["p"], dtype) if has_master else x["p"]
        if "key" in x:
            p = cast(p, dtypes.float32)
        scalars = weak(x["lr"]) * x["lr_scale"], weak(x["step"]), *map(x.get, numbers)
        new, *state = [e for e in formula(p, x["g"], *map(x.get, kinds), *scalars, **flags) if e is not None]
        if "key" in x:
            new = _rounded_stochastically(new, x["key"], x["counter"])
        results = [cast(new, dtype), new, *state] if has_master else [new, *state]
        if "where" in x:
            results = [_where(x["where"], e, x[name]) for name, e in zip(written, results, strict=True)]
        return tuple(results)

    if has_master:
        flags.append(inspect.Parameter("dtype", inspect.Parameter.KEYWORD_ONLY))
    function.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    function.__module__ = formula.__module__
    form = [*["master"] * has_master, *["stochastic"] * ("key" in named), "update", *["where"] * ("where" in named)]
    derived = kept != kinds or "where" in named or not is_built_in(formula)
    outputs = [f"{name}_out" for name in written]
    made = Elementwise("_".join([owner.__name__.lower(), *form]), function, inputs, outputs, derived)
    made.no_gradient()
    return made


def _current(master: Expr, p, dtype) -> Expr:
    """The master copy, or the parameter where that is no longer the copy's rounding: someone has written it."""
    return _where(cast(master, dtype) == p, master, p)


def _rounded_stochastically(x: Expr, key, counter) -> Expr:
    """x as bfloat16, up or down with the probability of the distance: its expectation is x.

    Random bits are added where bfloat16 has none, and what is then there is cut off.
    """
    bits = bitcast(x, dtypes.uint32) + (random_bits(key, counter) >> 16)
    return _where(x == x, cast(bitcast(bits & 0xFFFF0000, dtypes.float32), dtypes.bfloat16), cast(x, dtypes.bfloat16))
