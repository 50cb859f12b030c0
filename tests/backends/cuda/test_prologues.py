"""Expressions in the place of tensors that kernels read and write: the same bits, without the memory between."""

from dataclasses import replace

import numpy as np
import pytest

import tinyarr as ta
from tests.backends.cuda.test_plans import ARCHITECTURES
from tests.test_primitives import recorded
from tinyarr import Tensor, dtypes
from tinyarr.backends.cuda.planning import compiler, plans
from tinyarr.backends.cuda.planning.prologues import Prologue, fill
from tinyarr.backends.cuda.planning.registry import Input, Launch, LaunchPlan, Operand, Output
from tinyarr.ops.primitive import registry
from tinyarr.tensor import result_tensor
from tinyarr.views import contiguous_strides

ROWS = {  # what is computed of a matrix; the first word is the primitive
    "sum of rows": lambda y: y.sum(axis=1),
    "sum of columns": lambda y: y.sum(axis=0),
    "sum of all": lambda y: y.sum(keepdims=True),
    "max": lambda y: y.max(axis=1),
    "layer_norm": ta.layer_norm,
    "rms_norm": ta.rms_norm,
    "softmax": ta.softmax,
    "log_softmax": ta.log_softmax,
    "layer_norm_gradient": lambda y: ta.vjp(ta.layer_norm, y)[1](y.exp()),
    "softmax_gradient": lambda y: ta.vjp(ta.softmax, y)[1](y.exp()),
    "matmul of integers": lambda y: y.astype(ta.int32) @ y.astype(ta.int32).mT,
}
SHAPES = [(6, 128), (3, 67), (2, 40_000)]
KINDS = [ta.float32, ta.bfloat16]


def dense(shape, dtype) -> Operand:
    return Operand(shape, contiguous_strides(shape), dtype)


def call_of(name, y):
    """The call of the primitive, the arrays that it gets, and its plan."""
    with recorded() as ran:
        ROWS[name](y)
    ((call, arrays),) = [(c, a) for c, a in ran if c.primitive.name == name.split()[0]]
    return call, arrays, plans.planner(call)(*plans.dense_operands(call))


def read_filling(call, number: int) -> Prologue:
    """In the place of operand `number` the product of the next two inputs, a matrix and a row; it is stored too."""
    shape, dtype = call.in_shapes[number], call.in_dtypes[number]
    row, inputs, outputs = shape[-1:], len(call.in_shapes), len(call.out_shapes)
    typed = registry["multiply"].typed((shape, row), (dtype, dtype), {})
    typed = replace(typed, outputs=typed.outputs * 2, dtypes=typed.dtypes * 2)
    whole = dense(shape, dtype)
    sources = [(whole, Input(inputs)), (dense(row, dtype), Input(inputs + 1))]
    return Prologue(typed, shape, sources, [(whole, None), (whole, Output(outputs))])


def written_filling(call) -> Prologue:
    """In the place of the first result its square."""
    shape, dtype = call.out_shapes[0], call.out_dtypes[0]
    typed = registry["square"].typed((shape,), (dtype,), {})
    return Prologue(typed, shape, [(dense(shape, dtype), None)], [(dense(shape, dtype), Output(0))])


def filled(name, y) -> tuple:
    """Call, arrays, plan, and the plan with both slots filled."""
    call, arrays, plan = call_of(name, y)
    both = fill(fill(plan, Input(0), read_filling(call, 0)), Output(0), written_filling(call))
    return call, arrays, plan, both


def steps_with(plan: LaunchPlan, address) -> int:
    return sum(any(type(a) is type(address) and a == address for a in step.arguments) for step in plan.steps)


def matrix(shape, dtype, device="cpu") -> Tensor:
    rng = np.random.default_rng(0)
    return Tensor(rng.uniform(-2, 2, shape).astype("float32"), dtype=dtype, device=device)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ROWS)
def test_an_expression_takes_the_place_of_an_operand_and_of_a_result(name, shape):
    for dtype in KINDS:
        _, _, plan, both = filled(name, matrix(shape, dtype))
        assert len(both.steps) == len(plan.steps) and both.scratch == plan.scratch
        assert not steps_with(both, Input(0)) and not steps_with(both, Output(0))


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_kernel_with_filled_slots_compiles_without_a_gpu(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    for shape in SHAPES:
        for dtype in KINDS:
            for step in filled(name, matrix(shape, dtype))[-1].steps:
                for architecture in ARCHITECTURES if isinstance(step, Launch) else ():
                    assert step.function.encode() in compiler.compile_source(step.source, architecture)


def test_what_must_be_in_memory_is_not_replaced():
    x = ta.ones((4, 5, 6))
    with recorded() as ran:
        x.sum(axis=(0, 2))  # copied first, kept axes in front
    ((call, _),) = [(c, a) for c, a in ran if c.primitive.name == "sum"]
    plan = plans.planner(call)(*plans.dense_operands(call))
    assert fill(plan, Input(0), read_filling(call, 0)) is None


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ROWS)
def test_filled_slots_give_the_bits_of_separate_kernels(name, shape, dtype):
    backend = ta.Device("cuda").backend
    call, arrays, _, both = filled(name, matrix(shape, dtype, "cuda"))
    kind = call.in_dtypes[0]
    x, row = (matrix(s, dtype, "cuda").astype(kind) for s in (call.in_shapes[0], call.in_shapes[0][-1:]))
    product = x * row
    results = [ta.empty(s, dtype=d, device="cuda") for s, d in zip(call.out_shapes, call.out_dtypes)]
    stored = ta.empty(product.shape, dtype=kind, device="cuda")
    addresses = [t.array.data.address for t in (*map(result_tensor, arrays), x, row)]
    backend.loader.bind(both)(addresses, [t.array.data.address for t in (*results, stored)])
    expected = planned(backend, call, [product, *map(result_tensor, arrays[1:])])
    expected[0] = ta.square(expected[0])
    for found, right in zip((*results, stored), (*expected, product)):
        np.testing.assert_array_equal(found.astype(dtypes.float64).numpy(), right.astype(dtypes.float64).numpy())


def planned(backend, call, operands) -> list[Tensor]:
    """The results of the call's kernel, alone."""
    results = [ta.empty(s, dtype=d, device="cuda") for s, d in zip(call.out_shapes, call.out_dtypes)]
    plan = plans.planner(call)(*plans.dense_operands(call))
    backend.loader.bind(plan)([t.array.data.address for t in operands], [t.array.data.address for t in results])
    return results
