"""A device of Python lists: the smallest backend that trains GPT-2. docs/write-a-backend.md says what it owes.

    import examples.backend.python_lists   # registers the device "lists"
    x = tinyarr.ones((2, 3), device="lists")

Memory is a list with a NumPy scalar for each element, since those round as the dtypes ask. Kernels walk positions.
"""

import itertools
import math

import numpy as np

from tinyarr.array import Array, Storage
from tinyarr.backends.base import Backend, Kernel
from tinyarr.backends.numpy.functions import FUNCTIONS, philox_scratch, random_bits
from tinyarr.device import register
from tinyarr.errors import OutOfBounds
from tinyarr.ops.elementwise_primitive import Pointwise
from tinyarr.ops.index import _take, _take_gradient
from tinyarr.ops.matmul import _matmul
from tinyarr.ops.reduce import _max, _min, _prod, _sum
from tinyarr.ops.typing import dtype_constant, integer_casts
from tinyarr.views import contiguous_strides

WEAK = {"bool": np.bool_, "signed": np.int64, "float": np.float64}  # of Python scalars


class Elements:
    """A view of a list: `at` are the positions of its elements in `memory`, in row-major order."""

    def __init__(self, memory, dtype, shape, strides, offset):
        self.memory, self.dtype, self.shape, self.strides = memory, dtype, shape, strides
        self.at = [offset]
        for n, step in zip(shape, strides):
            self.at = [p + i * step for p in self.at for i in range(n)]

    def __iter__(self):
        return (self.memory[p] for p in self.at)

    def __len__(self):
        return len(self.at)

    def put(self, values):
        """Stores numbers, in row-major order, rounded to the dtype."""
        kind = self.dtype.numpy.type
        for p, value in zip(self.at, values, strict=True):
            self.memory[p] = value if type(value) is kind else cast(value, self.dtype)

    def broadcast(self, shape):
        """The elements in row-major order of a shape that this one's broadcasts to."""
        extra = len(shape) - len(self.shape)
        strides = (0,) * extra + tuple(0 if n == 1 else s for n, s in zip(self.shape, self.strides))
        return Elements(self.memory, self.dtype, shape, strides, self.at[0]) if math.prod(shape) else ()


class ListBackend(Backend):
    """What a device must do; all else is inherited: programs, for one, are interpreted call by call."""

    def __init__(self, device):
        self.device = device

    def empty(self, shape, dtype, strides, nbytes):
        return Array(Storage([dtype.numpy.type(0)] * math.prod(shape), nbytes, self.device), dtype, shape, strides, 0)

    def handle(self, array):
        return Elements(array.storage.memory, array.dtype, array.shape, array.strides, array.offset)

    def copy(self, source, target):
        target.data.put(list(source.data))

    def from_numpy(self, data, target):
        target.data.put(list(data.reshape(-1)))

    def to_numpy(self, array):
        return np.array(list(array.data), array.dtype.numpy).reshape(array.shape)

    def kernel(self, call):
        if isinstance(call.primitive, Pointwise):
            return Kernel(elementwise(call), in_place=True)
        if call.primitive not in KERNELS:
            return None
        run = KERNELS[call.primitive]

        def function(inputs, outputs):
            with np.errstate(all="ignore"):
                outputs[0].put(run(*inputs, outputs[0], **call.params))

        return Kernel(function)


def cast(x, dtype):
    """A number as one of another dtype."""
    out = np.empty((), dtype.numpy)
    FUNCTIONS["cast"](np.asarray(x), out=out)
    return out[()]


def elementwise(call):
    """An expression in the scalar language, evaluated at one position after the other."""
    typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    shape = call.out_shapes[0]
    strides, weak = contiguous_strides(shape), [WEAK.get(kind) for kind in call.in_dtypes]
    checked = [(i, dtype) for i, dtype in integer_casts(typed) if call.in_dtypes[i] == "signed"]

    def function(inputs, outputs):
        for i, dtype in checked:
            dtype_constant(call.primitive.name, inputs[i], dtype)
        read = [x.broadcast(shape) if kind is None else itertools.repeat(kind(x)) for x, kind in zip(inputs, weak)]
        made = [[] for _ in outputs]
        with np.errstate(all="ignore"):
            for number, operands in zip(range(math.prod(shape)), zip(*read) if read else itertools.repeat(())):
                values = []
                for v in typed.values:
                    values.append(evaluate(v, [values[a] for a in v.args], operands, number, shape, strides))
                for results, n in zip(made, typed.outputs):
                    results.append(values[n])
        for out, results in zip(outputs, made):
            out.put(results)

    return function


