"""Operations and neural functions beside torch's in float64: values and gradients, for every option."""

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


LABELS = np.array([[0, 2, 1], [4, -100, 3]])
ROWS = normal(2, 3, 5)
WEIGHT = [0.5, 2.0, 1.0, 0.0, 3.0]
MASK = np.array([[True, False, True, True], [True, True, True, False]])
ADDED = normal(3, 2, 4)
Q, K, V = normal(2, 4, 2, 3), normal(2, 2, 4, 3), normal(2, 2, 4, 3)
SAME = normal(2, 4, 4, 3)

CASES = {  # name: (tinyarr's, torch's, arrays)
    "relu": (ta.relu, lambda F, x: F.relu(x), [normal(9)]),
    "leaky_relu": (lambda x: ta.leaky_relu(x, 0.2), lambda F, x: F.leaky_relu(x, 0.2), [normal(9)]),
    "leaky_relu's default": (ta.leaky_relu, lambda F, x: F.leaky_relu(x), [normal(9)]),
    "gelu": (ta.gelu, lambda F, x: F.gelu(x), [normal(9)]),
    "gelu tanh": (lambda x: ta.gelu(x, approximate="tanh"), lambda F, x: F.gelu(x, approximate="tanh"), [normal(9)]),
    "silu": (ta.silu, lambda F, x: F.silu(x), [normal(9)]),
    "sigmoid": (ta.sigmoid, lambda F, x: F.sigmoid(x), [normal(9)]),
    "tanh": (ta.tanh, lambda F, x: F.tanh(x), [normal(9)]),
    "softplus": (ta.softplus, lambda F, x: F.softplus(x), [normal(9)]),
    "softmax": (lambda x: ta.softmax(x, axis=1), lambda F, x: F.softmax(x, dim=1), [normal(2, 3, 2)]),
    "log_softmax": (ta.log_softmax, lambda F, x: F.log_softmax(x, dim=-1), [normal(2, 3)]),
    "logsumexp": (lambda x: ta.logsumexp(x, axis=(0, 2)), lambda F, x: x.logsumexp((0, 2)), [normal(2, 3, 2)]),
    "layer_norm": (
        ta.layer_norm, lambda F, x, w, b: F.layer_norm(x, (4,), w, b), [normal(2, 3, 4), normal(4), normal(4)],
    ),
    "layer_norm alone": (ta.layer_norm, lambda F, x: F.layer_norm(x, (4,)), [normal(3, 4)]),
    "rms_norm": (ta.rms_norm, lambda F, x, w: F.rms_norm(x, (4,), w), [normal(2, 3, 4), normal(4)]),
    "rms_norm with eps": (
        lambda x: ta.rms_norm(x, eps=0.1), lambda F, x: F.rms_norm(x, (4,), eps=0.1), [normal(3, 4)],
    ),
    "linear": (ta.linear, lambda F, x, w, b: F.linear(x, w, b), [normal(2, 3, 4), normal(5, 4), normal(5)]),
    "mse_loss": (ta.mse_loss, lambda F, x, y: F.mse_loss(x, y), [normal(2, 3), normal(2, 3)]),
    "l1_loss": (ta.l1_loss, lambda F, x, y: F.l1_loss(x, y), [normal(2, 3), normal(2, 3)]),
    "huber_loss": (
        lambda x, y: ta.huber_loss(x, y, delta=0.5, reduction="sum"),
        lambda F, x, y: F.huber_loss(x, y, delta=0.5, reduction="sum"), [normal(2, 3), normal(2, 3)],
    ),
    "smooth_l1_loss": (
        lambda x, y: ta.smooth_l1_loss(x, y, beta=0.5), lambda F, x, y: F.smooth_l1_loss(x, y, beta=0.5),
        [normal(2, 3), normal(2, 3)],
    ),
    "smooth_l1_loss of beta 0": (
        lambda x, y: ta.smooth_l1_loss(x, y, beta=0, reduction="none"),
        lambda F, x, y: F.smooth_l1_loss(x, y, beta=0, reduction="none"), [normal(2, 3), normal(2, 3)],
    ),
    "binary_cross_entropy": (
        ta.binary_cross_entropy, lambda F, p, t, w: F.binary_cross_entropy(p, t, w.detach()),
        [RNG.uniform(0, 1, 6), RNG.uniform(0, 1, 6), RNG.uniform(0, 2, 6)],
    ),
    "binary_cross_entropy at 0 and 1": (  # where torch's gradient of targets is infinite
        ta.binary_cross_entropy, lambda F, p, t: F.binary_cross_entropy(p, t.detach()),
        [np.array([0.0, 1.0, 0.3, 1e-7]), np.array([0.0, 1.0, 0.6, 1.0])],
    ),
    "cosine_similarity": (
        ta.cosine_similarity, lambda F, x, y: F.cosine_similarity(x, y), [normal(2, 3, 4), normal(3, 1)],
    ),
    "cosine_similarity of columns": (
        lambda x, y: ta.cosine_similarity(x, y, axis=0), lambda F, x, y: F.cosine_similarity(x, y, dim=0),
        [normal(2, 3), normal(2, 3)],
    ),
    "masked_fill": (
        lambda x, v: x.masked_fill(Tensor(MASK), v), lambda F, x, v: x.masked_fill(torch_of(MASK), v),
        [normal(3, 2, 4), normal()],
    ),
    "binary_cross_entropy_with_logits": (
        lambda x, y, w, p: ta.binary_cross_entropy_with_logits(x, y, w, pos_weight=p),
        lambda F, x, y, w, p: F.binary_cross_entropy_with_logits(x, y, w.detach(), pos_weight=p.detach()),
        [4 * normal(2, 3), RNG.random((2, 3)), normal(3), normal(3)],
    ),
    "attention": (
        lambda q, k, v: ta.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True),
        lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True), [Q, K, V],
    ),
    "attention, causal": (
        lambda q: ta.scaled_dot_product_attention(q, q, q, is_causal=True),
        lambda F, q: F.scaled_dot_product_attention(q, q, q, is_causal=True), [SAME],
    ),
    "attention, masked": (
        lambda q, k, v: ta.scaled_dot_product_attention(q, k, v, Tensor(MASK), enable_gqa=True),
        lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, torch_of(MASK), enable_gqa=True), [Q, K, V],
    ),
    "attention, added mask": (
        lambda q, k, v, m: ta.scaled_dot_product_attention(q, k, v, m),
        lambda F, q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        [normal(3, 2, 3), normal(3, 4, 3), normal(3, 4, 2), ADDED],
    ),
    "vector_norm": (
        lambda x: ta.vector_norm(x, axis=1, ord=3), lambda F, x: x.abs().pow(3).sum(1).pow(1 / 3), [normal(2, 3)],
    ),
    "cumulative_prod": (
        lambda x: ta.cumulative_prod(x, axis=0), lambda F, x: x.cumprod(0), [np.array([2.0, 0.0, 3.0, 0.0, 1.5])],
    ),
    "prod": (ta.prod, lambda F, x: x.prod(), [np.array([2.0, 0.0, 3.0])]),
}  # fmt: skip
SLOPES = (
    "abs acos asin asinh atan atanh cos cosh erf exp expm1 log1p negative reciprocal sigmoid sin sinh square tan tanh"
)
for _name in SLOPES.split():
    CASES[_name] = (getattr(ta, _name), lambda F, x, n=_name: torch_function(n)(x), [RNG.uniform(-0.9, 0.9, 9)])
