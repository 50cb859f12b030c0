"""Module: named parameters and submodules, found by looking at the object's attributes. Floor 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from .. import dtypes
from ..autograd import HookHandle
from ..device import Device
from ..dtypes import Dtype
from ..errors import ArgumentError, DtypeError, ShapeError
from ..ops.create import zeros_like
from ..tape import no_grad
from ..tensor import Tensor, require_tensors, result_tensor


class Parameter(Tensor):
    """A tensor that a module owns and an optimizer updates: `Parameter(tensor)`. It requires a gradient by default."""

    __slots__ = ()

    def __new__(cls, data: Tensor, requires_grad: bool = True) -> Parameter:
        """Shares the tensor's memory."""
        require_tensors("Parameter", data=data)
        self = result_tensor(data.array, cls)
        self.requires_grad = requires_grad
        return self

    def __init__(self, data: Tensor, requires_grad: bool = True):
        pass  # __new__ did it: Tensor's own would copy the data


class Module:
    """Base of layers and models: define `forward`, and assign parameters and submodules as attributes.

    A Parameter is what the optimizer updates, a buffer (see `register_buffer`) what the module itself does: both are
    part of `state_dict`. Any other tensor is only moved and converted with them. Lists, tuples and dicts of modules or
    tensors are looked into. A name is the path of attributes: `blocks.0.attention.weight`.
    """

    training: bool = True
    _before: Sequence[Callable] = ()
    _after: Sequence[Callable] = ()
    _buffers: Mapping[str, bool] = {}  # names of buffers, and whether each is part of `state_dict`

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses a tensor that looks like a parameter, but that no optimizer would find.

        A result of recorded operations, kept to be looked at, is neither.
        """
        if isinstance(value, Tensor) and not isinstance(value, Parameter):
            if isinstance(vars(self).get(name), Parameter):
                raise ArgumentError(
                    f"{type(self).__name__}.{name}: is a Parameter, a plain Tensor came: "
                    "write into it with assign() under no_grad(), or give an nn.Parameter"
                )
            if value.requires_grad and value.is_leaf:
                raise ArgumentError(
                    f"{type(self).__name__}.{name}: a plain Tensor that requires a gradient came: "
                    "make it an nn.Parameter, or detach() it"
                )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ArgumentError(f"{type(self).__name__}: has no forward(): define what calling the module computes")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for hook in tuple(self._before):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        result = self.forward(*args, **kwargs)
        for hook in tuple(self._after):
            changed = hook(self, args, result)
            if changed is not None:
                result = changed
        return result

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple], Any]) -> HookHandle:
        """Calls `hook(module, args)` before forward; what it returns, if not None, takes the place of the arguments."""
        return self._register("_before", hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple, Any], Any]) -> HookHandle:
        """Calls `hook(module, args, result)` after forward; what it returns, if not None, replaces the result.

        To see the gradient of the result, register a hook on it there: `result.register_hook(...)`.
        """
        return self._register("_after", hook)

    def _register(self, kind: str, hook: Callable) -> HookHandle:
        if not callable(hook):
            raise TypeError(f"{type(self).__name__}: hook is {type(hook).__name__}: give a function")
        hooks = vars(self).setdefault(kind, [])
        hooks.append(hook)
        return HookHandle(hooks, hook)

    def _attributes(self) -> dict[str, Any]:
        """Its attributes but for hooks: a module among these is no part of it."""
        return {name: value for name, value in vars(self).items() if name not in ("_before", "_after")}

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (under `prefix`) and all below it, each once."""
        return ((name, value) for name, value in _walk(self, prefix, set()) if isinstance(value, Module))

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that this one holds itself, in lists and dicts too, not those within them; each once."""
        below = _walk(self._attributes(), "", {id(self)}, within_modules=False)
        return ((name, value) for name, value in below if isinstance(value, Module))

    def children(self) -> Iterator[Module]:
        """The modules that this one holds itself, each once."""
        return (module for _, module in self.named_children())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, buffer and other tensor that is no result of recorded operations, each once with its name.

        They come in order of assignment, a shared one by its first name. Raises ArgumentError where two have the same
        name, as those under the keys "a.b" and "a" of a dict can.
        """
        names: set[str] = set()
        for name, value in _walk(self, "", set()):
            if isinstance(value, Tensor) and (value.is_leaf or id(value) in self._buffers_by_id()):
                if name in names:
                    raise ArgumentError(f"named_tensors: two tensors have the name {name}: rename a key or attribute")
                names.add(name)
                yield name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every Parameter with its name; a shared one once, by its first name."""
        for name, value in self.named_tensors():
            if isinstance(value, Parameter):
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """Every Parameter, each once."""
        return (p for _, p in self.named_parameters())

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Calls `function(module)` for all modules below this one, and at last for this one."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Makes an attribute of a tensor, which may be assigned anew, and part of `state_dict` where persistent."""
        setattr(self, name, tensor)
        self._buffers = {**self._buffers, name: persistent}

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that was registered as a buffer, persistent or not, each once with its name."""
        buffers = self._buffers_by_id()
        return ((name, t) for name, t in self.named_tensors() if id(t) in buffers)

    def buffers(self) -> Iterator[Tensor]:
        """Every tensor that was registered as a buffer, each once."""
        return (t for _, t in self.named_buffers())

    def _buffers_by_id(self) -> dict[int, bool]:
        """By the id of each buffer, whether it is persistent under one of its names."""
        found: dict[int, bool] = {}
        for module in self.modules():
            for name, persistent in module._buffers.items():
                key = id(vars(module).get(name))
                found[key] = persistent or found.get(key, False)
        return found

    def _saved(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by name."""
        buffers = self._buffers_by_id()
        return {n: t for n, t in self.named_tensors() if isinstance(t, Parameter) or buffers.get(id(t))}

    def state_dict(self) -> dict[str, Tensor]:
        """Name to tensor, for parameters and buffers; they share memory with the module's and have no history."""
        return {name: t.detach() for name, t in self._saved().items()}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Writes the tensors, or arrays of NumPy or DLPack, of `state` into the module's, cast to their dtypes.

        Raises ArgumentError for missing or unexpected names (unless not strict: those are then left alone) and
        ShapeError for another shape; then nothing has been written.
        """
        if not isinstance(state, Mapping):
            came = type(state).__name__
            raise TypeError(f"load_state_dict: state is {came}: give a dict of tensors, as saving.load(path)[0]")
        own = self._saved()
        state = {
            name: Tensor(t, device=own[name].device) if name in own and hasattr(t, "__dlpack__") else t
            for name, t in state.items()
        }
        require_tensors("load_state_dict", **{str(name): t for name, t in state.items()})
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if strict and (missing or unexpected):
            raise ArgumentError(
                f"load_state_dict: missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}"
            )
        shared = own.keys() & state.keys()
        for name in shared:
            if state[name].shape != own[name].shape:
                raise ShapeError(
                    f"load_state_dict: {name} has shape {state[name].shape}, the module's {own[name].shape}"
                )
        with no_grad():
            for name in shared:
                own[name].assign(state[name].detach())

    def train(self, mode: bool = True) -> Module:
        """Switches this module and all below to training behaviour (dropout on), or with False to evaluation."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """train(False)."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Says of every parameter whether it requires a gradient; an optimizer leaves one alone that doesn't."""
        for p in self.parameters():
            p.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradient of every parameter, or makes it 0."""
        clear_gradients(self.parameters(), set_to_none)

    def to(self, target: str | Device | Dtype | None = None, dtype: Dtype | None = None) -> Self:
        """Moves every tensor of the module to a device, converts it to a dtype, or both. Make the optimizer afterwards.

        Integers keep their dtype.
        """
        if isinstance(target, Dtype):
            return self.to_dtype(target)
        if target is not None:
            self._change("to", lambda t: t.to(target))
        return self if dtype is None else self.to_dtype(dtype)

    def to_dtype(self, dtype) -> Self:
        """Converts every floating tensor of the module to `dtype`, a floating one. Make the optimizer afterwards."""
        if not dtypes.dtype(dtype).is_float:
            raise DtypeError(f"to_dtype: dtype is {dtypes.dtype(dtype).name}: it must be a floating dtype")
        self._change("to_dtype", lambda t: t.astype(dtype) if t.dtype.is_float else t)
        return self

    def _change(self, operation: str, change: Callable[[Tensor], Tensor]) -> None:
        for name, t in self.named_tensors():
            changed = change(t.detach()).array
            if t.grad is not None and (changed.dtype, changed.device) != (t.dtype, t.device):
                raise DtypeError(f"{operation}: {name} holds a gradient: convert before training, or zero_grad() first")
            t.array = changed

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for name, value in self._attributes().items():
            if isinstance(value, Tensor):
                lines.append(f"  {name}: {value.dtype.name}{list(value.shape)}")
            elif any(_walk(value, "", set())):
                lines.append(f"  {name}: " + repr(value).replace("\n", "\n  "))
        return "\n".join([*lines, ")"]) if len(lines) > 1 else lines[0] + ")"


def clear_gradients(parameters: Iterable[Tensor], set_to_none: bool) -> None:
    """Makes each tensor's gradient None, or zeros where it has one."""
    for p in parameters:
        p.grad = None if set_to_none or p.grad is None else zeros_like(p.grad)


def _walk(value: Any, name: str, seen: set[int], within_modules: bool = True) -> Iterator[tuple[str, Any]]:
    """Modules and tensors at and below `value`, each once, with their paths."""
    wrapped = getattr(value, "__dict__", {}).get("__wrapped__")
    value = wrapped if isinstance(wrapped, Module) else value  # of a compiled module the module
    if isinstance(value, Module | Tensor):
        if id(value) in seen:
            return
        seen.add(id(value))
        yield name, value
    if isinstance(value, Module):
        children: Iterable = value._attributes().items() if within_modules else ()
    elif isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        return
    for key, child in children:
        yield from _walk(child, f"{name}.{key}" if name else str(key), seen, within_modules)
