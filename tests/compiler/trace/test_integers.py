"""Python integers beside tensors: compiled functions give what eager mode gives, or raise what it raises."""

import inspect
import random

import numpy as np
import pytest

import tinyarr as ta
from tests.test_primitives import in_tuple
from tinyarr import Device, Tensor
from tinyarr.compiler import PASSES, Compiled
from tinyarr.errors import DtypeError, TinyarrError
from tinyarr.ops.elementwise_primitive import Elementwise
from tinyarr.ops.primitive import registry

EDGES = sorted(
    {sign * (2**bits + more) for bits in (7, 8, 16, 31, 32, 63, 64) for more in (-1, 0, 1) for sign in (-1, 1)}
    | {0, 1, -1, 500, 2**100, -(2**100), 2**130, 2**1023, 2**2000, -(2**2000)}
)
DTYPES = "bool uint8 int8 int32 uint32 int64 uint64 bfloat16 float16 float32 float64".split()
OPERATIONS = [
    p for p in registry.values()
    if isinstance(p, Elementwise) and p.built_in and len(p.inputs) in (2, 3)
    and "counter" not in p.inputs  # of a draw, which is no tensor
    and all(x.kind is not x.KEYWORD_ONLY for x in inspect.signature(p.function).parameters.values())
]  # fmt: skip


def reached(graph):
    raise AssertionError("the trace did not refuse the integer")


def results(function, *args):
    """The results, or the error's type."""
    try:
        return [x.astype(ta.float32) if x.dtype.compute is not x.dtype else x for x in in_tuple(function(*args))]
    except TinyarrError as error:
        return type(error)


def close(found, wanted):
    exact = not wanted.dtype.is_float
    a, b = found.numpy(), wanted.numpy()
    return found.dtype is wanted.dtype and np.allclose(a, b, rtol=0 if exact else 1e-5, atol=0, equal_nan=True)


def assert_compiled_is_eager(cases):
    """cases: (operation, dtype, which operand is the integer, integer)."""
    accepted, wanted = [], []
    tensors = {dtype: Tensor(np.array([0, 1, 2, 100, 7]), dtype=dtype) for dtype in DTYPES}
    tensors["condition"] = Tensor([True, False, True, True, False])
    for operation, dtype, position, integer in cases:
        names = [dtype] * len(operation.inputs)
        if operation is ta.where:
            names[0] = "condition"
        names[position] = None

        def call(given, operation=operation, names=names, integer=integer):
            return operation(*[integer if name is None else given[name] for name in names])

        eager = results(call, tensors)
        if isinstance(eager, type):
            found = results(Compiled(call, PASSES, reached), tensors)
            assert found is eager, (operation, dtype, position, integer, found)
        else:
            accepted.append(call)
            wanted.append(eager)
    if accepted:
        found = results(ta.compile(lambda given: [call(given) for call in accepted]), tensors)
        for call, a, (b,) in zip(accepted, found, wanted, strict=True):
            assert close(a, b), (call.__defaults__, a, b)


def test_integers_beside_tensors_are_taken_or_refused_as_in_eager_mode():
    choose = random.Random(0).choice
    cases = []
    for operation in OPERATIONS * 3:
        position = choose(range(len(operation.inputs)))
        cases.append((operation, choose(DTYPES), position, choose(EDGES)))
    assert_compiled_is_eager(cases)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda p: p.name)
def test_all_integers_beside_all_tensors(operation):
    for dtype in DTYPES:
        for position in range(len(operation.inputs)):
            assert_compiled_is_eager([(operation, dtype, position, integer) for integer in EDGES])


@ta.elementwise(outputs=("a", "b", "c"))
def constants(x):
    return ta.where(x < 2**100, 1, 0), x / 2**100, ta.where(x <= -(2**63) - 1, 1, 0)


def test_an_expression_may_compare_with_integers_of_any_size():
    for x in (Tensor([0, -(2**63), 2**63 - 1]), Tensor([0.0, 1e30, 1e31])):
        found, wanted = ta.compile(constants)(x), constants(x)
        assert all(map(close, found, wanted))
    assert constants(Tensor([1, 2]))[0].tolist() == [1, 1]


@pytest.mark.parametrize("x", [3, 2**100, 10**5000], ids=["small", "wide", "huge"])
def test_an_integer_that_int64_cannot_hold_is_refused_in_words(x):
    tensor = Tensor([1, 2])
    for function in (lambda t: t & (x + 2**64), lambda t: ta.elementwise(lambda t: ta.where(t > 1, t, x + 2**64))(t)):
        for way in (function, ta.compile(function)):
            with pytest.raises(DtypeError, match=r"the Python integer .* does not fit int64"):
                way(tensor)


def test_programs_on_cuda_refuse_what_does_not_fit():
    x = ta.zeros((3,), dtype=ta.uint8, device=Device("meta", like="cuda:sm_90"))
    for function in (lambda x: x == -1, lambda x: ta.clip(x, -1, 500), lambda x: x + 256):
        with pytest.raises(DtypeError, match="does not fit uint8"):
            ta.compile(function)(x)
    assert ta.compile(lambda x: (x / 2**64, x.astype(ta.int64) < 2**64))(x)[0].dtype is ta.float32
