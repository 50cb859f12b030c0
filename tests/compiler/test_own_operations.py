"""A user's own operations in compiled functions: by any name, with operands of any name, with kernels or without."""


import numpy as np
import pytest

import tinyarr as ta
from models.gpt2 import GPT2, Config
from tests.backends.cuda.bound import bound
from tests.test_primitives import in_tuple
from tinyarr import Device, Tensor, grad, jvp
from tinyarr.backends.c.kernel import KERNELS as c_kernels
from tinyarr.backends.numpy.registry import KERNELS, kernel
from tinyarr.compiler.memory.plan import plan
from tinyarr.errors import ArgumentError, DeviceError, ShapeError
from tinyarr.ops.primitive import Primitive, apply

# As the compiler and the backends know operations, as C or CUDA can't call anything, and a lambda.
NAMES = (
    "copy add astype full gelu_tanh gelu_tanh_gradient matmul concat unslice take_gradient sum layer_norm wait "
    "all_reduce run scratch static σ <lambda>"
).split()
OPERANDS = (
    "INFINITY NAN M_PI I EOF NULL errno long double static inline restrict exp log y1 x0 out0 i0 v0 n scratch error "
    "launch memory threads MIN ROWS KERNEL report uint8_t omp_get_thread_num unix σ blockIdx T"
).split()


def own(name):
    """An elementwise operation of that name."""

    def function(x, y):
        return ta.exp(x) - y * 3

    function.__name__ = name
    return ta.elementwise(function)


def with_operands(x, y):
    namespace = {"ta": ta}
    exec(f"def operation({x}, {y}):\n    return ta.exp({x}) - {y} * 3", namespace)
    return ta.elementwise(namespace["operation"])


def assert_close(found, wanted):
    for a, b in zip(in_tuple(found), in_tuple(wanted), strict=True):
        assert np.allclose(a.numpy(), b.numpy(), rtol=1e-5), (a, b)  # C's exp errs otherwise than NumPy's


@pytest.fixture
def x():
    return Tensor(np.arange(12.0).reshape(3, 4) / 10, dtype=ta.float32)


def test_an_operation_may_bear_any_name(x):
    operations = [own(name) for name in NAMES]

    def function(x):
        each = [operation(x, x.T.reshape((3, 4)) + i) for i, operation in enumerate(operations)]
        read = [operation(x, 1.0).sum(axis=0) for operation in operations]
        gradients = [grad(lambda x, f=operation: f(x @ x.T, 1.0).sum())(x) for operation in operations]
        return (*each, *read, *gradients)

    assert_close(ta.compile(function)(x), function(x))


def test_on_cuda_an_operation_may_bear_any_name():
    def tasks(name):
        operation = own(name)
        compiled = ta.compile(lambda x: (operation(x, 1.0), operation(operation(x, x).T, 2.0), operation(x, x).sum()))
        compiled(ta.zeros((3, 4), device=Device("meta", like="cuda:sm_90")))
        return bound(plan(compiled.graphs[0])).tasks

    plain = tasks("plain")
    for name in NAMES:
        found = tasks(name)
        assert [(t.inputs, t.outputs, t.scratch) for t in found] == [(t.inputs, t.outputs, t.scratch) for t in plain]
        functions = [step.function for t in found for step in t.plan.steps]
        assert all(function.isascii() and function.isidentifier() for function in functions)


def test_operands_may_bear_any_name(x):
    pairs = [pair for name in OPERANDS for pair in (("other", name), (name, "other"))]
    operations = [with_operands(*pair) for pair in pairs]

    def function(x, k):
        return tuple(operation(x, k if i % 4 < 2 else x + 1) for i, operation in enumerate(operations))

    assert_close(ta.compile(function)(x, Tensor(2.0)), function(x, Tensor(2.0)))


def test_a_gradient_by_hand_refuses_an_operand_that_is_called_as_a_gradient():
    for name in ("g", "g_out", "out"):
        with pytest.raises(ArgumentError, match=f"an operand is called '{name}'"):
            with_operands(name, "y").gradient(lambda g, y: (g, g))


