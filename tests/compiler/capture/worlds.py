"""Worlds: small modules of objects of every kind, in which random programs run, and what is compared of two of them.

A world is made anew from one source, so that two of them are equal and share nothing. In one a function runs as it is,
in the other compiled; afterwards they must still be equal in all that their variables lead to.
"""

import collections
import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyarr import Tensor
from tinyarr.random import Generator

SETUP = """
import collections, copy, dataclasses, enum, functools, threading, types, weakref
import numpy as np
import tinyarr as ta
from tinyarr import Tensor, nn

class Bag:
    shift = 1
    def __init__(self, **attributes):
        vars(self).update(attributes)
    def scaled(self, x):
        return x * self.n
    @property
    def doubled(self):
        return self.n * 2

class Heavy(Bag):
    shift = 2

class Shared:
    n, t, items = 1, Tensor([0.5, 1.5]), [2]

class Listed(list):
    k = 2
    def total(self):
        return len(self) * self.k

class Number(float):
    pass

class Weight(nn.Parameter):
    scale = 2

class Mode(enum.Enum):
    one, two = 1, 2

class Caller:
    count = 0
    def __init__(self, f):
        self.f = f
    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.f(*args, **kwargs)
    def call(self, *args, **kwargs):
        Caller.count += 1
        return self(*args, **kwargs)

class Node:
    made = 0
    def __init__(self, t, parent=None):
        type(self).made += 1
        self.t, self.parent = t, parent

class Locked:
    __slots__ = ("_n", "t", "__dict__")
    def __init__(self):
        self._n, self.t = 1, Tensor([0.5])
    @property
    def n(self):
        return self._n
    @n.setter
    def n(self, value):
        self._n = value
        self.sets = getattr(self, "sets", 0) + 1
    def __getattr__(self, name):
        if name == "missing":
            return 3
        raise AttributeError(name)

Named = collections.namedtuple("Named", "t n")

@dataclasses.dataclass(slots=True)
class Slotted:
    t: object
    n: object

@dataclasses.dataclass(frozen=True)
class Config:
    n: object

class Model(nn.Module):
    def __init__(self):
        self.weight = nn.Parameter(Tensor([[1.0, -1.0, 0.5], [0.25, 2.0, -0.5]]))
        self.buffer = Tensor([0.5, 1.0, 1.5])
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        return x * self.weight.sum() + self.buffer.sum()

a = Tensor([[0.5, -1.0, 2.0], [1.0, 0.25, -0.75]])
row, turned, corner = a[0], a.T, a[:1, 1:]
w = Tensor([1.0, -2.0, 0.5], requires_grad=True)
v = Tensor([0.5, 0.25, 3.0], requires_grad=True)
G, N = Tensor([1.0, 2.0]), 2
bag = Bag(t=Tensor([3.0, 1.0]), n=1, pair=(2, 0.5), items=[1], config=Config(2))
other = Bag(t=a, n=2, up=bag)
slotted = Slotted(Tensor([1.0, 0.5]), 3)
ns = types.SimpleNamespace(t=Tensor([2.0]), n=2)
table = {"t": Tensor([0.5]), "n": 1, "f": lambda x: x * 2}
ordered = collections.OrderedDict(p=1, q=2)
counter = collections.Counter(n=1)
made = collections.defaultdict(list)
items, last = [Tensor([1.5]), Tensor([2.5])], collections.deque([Tensor([1.0])], maxlen=2)
listed, seen, pair = Listed([1]), {1}, (Tensor([0.75]), 3)
numbers = np.array([1.0, 2.0])
nested = {"l": [Bag(t=Tensor([1.0, -1.0]), n=1)], "d": {"e": [1, 2]}}
model, g = Model(), ta.Generator(3)
mode, number, named, locked = Mode.one, Number(1.5), Named(Tensor([2.0, 0.5]), 2), Locked()
weight, local, weak = Weight(Tensor([1.0])), threading.local(), weakref.ref(bag)
weight.tag, local.t, local.n = 1, Tensor([1.0]), 1
linear = nn.Linear(2, 1)
with ta.no_grad():
    linear.weight.assign(0.5), linear.bias.assign(0.25)
optimizer = ta.optim.AdamW([linear.weight, linear.bias], lr=0.1)
tensors, graph = {w}, Node(Tensor([1.0]), Node(Tensor([2.0])))
result = (Tensor([1.0]), Tensor([2.0, 3.0])), ()

def helper(x, scale=[2]):
    return x * scale[0] * helper.k
helper.k = 1

def backward(loss):
    with ta.enable_grad():
        loss().sum().backward()

def number_in(z):
    if isinstance(z, int | float | Tensor | None):
        return z.size if isinstance(z, Tensor) else z or 2
    parts = z.values() if isinstance(z, dict) else vars(z).values() if hasattr(z, "__dict__") else z
    return sum(part for part in parts if isinstance(part, int | float))

def tensor_in(z):
    if isinstance(z, int | float | Tensor | None):
        return z if isinstance(z, Tensor) else a
    parts = z.values() if isinstance(z, dict) else vars(z).values() if hasattr(z, "__dict__") else z
    return next((part for part in parts if isinstance(part, Tensor)), a)

inner = compiled(lambda x: x * bag.n + items[-1].sum())

def attempt(x):
    try:
        fail(x)
    except ValueError as error:
        bag.error = str(error)

def fail(x):
    items.append(x)
    bag.n += 1
    w.assign(0.0)
    raise ValueError("failed")

def turn(x):
    return ta.permute_dims(x, tuple(range(x.ndim))[::-1])
"""

