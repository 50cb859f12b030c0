"""Templates: what a traced function returns or keeps, to be made anew at each call. Floor 2.

Of the objects in it, those that were there before the call stand for themselves, whatever they are at that call; those
that the function made are made again; tensors of the trace are results of the program. One object in two places is one
object in two places again, and tensors that are kept and share memory still do. A tensor that is returned is a new one.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...errors import TraceError
from ...ops.primitive import Primitive
from ...tensor import Tensor, result_tensor
from ...views import View
from .executor import TracedStorage, require_current
from .symbolic_numbers import EXPRESSIONS, SymbolicNumber, value_of

RETURNED = "the result"  # in errors, the place of what the function returns

_ATOMS = (
    bool, int, float, complex, str, bytes, type(None), type(...), range, slice, type, enum.Enum, types.ModuleType,
    types.BuiltinFunctionType, types.CodeType, Primitive,
)  # fmt: skip


class NotMadeAnew(Exception):
    """An object that can't be copied, as a generator."""


class Existing(NamedTuple):
    """An object that this path of the capture leads to."""

    path: str


class Result:
    """A tensor that the program makes, or a view of one that was there before the call.

    number: of the result; path: of the other. view: of it, where more than one tensor shares it.
    """

    __slots__ = ("attributes", "grad", "has_wide_grad", "kind", "number", "path", "requires_grad", "view")

    def __init__(self, x: Tensor, number: int, path: str | None = None, view: View | None = None):
        is_leaf = x.node is None
        self.kind = type(x)
        self.requires_grad = is_leaf and x._requires_grad
        self.has_wide_grad = is_leaf and x._has_wide_grad
        self.number = number
        self.path = path
        self.view = view
        self.grad: Any = None
        self.attributes: Any = None  # of a class of the user's


class Built:
    """An object that the function made: `make(*arguments)`, then its state, items and entries."""

    __slots__ = ("arguments", "entries", "items", "make", "state")

    def __init__(self, make: Callable, arguments: Any = (), items: Any = (), entries: Any = (), state: Any = None):
        self.make, self.arguments, self.items, self.entries, self.state = make, arguments, items, entries, state


class Templates:
    """Makes the templates of one trace. tensors: the results, in the order of their numbers.

    looked_at: the paths of tensors whose elements or shapes count, since they or views of them are kept or returned.
    """

    def __init__(self, paths: dict[int, str | None], storages: dict[int, tuple[str, int]]):
        """Takes paths and storages of the capture; a constant, which is the same at each call, has None for a path."""
        self.tensors: list[Tensor] = []
        self._results: list[Result] = []  # of each tensor
        self.looked_at: set[str] = set()
        self._paths = paths
        self._storages = storages
        self._made: dict[int, Any] = {}
        self._kept: dict[int, list[Result]] = {}  # by their storage
        self._alive: list[Any] = []  # what an id stands for must not go away meanwhile

    def template(self, x: Any, where: str) -> Any:
        """The template of x. where: how to name it in an error."""
        if isinstance(x, SymbolicNumber):  # first, as it passes for a number
            return x.expression
        if isinstance(x, _ATOMS):
            return x
        if isinstance(x, Tensor) and where == RETURNED:
            return self._result(x, where)
        if id(x) in self._made:
            return self._made[id(x)]
        if id(x) in self._paths:
            path = self._paths[id(x)]
            return x if path is None else Existing(path)
        self._alive.append(x)
        if isinstance(x, Tensor):
            made: Any = self._result(x, where)
        elif type(x) is types.FunctionType:
            made = self._function(x, where)
        elif type(x) in (list, dict, set):  # which may hold themselves
            made = self._made[id(x)] = Built(type(x))
            self._fill(made, x, where)
        elif type(x) in (tuple, frozenset) or (isinstance(x, tuple) and hasattr(x, "_fields")):
            parts = [self.template(part, where) for part in x]
            make: Callable = type(x)._make if hasattr(x, "_fields") else type(x)
            made = Built(make, (Built(list, items=parts),))
        else:
            made = self._object(x, where)
        self._made[id(x)] = made
        return made

    def forget(self) -> None:
        """Lets go of the objects that the trace made."""
        self.tensors.clear()
        self._results.clear()
        self._made.clear()
        self._kept.clear()
        self._alive.clear()

    def _result(self, x: Tensor, where: str) -> Result:
        a = x.array
        known = self._paths.get(id(x))
        if known is not None:
            self.looked_at.add(known)
        require_current(a.storage, "" if where == RETURNED else f"kept ({where})")
        if isinstance(a.storage, TracedStorage) or where == RETURNED:
            made = Result(x, len(self.tensors))
            self.tensors.append(x)
            self._results.append(made)
            if where != RETURNED and not x._requires_grad:
                self._kept.setdefault(id(a.storage), []).append(made)
        elif id(a.storage) in self._storages and x.node is None:
            path, start = self._storages[id(a.storage)]
            self.looked_at.add(path)
            made = Result(x, -1, path, a.view._replace(offset=a.offset - start))
        else:
            raise TraceError(f"compile: {where} was set to a tensor from outside: copy it")
        if x.grad is not None:
            made.grad = self.template(x.grad, f"{where}.grad")
        if getattr(x, "__dict__", None):
            made.attributes = self.template(vars(x), where)
        return made

    def share(self) -> None:
        """Makes views of one result of the tensors that are kept and share memory."""
        for results in self._kept.values():
            if len(results) > 1:
                a = self.tensors[results[0].number].array
                size = a.storage.nbytes // a.dtype.itemsize
                whole = result_tensor(a.through(View((size,), (1,))))
                for result in results:
                    result.view = self.tensors[result.number].array.view
                    result.number = results[0].number
                self.tensors[results[0].number] = whole
        left = [number for number, result in enumerate(self._results) if result.number == number]
        numbers = {number: i for i, number in enumerate(left)}
        self.tensors = [self.tensors[number] for number in left]
        for result in self._results:
            result.number = numbers[result.number]

    def _function(self, f: types.FunctionType, where: str) -> Any:
        """A function that was defined in the trace: with what it closes over, and its defaults."""
        if not f.__closure__ and not any(isinstance(x, Tensor) for x in f.__defaults__ or ()):
            return f
        for cell in f.__closure__ or ():
            if id(cell) not in self._made and id(cell) not in self._paths:
                self._alive.append(cell)
                self._made[id(cell)] = Built(types.CellType, (self.template(cell.cell_contents, where),))
        cells = [self.template(cell, where) for cell in f.__closure__ or ()]
        make = functools.partial(_make_function, f.__code__, f.__globals__, f.__name__)
        return Built(make, (self.template(f.__defaults__, where), *cells))

    def _fill(self, made: Built, x: Any, where: str) -> None:
        if isinstance(x, dict):
            made.entries = [(self.template(key, where), self.template(part, where)) for key, part in x.items()]
        else:
            made.items = [self.template(part, where) for part in x]

    def _object(self, x: Any, where: str) -> Any:
        """Returns a template by the protocol of copy and pickle."""
        if isinstance(x, types.CoroutineType):
            x.close()  # nobody will await what the trace has made
        reduce = copyreg.dispatch_table.get(type(x))
        try:
            found = reduce(x) if reduce is not None else x.__reduce_ex__(4)
        except Exception as error:
            raise NotMadeAnew(f"{where} holds a {type(x).__qualname__}, which can't be made anew ({error})") from None
        if isinstance(found, str):  # a name in its module
            return x
        make, arguments, state, items, entries = (*found, None, None, None)[:5]
        if make is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
            kind, arguments, keywords = arguments
            make, arguments = functools.partial(kind.__new__, kind, **keywords), tuple(arguments)
        made = Built(make)
        cyclic = make is copyreg.__newobj__ and not arguments[1:]  # type: ignore[attr-defined]
        if cyclic:  # it is there before its state is, and may be a part of it
            self._made[id(x)] = made
        made.arguments = tuple(self.template(part, where) for part in arguments)
        made.state = None if state is None else self.template(state, where)
        made.items = [self.template(part, where) for part in items or ()]
        made.entries = [(self.template(key, where), self.template(part, where)) for key, part in entries or ()]
        return made


