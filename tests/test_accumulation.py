"""How backward adds to `.grad`: where it lies, and in a dtype of its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.test_autograd import leaf, storage
from tinyarr import Tensor
from tinyarr.errors import DtypeError, GradientError


@pytest.mark.parametrize("dtype", [ta.bfloat16, ta.float16, ta.float8_e4m3fn], ids=lambda d: d.name)
def test_the_gradient_of_a_half_type_is_kept_in_float32_where_asked_for(dtype):
    x = leaf([0.5, 2.0], dtype)
    assert x.grad_dtype is dtype
    x.grad_dtype = "float32"
    seen = []
    x.register_hook(seen.append)
    for scale in (1.0, 2.0**-12):  # of which a half type holds no sum
        (x * Tensor(scale, dtype=dtype)).sum().backward()
    assert (x.grad_dtype, x.grad.dtype, x.dtype) == (ta.float32, ta.float32, dtype)
    assert x.grad.tolist() == [1 + 2.0**-12 if dtype is not ta.float8_e4m3fn else 1.0] * 2
    assert [g.dtype for g in seen] == [ta.float32] * 2


def test_each_use_of_a_tensor_adds_to_its_gradient_in_float32():
    x = leaf([1.0], ta.bfloat16)
    x.grad_dtype = ta.float32
    (x * 1.0 + x * 2.0**-10).sum().backward()
    assert x.grad.tolist() == [1 + 2.0**-10]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_is_differentiated_otherwise_has_the_dtype_that_it_has(checkpointed):
    x = leaf([1.0, 2.0], ta.bfloat16)
    x.grad_dtype = ta.float32

    def function(y):
        return ta.checkpoint(lambda y: y * x * y, y) if checkpointed else y * x * y

    assert ta.gradients(function(x).sum(), [x])[0].dtype is ta.bfloat16
    assert ta.grad(lambda x: function(x).sum())(x).dtype is ta.bfloat16
    function(x).sum().backward()
    assert x.grad.dtype is ta.float32 and x.grad.tolist() == [3.0, 12.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: setattr(x, "grad_dtype", ta.float64), DtypeError, "float64 came, .*bfloat16: use bfloat16 or float"),
        (lambda x: setattr(leaf(1.0), "grad_dtype", ta.float32), DtypeError, "float32 came, .*float64: use float64$"),
        (lambda x: setattr(x, "grad_dtype", "real"), DtypeError, "'real' is not a dtype"),
        (lambda x: setattr(x * 2, "grad_dtype", ta.float32), GradientError, "is a result of recorded operations"),
        (lambda x: setattr(x.detach(), "grad_dtype", ta.float32), GradientError, "does not require a gradient: set it"),
        (lambda x: [x.sum().backward(), setattr(x, "grad_dtype", ta.float32)], GradientError,
         "float32 came, there is a gradient of dtype bfloat16"),
    ],
)  # fmt: skip
def test_a_dtype_in_which_no_gradient_can_be_kept_is_refused(change, error, message):
    x = leaf([1.0, 2.0], ta.bfloat16)
    with pytest.raises(error, match=f"(?s)grad_dtype: .*{message}|^dtype: {message}"):
        change(x)
    assert x.grad_dtype is ta.bfloat16


def test_the_own_dtype_can_be_set_again_and_follows_a_conversion():
    x = leaf([1.0], ta.bfloat16)
    x.grad_dtype = ta.float32
    x.grad_dtype = ta.bfloat16
    x.sum().backward()
    assert x.grad.dtype is ta.bfloat16
    model = ta.nn.Linear(2, 2, dtype=ta.bfloat16)
    model.weight.grad_dtype = ta.float32
    assert model.to_dtype(ta.float64).weight.grad_dtype is ta.float64


def test_gradients_add_up_where_they_are():
    x = leaf([1.0, 2.0])
    (x * 3).sum().backward()
    kept, memory = x.grad, storage(x.grad)
    (x * x).sum().backward()
    assert x.grad is kept and storage(kept) is memory and kept.tolist() == [5.0, 7.0]


def test_a_gradient_with_a_history_is_not_written():
    x = leaf([1.0, 2.0])
    (x * x * x).sum().backward(create_graph=True)
    first = x.grad
    (x * x).sum().backward()
    assert first.tolist() == [3.0, 12.0] and x.grad.tolist() == [5.0, 16.0]
    assert ta.gradients(first.sum(), [x])[0].tolist() == [6.0, 12.0]


def test_a_gradient_that_goes_backward_itself_is_not_written():
    x, y = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    (x * 3).sum().backward()
    (x + y).backward(x.grad)
    assert x.grad.tolist() == [6.0, 6.0] and y.grad.tolist() == [3.0, 3.0]


def test_a_gradient_that_a_new_graph_saved_is_not_written():
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    start = ta.ones((2,), dtype=ta.float64)
    ((x + w * w) * 2).backward(start, create_graph=True)
    (x * 5).sum().backward()
    assert x.grad.tolist() == [7.0, 7.0]
    assert ta.gradients(w.grad.sum(), [w])[0].tolist() == [4.0, 4.0]


@pytest.mark.parametrize("hooked", [False, True])
def test_the_uses_of_a_tensor_add_to_a_float32_gradient_one_by_one_unless_a_hook_sees_the_sum(hooked):
    x, seen = leaf([1.0], ta.bfloat16), []
    x.grad_dtype, x.grad = ta.float32, Tensor([2.0**25])
    if hooked:
        x.register_hook(lambda g: seen.append(g.tolist()))
    (x + x * 1 + x * 1).sum().backward()  # 1 is lost in 2**25, 3 is not
    assert x.grad.tolist() == [2.0**25 + 4 if hooked else 2.0**25] and seen == [[3.0]] * hooked


def test_what_was_saved_of_a_gradient_may_not_be_added_to():
    x, y = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    (x * x).sum().backward()
    penalty = (y * x.grad).sum()
    (x * x).sum().backward()
    with pytest.raises(GradientError, match=r"multiply saved y .*overwritten"):
        penalty.backward()


@given(st.integers(0, 2**32 - 1), st.sampled_from([ta.bfloat16, ta.float16]))
def test_float32_gradients_of_many_batches_err_less_than_those_of_half_types(seed, dtype):
    rng = np.random.default_rng(seed)
    batches = [[ta.Tensor(rng.normal(size=s), dtype=dtype) for s in ((24, 16), (24, 8))] for _ in range(8)]
    exact = sum(g.numpy().astype(np.float64).T @ x.numpy().astype(np.float64) for x, g in batches)
    errors = {}
    for kept in (dtype, ta.float32):
        weight = leaf(rng.normal(size=(8, 16)), dtype)
        weight.grad_dtype = kept
        for x, g in batches:
            ta.linear(x, weight).backward(g)
        errors[kept] = np.linalg.norm(weight.grad.numpy() - exact)
    assert errors[ta.float32] < errors[dtype]