FUNCTION = """
def make():
    cell_t, cell_n, cell_l = Tensor([0.5, 0.25]), 1, [1]
    def set_cells(t, n):
        nonlocal cell_t, cell_n
        cell_t, cell_n = t, n
        cell_l.append(n)
    def f(x, y, k=1.5, i=2, *, z=None):
        global G, N, graph, mode, named
        nonlocal cell_t, cell_n
        with ta.no_grad():
            u = x * 1.0
            {body}
        return {returned}
    return f, set_cells
f, set_cells = make()
run = {run}
"""


def world(function: str, compiled: Callable) -> dict[str, Any]:
    """The variables of a new world with this function in it, and another that is compiled in all but eager worlds."""
    variables: dict[str, Any] = types.ModuleType("a_world").__dict__
    variables["compiled"] = compiled
    for source in (SETUP, function):
        exec(_code(source), variables)
    return variables


def execute(line: str, variables: dict[str, Any]) -> None:
    exec(_code(line), variables)


def _code(source: str) -> types.CodeType:
    """One code object for all worlds, so that their functions have the same."""
    if source not in _known:
        if len(_known) > 1000:
            _known.clear()
        _known[source] = compile(source, "a world", "exec", dont_inherit=True)
    return _known[source]


_known: dict[str, types.CodeType] = {}


def differences(one: Any, other: Any, tolerance: float = 0) -> list[str]:
    """Where two objects differ in what they lead to: values, kinds, order, which is the same object, shared memory.

    tolerance: of the elements of tensors, relative to the largest of each; 0 asks for the same bits.
    """
    comparison = _Comparison(tolerance)
    comparison.compare("", one, other)
    return comparison.found