for _name in "sqrt log log2 log10 rsqrt acosh".split():
    CASES[_name] = (getattr(ta, _name), lambda F, x, n=_name: torch_function(n)(x), [RNG.uniform(1.1, 3, 9)])
for _name in "add subtract multiply divide maximum minimum atan2 hypot copysign logaddexp".split():
    CASES[_name] = (getattr(ta, _name), lambda F, x, y, n=_name: torch_function(n)(x, y), [normal(3, 1), normal(2)])
CASES |= {
    "pow": (ta.pow, lambda F, x, y: x**y, [RNG.uniform(0.2, 2, (3, 1)), normal(2)]),
    "where": (lambda x, y: ta.where(x > y, x, y), lambda F, x, y: x.where(x > y, y), [normal(3), normal(3)]),
    "clip": (lambda x: ta.clip(x, -0.5, 0.5), lambda F, x: x.clamp(-0.5, 0.5), [normal(9)]),
    "sum": (lambda x: x.sum(axis=1), lambda F, x: x.sum(1), [normal(2, 3)]),
    "max": (lambda x: x.max(axis=0), lambda F, x: x.amax(0), [np.array([[1.0, 2.0], [1.0, 0.0]])]),
    "var": (lambda x: x.var(axis=1), lambda F, x: x.var(1, unbiased=False), [normal(2, 3)]),
    "std": (lambda x: x.std(axis=1, correction=1), lambda F, x: x.std(1), [normal(2, 3)]),
    "matmul": (ta.matmul, lambda F, x, y: x @ y, [normal(2, 3, 4), normal(4, 2)]),
    "take": (lambda x: x.take(Tensor([2, 0, 2]), axis=1), lambda F, x: x[:, [2, 0, 2]], [normal(2, 3)]),
    "embedding": (lambda w: ta.embedding(w, Tensor([1, 1])), lambda F, w: w[[1, 1]], [normal(3, 2)]),
    "cumulative_sum": (lambda x: ta.cumulative_sum(x, axis=1), lambda F, x: x.cumsum(1), [normal(2, 3)]),
    "sort": (lambda x: ta.sort(x, axis=1), lambda F, x: x.sort(1)[0], [normal(2, 4)]),
    "concat": (lambda x, y: ta.concat([x, y]), lambda F, x, y: cat(x, y), [normal(2, 3), normal(1, 3)]),
    "einsum": (
        lambda x, y: ta.einsum("bij,jk->bki", x, y), lambda F, x, y: (x @ y).mT, [normal(2, 3, 4), normal(4, 2)],
    ),
}  # fmt: skip
for _reduction in ("mean", "sum", "none"):
    for _smoothing in (0.0, 0.3):
        _given = {"reduction": _reduction, "label_smoothing": _smoothing}
        for _weight in (None, WEIGHT):
            CASES[f"cross_entropy {_given}{'' if _weight is None else ', weighted'}"] = (
                lambda x, w=_weight, given=_given: ta.cross_entropy(x, Tensor(LABELS), w and Tensor(w), **given),
                lambda F, x, w=_weight, given=_given: F.cross_entropy(
                    x.movedim(-1, 1), torch_of(LABELS), w and torch_of(np.array(w)), **given
                ), [ROWS],
            )  # fmt: skip
    for _weight in (None, WEIGHT):
        CASES[f"nll_loss {_reduction}{'' if _weight is None else ', weighted'}"] = (
            lambda x, w=_weight, r=_reduction: ta.nll_loss(x, Tensor(LABELS), w and Tensor(w), reduction=r),
            lambda F, x, w=_weight, r=_reduction: F.nll_loss(
                x.movedim(-1, 1), torch_of(LABELS), w and torch_of(np.array(w)), reduction=r
            ), [ROWS],
        )  # fmt: skip


def torch_function(name):
    import torch

    return getattr(torch, name)


def cat(*tensors):
    import torch

    return torch.cat(tensors)


def torch_of(x):
    import torch

    return torch.from_numpy(x)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name):
    import torch

    ours, theirs, arrays = CASES[name]
    inputs = [Tensor(x, requires_grad=True) for x in arrays]
    others = [torch.tensor(x, requires_grad=True) for x in arrays]
    found, expected = ours(*inputs), theirs(torch.nn.functional, *others)
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-13)
    g = np.random.default_rng(1).normal(size=found.shape)
    found.backward(Tensor(g))
    expected.backward(torch.tensor(g))
    for x, y in zip(inputs, others):
        if y.grad is not None:  # torch has none for the weights of binary cross-entropy
            found = np.zeros(x.shape) if x.grad is None else x.grad.numpy()
            np.testing.assert_allclose(found, y.grad.numpy(), rtol=1e-11, atol=1e-13)