def test_derivatives_of_any_order_compile(x):
    def third(f):
        for _ in range(3):
            f = grad(lambda x, f=f: f(x).sum())
        return f

    functions = [third(ta.silu), third(ta.gelu), third(ta.softplus), third(lambda x: own("copy")(x, x))]
    functions += [lambda x: jvp(grad(lambda x: x.logsumexp()), (x,), (x + 1,))[1]]
    for found, wanted in zip(ta.compile(lambda x: [f(x) for f in functions])(x), [f(x) for f in functions]):
        assert np.allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def defined():
    """defined(name, **more): a primitive of that name, x doubled, with a kernel for NumPy's arrays."""
    made = []

    def define(name, **more):
        primitive = Primitive(name, lambda shapes, dtypes: [(shapes[0], dtypes[0])], derived=True, **more)
        made.append(primitive)
        kernel(primitive, layouts="dense")(lambda x, out: np.multiply(x, 2, out=out))
        return primitive

    yield define
    for primitive in made:
        del KERNELS[primitive]


def test_what_has_no_c_kernel_is_its_composite_in_a_program(x, defined):
    twice = defined("take", composite=lambda x: x + x)
    twice.gradient(lambda g: g * 10)  # no derivative of the composite
    function = ta.value_and_grad(lambda x: (apply(twice, x) + 1).sum())
    assert_close(ta.compile(function)(x), function(x))


def test_a_composite_may_stand_for_a_kernel_that_writes(x, defined):
    twice = defined("scatter", composite=lambda x: x + x).no_gradient()
    for way in (apply, ta.compile(apply)):
        out = ta.zeros_like(x)
        way(twice, x, out=out)
        way(twice, out, out=out)
        assert_close(out, x * 4)
        with pytest.raises(ShapeError, match="scatter: out has shape"):
            way(twice, x, out=ta.zeros((4, 3)))


def test_what_has_neither_runs_in_numpy_between_two_sections_of_c(x, defined):
    twice = defined("softmax").no_gradient()

    def function(x):
        return apply(twice, (x + 1).T) + apply(twice, ta.zeros((0, 2))).sum(), apply(twice, x) * 3

    compiled = ta.compile(function)
    assert_close(compiled(x), function(x))
    (program,) = compiled.programs
    assert {kernel.name for kernel in program.kernels} >= {"add_kernel", "copy_kernel", "multiply_kernel"}
    assert compiled.memory[0].scratch == program.arena - plan(compiled.graphs[0]).arena


@pytest.mark.parametrize("name", [p.name for p in c_kernels if p.composite is not None])
def test_a_program_without_one_of_the_c_kernels_holds_its_composite(name, monkeypatch):
    """Also where a pass would have made such a call."""
    primitive = next(p for p in c_kernels if p.name == name)
    monkeypatch.delitem(c_kernels, primitive)
    model = GPT2(Config(vocab_size=11, block_size=4, n_layer=1, n_head=1, n_embd=8))
    tokens = Tensor([[1, 2, 3, 1]])
    step = ta.compile(ta.value_and_grad(lambda x: model.loss(tokens, tokens) + (x @ x).sum()))
    found, wanted = step(ta.ones((2, 2))), ta.value_and_grad(lambda x: model.loss(tokens, tokens) + (x @ x).sum())
    assert_close(found, wanted(ta.ones((2, 2))))
    assert primitive not in {node.call.primitive for node in step.graphs[0].nodes}


def test_what_has_no_kernel_and_no_composite_is_refused(x):
    bare = Primitive("sum", lambda shapes, dtypes: [(shapes[0], dtypes[0])], derived=True).no_gradient()
    for function in (lambda x: apply(bare, x), ta.compile(lambda x: apply(bare, x))):
        with pytest.raises(DeviceError, match="sum: has no kernel on cpu and no composite"):
            function(x)
    with pytest.raises(ArgumentError, match="no primitive is called 'unheard_of'"):
        kernel("unheard_of")(print)