class _Comparison:
    def __init__(self, tolerance: float) -> None:
        self.found: list[str] = []
        self._tolerance = tolerance
        self._pairs: tuple[dict[int, int], dict[int, int]] = ({}, {})  # objects met, by id, each way
        self._alive: list[Any] = []
        self._memory: tuple[dict, dict] = ({}, {})  # a number for each address, in the order in which they are met

    def compare(self, path: str, one: Any, other: Any) -> None:
        tasks = [(path, one, other)]
        while tasks and not self.found:
            tasks += reversed(list(self._parts(*tasks.pop())))

    def _differ(self, path: str, what: str, one: Any, other: Any) -> list:
        self.found.append(f"{path}: {what}: {one!r} and {other!r}")
        return []

    def _parts(self, path: str, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
        if type(one) in _VALUES:
            is_one = one == other if type(one) is types.CodeType else repr(one) == repr(other)
            if type(one) is not type(other) or not is_one:
                self._differ(path, "value", one, other)
            return []
        forth, back = self._pairs
        if id(one) in forth or id(other) in back:
            if forth.get(id(one)) != id(other):
                self._differ(path, "identity", one, other)
            return []
        forth[id(one)], back[id(other)] = id(other), id(one)
        self._alive += one, other
        kinds = type(one), type(other)
        if isinstance(one, type):
            if getattr(one, "__module__", "") != "a_world":
                return [] if one is other else self._differ(path, "class", one, other)
        elif kinds[0].__module__ != "a_world" and kinds[0] is not kinds[1]:
            return self._differ(path, "type", *kinds)
        if type(one) in (types.BuiltinFunctionType, types.GetSetDescriptorType, types.MemberDescriptorType):
            return []
        return [(f"{path}'s type", *kinds), *self._inside(path, one, other)]

    def _inside(self, path: str, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
        if isinstance(one, Tensor):
            return self._tensor(path, one, other)
        if isinstance(one, Generator):
            return [(f"{path}'s state", one.state_dict(), other.state_dict())]
        if isinstance(one, np.ndarray):
            return [(f"{path}'s elements", one.tolist(), other.tolist()), (f"{path}'s dtype", one.dtype, other.dtype)]
        found = []
        if isinstance(one, dict):
            found += self._dict(path, one, other)
        elif isinstance(one, list | tuple | collections.deque):
            found.append((f"len({path})", len(one), len(other)))
            found += [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(one, other))]
        elif isinstance(one, set):
            found.append((path, sorted(map(repr, one)), sorted(map(repr, other))))
        elif isinstance(one, types.CellType):
            found.append((path, one.cell_contents, other.cell_contents))
        elif isinstance(one, types.MethodType | property | staticmethod | classmethod):
            names = "__self__", "__func__", "fget"
            found += [(f"{path}.{name}", *(getattr(x, name, None) for x in (one, other))) for name in names]
        elif isinstance(one, float):
            found.append((path, float(one), float(other)))
        elif isinstance(one, weakref.ref):
            found.append((f"{path}()", one(), other()))
        elif isinstance(one, functools.partial):
            names = "func", "args", "keywords"
            found += [(f"{path}.{name}", getattr(one, name), getattr(other, name)) for name in names]
        if isinstance(one, types.FunctionType):
            names = "__code__", "__closure__", "__defaults__", "__kwdefaults__"
            found += [(f"{path}.{name}", getattr(one, name), getattr(other, name)) for name in names]
        for name in getattr(type(one), "__slots__", ()):
            found.append((f"{path}.{name}", getattr(one, name, "nothing"), getattr(other, name, "nothing")))
        if hasattr(one, "__dict__"):
            found += self._dict(f"{path}.", _attributes(one), _attributes(other))
        return found

    def _dict(self, path: str, one: dict, other: dict) -> list[tuple[str, Any, Any]]:
        keys = [[x for x in held if x not in _PYTHONS] for held in (one, other)]
        if keys[0] != keys[1]:
            return self._differ(path, "keys", *keys)
        return [(f"{path}{key}", one[key], other[key]) for key in keys[0]]

    def _tensor(self, path: str, one: Tensor, other: Tensor) -> list[tuple[str, Any, Any]]:
        # What is returned is a copy, and so none is a leaf.
        kinds = [
            (x.shape, x.dtype, x.requires_grad, path.startswith("result") or x.is_leaf, x._hooks is None)
            for x in (one, other)
        ]
        if kinds[0] != kinds[1]:
            return self._differ(path, "shape, dtype, requires_grad, is_leaf, no hooks", *kinds)
        values = [x.detach().numpy() for x in (one, other)]
        if values[0].tobytes() != values[1].tobytes() and not self._is_near(*values):
            return self._differ(path, "elements", *(x.tolist() for x in values))
        addresses = [self._numbered(i, x) for i, x in enumerate((one, other))]
        if addresses[0] != addresses[1]:
            return self._differ(path, "shared memory", *addresses)
        return [(f"{path}.grad", one.grad, other.grad), (f"{path}'s hooks", one._hooks, other._hooks)]

    def _is_near(self, x: np.ndarray, y: np.ndarray) -> bool:
        near = self._tolerance * np.abs(y).max(initial=1)
        return bool(near) and np.allclose(x, y, rtol=0, atol=near, equal_nan=True)

    def _numbered(self, world: int, x: Tensor) -> list[int]:
        """For each element of a tensor the number of its address."""
        a, known = x.array, self._memory[world]
        self._alive.append(a.storage)
        steps = [np.arange(n) * s for n, s in zip(a.shape, a.strides)]
        places = a.offset + sum(np.meshgrid(*steps, indexing="ij"), np.zeros(a.shape, np.int64))
        return [known.setdefault((id(a.storage), int(p)), len(known)) for p in places.reshape(-1)]


def _attributes(x: Any) -> dict[str, Any]:
    return {name: part for name, part in vars(x).items() if name not in _PYTHONS}


_VALUES = {bool, int, float, str, bytes, type(None), types.CodeType, types.ModuleType}
_PYTHONS = {"__builtins__", "__dict__", "__weakref__", "__doc__", "__spec__", "__loader__", "__annotations__",
            "__dataclass_fields__", "__dataclass_params__", "__slotnames__"}  # fmt: skip