def evaluate(v, args, operands, number, shape, strides):
    """One value of a typed expression, for the element with a row-major number."""
    if v.op == "input":
        return operands[v.value]
    if v.op == "constant":
        return v.dtype.numpy.type(v.value)
    if v.op == "index":
        return v.dtype.numpy.type(number // strides[v.value] % shape[v.value])
    if v.op == "bitcast":
        return np.asarray(args[0]).view(v.dtype.numpy)[()]
    out = np.empty((), v.dtype.numpy)
    if v.op == "random_bits":
        words = np.empty(1, v.dtype.numpy)
        scratch = [np.empty(size, kind) for size, kind in philox_scratch(1)]
        random_bits(int(args[0]), int(args[1]), v.value, number, words, scratch)
        return words[0]
    FUNCTIONS[v.op](*args, out=out)
    return out[()]


def wide(x):
    """The elements in the dtype in which they are computed."""
    return [cast(value, x.dtype.compute) for value in x]


def in_pairs(values, join, start):
    """Joins neighbours, then the results' neighbours, and so on: errors grow with the logarithm of their number."""
    while len(values) > 1:
        values = [*map(join, values[::2], values[1::2]), *values[len(values) & ~1 :]]
    return values[0] if values else start


def reduction(join, start):
    def run(x, out, *, axis, keepdims):
        """Each result from those elements whose other positions are its own."""
        kept = [n for a, n in enumerate(x.shape) if a not in axis]
        places = dict(zip(itertools.product(*map(range, kept)), ([] for _ in range(math.prod(kept)))))
        for position, value in zip(itertools.product(*map(range, x.shape)), wide(x)):
            places[tuple(i for a, i in enumerate(position) if a not in axis)].append(value)
        return [in_pairs(values, join, start) for values in places.values()]

    return run


def matmul(x, y, out):
    """Rows times columns, for each matrix of a batch."""
    a = Elements(wide(x), x.dtype, x.shape, contiguous_strides(x.shape), 0)
    b = Elements(wide(y), y.dtype, y.shape, contiguous_strides(y.shape), 0)
    vectors = len(x.shape) == 1, len(y.shape) == 1
    batch = out.shape[: len(out.shape) - (not vectors[0]) - (not vectors[1])]
    m, k = (1, *x.shape)[-2:] if vectors[0] else x.shape[-2:]
    n = 1 if vectors[1] else y.shape[-1]
    lefts = list(a.broadcast((*batch, *((k,) if vectors[0] else (m, k)))))
    rights = list(b.broadcast((*batch, *((k,) if vectors[1] else (k, n)))))
    made = []
    for matrix, i, j in itertools.product(range(math.prod(batch)), range(m), range(n)):
        row, column = (matrix * m + i) * k, matrix * k * n + j
        products = [lefts[row + p] * rights[column + p * n] for p in range(k)]
        made.append(in_pairs(products, np.add, x.dtype.compute.numpy.type(0)))
    return made


def checked(indices, size, wrap):
    """Indices from 0 on. Raises OutOfBounds for one that the axis hasn't."""
    for i in map(int, indices):
        if not (-size if wrap else 0) <= i < size:
            raise OutOfBounds(f"take: index {i} is out of range, the axis has size {size}")
    return [int(i) % size for i in indices]


def around(shape, axis, count):
    """The sizes before and behind an axis or several."""
    return math.prod(shape[:axis]), math.prod(shape[axis + count :])


def take(x, indices, out, *, axis, wrap):
    rows, size = checked(indices, x.shape[axis], wrap), x.shape[axis]
    before, behind = around(x.shape, axis, 1)
    values = list(x)
    return [values[(b * size + i) * behind + k] for b in range(before) for i in rows for k in range(behind)]


def take_gradient(g, indices, out, *, axis, size, wrap):
    """Adds each row to the one that it was taken from."""
    rows, values = checked(indices, size, wrap), iter(wide(g))
    before, behind = around(g.shape, axis, len(indices.shape))
    total = [out.dtype.compute.numpy.type(0)] * (before * size * behind)
    for b, i, k in itertools.product(range(before), rows, range(behind)):
        total[(b * size + i) * behind + k] += next(values)
    return total


KERNELS = {
    _sum: reduction(np.add, 0), _prod: reduction(np.multiply, 1), _max: reduction(np.maximum, None),
    _min: reduction(np.minimum, None), _matmul: matmul, _take: take, _take_gradient: take_gradient,
}  # fmt: skip

register("lists", ListBackend)