class TemplateObjects:
    """One call's objects of templates."""

    def __init__(self, objects: dict[str, Any], results: Sequence[Tensor], numbers: dict[str, Any]):
        self._objects = objects
        self._results = results
        self._numbers = numbers
        self._made: dict[int, Any] = {}

    def fill(self, x: Any) -> Any:
        """The object of a template."""
        kind = type(x)
        if kind is Result:
            return self._tensor(x)
        if kind is Built:
            return self._made[id(x)] if id(x) in self._made else self._build(x)
        if kind is Existing:
            return self._objects[x.path]
        if kind in EXPRESSIONS:
            return value_of(x, self._numbers)
        return x

    def _tensor(self, x: Result) -> Tensor:
        if id(x) not in self._made:
            t = self._results[x.number] if x.path is None else self._objects[x.path]
            if x.view is not None:
                t = result_tensor(t.array.through(x.view._replace(offset=t.array.offset + x.view.offset)))
            if x.kind is not Tensor:  # a Parameter, say
                t = _as(x.kind, t)
            t._requires_grad |= x.requires_grad
            t._has_wide_grad = x.has_wide_grad
            self._made[id(x)] = t
            if x.grad is not None:
                t.grad = self.fill(x.grad)
            if x.attributes is not None:
                vars(t).update(self.fill(x.attributes))
        return self._made[id(x)]

    def _build(self, x: Built) -> Any:
        made = x.make(*map(self.fill, x.arguments))
        self._made[id(x)] = made
        if x.state is not None:
            _set_state(made, self.fill(x.state))
        if isinstance(made, set):
            made.update(map(self.fill, x.items))
        else:
            for part in x.items:
                made.append(self.fill(part))
        for key, part in x.entries:
            made[self.fill(key)] = self.fill(part)
        return made


def _as(kind: type[Tensor], x: Tensor) -> Tensor:
    """A tensor as one of this class, the same object where Python can make it one."""
    try:
        x.__class__ = kind
    except TypeError:  # it has attributes of its own
        x, history = result_tensor(x.array, kind), (x.node, x.node_output, x._requires_grad)
        x.node, x.node_output, x._requires_grad = history
    return x


def _make_function(
    code: types.CodeType, variables: dict[str, Any], name: str, defaults: tuple | None, *cells: types.CellType
) -> types.FunctionType:
    return types.FunctionType(code, variables, name, defaults, cells)


def _set_state(made: Any, state: Any) -> None:
    """Gives an object its state as copy does."""
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return
    slots: Any = {}
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    for name, part in (slots or {}).items():
        object.__setattr__(made, name, part)
    if state:
        made.__dict__.update(state)

