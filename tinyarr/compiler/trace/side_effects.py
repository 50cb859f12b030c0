"""Side effects of a function in Python's memory: noticed after its trace, undone, and replayed. Floor 2."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

from ...errors import TraceError
from ...random import Generator
from ...segments import gradients_in_place, runs
from ...tensor import Tensor
from ..capture.captured import Capture, is_rebuilt, item_path
from ..capture.holders import GONE, Attributes, Cell, Elements, Holder, Variable, holds_the_same
from .calls import Bound
from .templates import TemplateObjects, Templates


class Unchanged(NamedTuple):
    """Template of what a holder held under a key before the call."""

    key: Any


class ChangedHolder:
    """A holder that the function changed: its keys before, those that stay in place, and all after, as templates."""

    def __init__(self, before: dict[Any, Any], after: dict[Any, Any]):
        self._before = frozenset(before)
        in_order = iter(before)
        self._stay = frozenset(itertools.takewhile(lambda key: key in in_order, after))
        self._after = after

    def now(self, contents: dict[Any, Any], filling: TemplateObjects) -> dict[Any, Any]:
        """Returns its contents after a call, of those before. Attributes that no code names may have changed.

        Example: the function set b and removed a. Of {c, a, x}, x being new and named by no code, come {c, x, b}.
        """
        new = {
            key: contents[x.key] if type(x) is Unchanged else filling.fill(x)
            for key, x in self._after.items()
            if type(x) is not Unchanged or x.key in contents
        }
        stay = {key: new.get(key, x) for key, x in contents.items() if key in self._stay or key not in self._before}
        return stay | new


class Snapshot:
    """Snapshot of holders, tensors and generators before a trace."""

    def __init__(self, capture: Capture):
        self._capture = capture
        self._contents = {path: holder.contents() for path, holder in capture.holders.items()}
        self._gradients = {path: (x.grad, x._hooks) for path, x in capture.tensors.items()}
        self._fixed = {path: (x, _fixed(x)) for path, x in capture.objects.items()}

    def changes(self, templates: Templates, given: Container[str]) -> Replay:
        """Returns the differences since. given: the paths of tensors whose gradient was set, whatever it was before.

        Raises TraceError for one that can't be made again at each call.
        """
        gradients: dict[str, Any] = {}
        for x, path, name, _ in self._that_were_set():
            what = f".{name} was set"
            if name != "__class__" and isinstance(x, Tensor):
                what = " was moved, or its requires_grad or grad_dtype set"
            elif isinstance(x, Generator):
                what = ", a generator, was set"
            raise TraceError(f"compile: {path}{what}: do that outside of it")
        written = [self._capture.tensors[path] for path, (gradient, _) in self._gradients.items()
                   if self._capture.tensors[path].grad is not gradient]  # fmt: skip
        for run in runs(written):
            gradients_in_place(run)  # so that the next call finds them together, and adds to them there
        for path, (gradient, hooks) in self._gradients.items():
            x = self._capture.tensors[path]
            if x.grad is not gradient or path in given:  # as set to None, which it was in the trace
                self._require_state(path, path in self._capture.again.tensors)
                gradients[path] = templates.template(x.grad, f"{path}.grad")
            if x._hooks and hooks is None:
                raise TraceError(f"compile: {path} got a hook: register it outside of it")
        held: dict[str, ChangedHolder] = {}
        for path, old in self._contents.items():
            holder = self._capture.holders[path]
            new = holder.contents()
            if isinstance(holder, Elements) and new.keys() != old.keys():
                raise TraceError(f"compile: the shape or dtype of {path} was set: do that outside of it")
            if not holds_the_same(holder, old):
                self._require_state(path, path in self._capture.again.holders)
                held[path] = ChangedHolder(old, self._difference(holder, path, new, old, templates))
        return Replay(gradients, held)

    def _require_state(self, path: str, is_state: bool) -> None:
        if not is_state:
            raise TraceError(f"compile: {path} was changed, which is neither in state nor an argument: put it in state")

    def _difference(
        self, holder: Holder, path: str, new: dict, old: dict, templates: Templates
    ) -> dict[Any, Any]:
        """Returns the contents of a holder, in order; objects that it held before by their keys then."""
        before = {id(x): key for key, x in old.items() if not isinstance(x, int)}
        found: dict[Any, Any] = {}
        for key, x in new.items():
            if x is old.get(key, GONE):
                found[key] = Unchanged(key)
            elif id(x) in before:
                found[key] = Unchanged(before[id(x)])
            else:
                where = path if isinstance(holder, Cell | Variable) else item_path(path, key)
                found[key] = templates.template(x, where)
        return found

    def restore(self) -> None:
        for path, old in self._contents.items():
            holder = self._capture.holders[path]
            if not holds_the_same(holder, old):
                holder.put(old)
        for path, (gradient, hooks) in self._gradients.items():
            x = self._capture.tensors[path]
            x.grad, x._hooks = gradient, hooks
        for x, _, name, part in self._that_were_set():
            setattr(x, name, part)

    def _that_were_set(self) -> Iterator[tuple[Any, str, str, Any]]:
        """Yields what a trace may not set and did: the object, its path, the attribute's name and value before."""
        for path, (x, old) in self._fixed.items():
            yield from ((x, path, name, old[name]) for name, part in _fixed(x).items() if part is not old[name])
        for path, holder in self._capture.holders.items():
            if isinstance(holder, Attributes) and holder.owner.__dict__ is not holder.object:
                yield holder.owner, path.removesuffix(".__dict__"), "__dict__", holder.object


_FIXED: dict[type, tuple[str, ...]] = {
    Tensor: ("array", "_requires_grad", "_has_wide_grad", "node"),
    Generator: ("_key", "_counter"),
    types.FunctionType: ("__code__", "__defaults__", "__kwdefaults__"),
}


def _fixed(x: Any) -> dict[str, Any]:
    """Returns what may not be set of an object in a trace: its class, and some attributes."""
    kind = Tensor if isinstance(x, Tensor) else type(x)
    return {"__class__": type(x)} | {name: getattr(x, name) for name in _FIXED.get(kind, ())}


class Replay:
    """Changes that a call makes again: of gradients and holders, by path."""

    def __init__(self, gradients: dict[str, Any], held: dict[str, ChangedHolder]):
        self._gradients = gradients
        self._held = held

    def repeat(self, call: Bound, filling: TemplateObjects) -> None:
        for path, gradient in self._gradients.items():
            call.objects[path].grad = filling.fill(gradient)
        # Read and make all before any is written: what one holder gets may be what another held, and what makes an
        # object may count it, as it did in the trace.
        contents = {path: call.holders[path].contents() for path in self._held}
        new = {path: held.now(contents[path], filling) for path, held in self._held.items()}
        for path, x in new.items():
            call.holders[path].put(x)


@contextlib.contextmanager
def standing_in(instead: dict[str, Any], capture: Capture, args: tuple, kwargs: dict[str, Any]) -> Iterator:
    """Gives the arguments with stand-ins for objects, by path; objects elsewhere are replaced in place meanwhile.

    Lists and dicts among the arguments are changed in place and put back, tuples made anew.
    """
    placed = [(*slot, x) for path, x in instead.items() if (slot := capture.slots[path]) is not None]
    before = {holder: holder.contents() for holder, _, _ in placed}
    known: dict[int, Any] = {}

    def changed(path: str, x: Any) -> Any:
        """Returns a tuple with the stand-ins in it, since no holder can be given its parts."""
        if path in instead and capture.slots[path] is None:
            return instead[path]
        if not is_rebuilt(x) or id(x) in known:
            return known.get(id(x), x)
        known[id(x)] = x
        keys = list(x) if isinstance(x, dict) else range(len(x))
        parts = [changed(item_path(path, key), x[key]) for key in keys]
        if isinstance(x, tuple) and any(new is not old for new, old in zip(parts, x)):
            known[id(x)] = type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        elif isinstance(x, list | dict):
            for key, new in zip(keys, parts):
                if new is not x[key]:
                    tuples.append((x, key, x[key]))
                    x[key] = new
        return known[id(x)]

    tuples: list[tuple[Any, Any, Any]] = []
    try:
        for holder, key, x in placed:
            holder.put({**holder.contents(), key: x})
        if len(placed) < len(instead):
            args, kwargs = changed("arguments", args), changed("keywords", kwargs)
        yield args, kwargs
    finally:
        for x, key, old in reversed(tuples):
            x[key] = old
        for holder, contents in before.items():
            holder.put(contents)
