"""Attention by cuDNN and by the kernel of our own, against float64."""

import ml_dtypes
import numpy as np
import pytest

import tinyarr
from tinyarr import Tensor, dtypes, vjp
from tinyarr.backends.cuda.kernels import attention, flash_attention
from tinyarr.backends.cuda.libraries import cudnn
from tinyarr.ops.primitive import registry

pytestmark = pytest.mark.cuda
CASES = [  # B, H, G, T, S, D
    (2, 4, 2, 70, 133, 64), (2, 4, 4, 128, 128, 64), (1, 2, 2, 37, 37, 128), (2, 4, 4, 1, 5, 64),
    (2, 4, 1, 300, 300, 128), (1, 1, 1, 1, 1, 64), (1, 3, 3, 129, 257, 64),
]  # fmt: skip
ATTENTION = [registry[f"scaled_dot_product_attention{part}"] for part in ("", "_gradient")]


@pytest.fixture(params=[cudnn, flash_attention], ids=["cudnn", "ours"])
def only(request, monkeypatch):
    """Attention computed by one of the two alone."""
    other = flash_attention if request.param is cudnn else cudnn
    monkeypatch.setattr(other, "plan", lambda *args, **options: None)
    if request.param is cudnn:
        assert cudnn.is_available(), "nvidia-cudnn-frontend and cuDNN must be installed for this test"
    planned = []
    fastest = attention.fastest
    monkeypatch.setattr(attention, "fastest", lambda *args: planned.append(fastest(*args)) or planned[-1])
    for primitive in ATTENTION:
        primitive._calls.clear()
    yield planned
    for primitive in ATTENTION:
        primitive._calls.clear()


def operands(case, packed):
    B, H, G, T, S, D = case
    rng = np.random.default_rng(0)
    shapes = ((B, H, T, D), (B, G, S, D), (B, G, S, D), (B, H, T, D))
    made = [Tensor(rng.standard_normal(s), dtype=dtypes.bfloat16, device="cuda") for s in shapes]
    if packed:  # heads interleaved, as a linear layer leaves them
        made = [tinyarr.copy(x.permute_dims((0, 2, 1, 3))).permute_dims((0, 2, 1, 3)) for x in made]
    return made


def rounded_weights(q, k, v, causal):
    """The composite as tensor cores have it: scores and sums in float32, weights rounded to bfloat16."""
    T, S, D = q.shape[2], k.shape[2], q.shape[3]
    k, v = (tinyarr.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = tinyarr.matmul(q.astype("float32"), k.astype("float32").mT) * D**-0.5
    if causal:
        visible = tinyarr.arange(S - T, S, device="cuda").expand_dims(-1) >= tinyarr.arange(S, device="cuda")
        scores = tinyarr.where(visible, scores, -np.inf)
    weights = tinyarr.softmax(scores).astype(dtypes.bfloat16).astype("float32")
    return tinyarr.matmul(weights, v.astype("float32")).astype(q.dtype)


def results(function, g, *inputs):
    out, pull = vjp(function, *inputs)
    return [x.astype("float64").numpy() for x in (out, *pull(g.astype(out.dtype)))]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_errs_at_most_twice_as_much_as_its_composite_and_is_the_same_again(only, case, causal, packed):
    *inputs, g = operands(case, packed)

    def attend(q, k, v):
        return tinyarr.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    found, again = (results(attend, g, *inputs) for _ in range(2))
    # cuDNN has no gradient for a single key; there the composite serves.
    assert (only and all(plan is not None for plan in only)) or case[4] == 1
    exact = results(attend, g, *(x.astype("float64") for x in inputs))
    naive = results(lambda *x: rounded_weights(*x, causal), g, *inputs)
    for f, a, e, n in zip(found, again, exact, naive):
        assert f.tobytes() == a.tobytes()
        # Where one key is all that is seen, gradients are 0 but for rounding, of terms as large as the cotangent.
        slack = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps) * np.sqrt(e.size) if case[4] == 1 else 0
        assert np.linalg.norm(f - e) <= 2 * np.linalg.norm(n - e) + slack


def test_the_backward_pass_is_split_over_the_batch_to_bound_its_workspace(monkeypatch):
    from tinyarr.backends.cuda.planning.registry import Operand
    from tinyarr.views import contiguous_strides

    if not cudnn.is_available():
        pytest.fail("nvidia-cudnn-frontend and cuDNN must be installed for this test")
    shape = (64, 24, 1024, 64)
    x = Operand(shape, contiguous_strides(shape), dtypes.bfloat16)
    lse = Operand(shape[:3], contiguous_strides(shape[:3]), dtypes.float32)
    plan = cudnn.plan([x, x, x, x, x, lse], [x, x, x], causal=True, scale=0.125)
    assert len(plan.steps) == 2 and sum(plan.scratch) < 1.5 * cudnn.WORKSPACE


def test_a_graph_from_the_cache_gives_the_same_bits_and_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    built, build = [], cudnn._built
    monkeypatch.setattr(cudnn, "_built", lambda spec: built.append(spec) or build(spec))
    q, k, v, g = operands((2, 4, 2, 70, 133, 64), packed=False)
    found = []
    for _ in range(2):
        cudnn._graph_of.cache_clear()
        tinyarr.Device("cuda").backend.loader._prepared.clear()
        for primitive in ATTENTION:
            primitive._calls.clear()
        attend = lambda *x: tinyarr.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True)  # noqa: E731
        found.append([x.tobytes() for x in results(attend, g, q, k, v)])
    assert found[0] == found[1] and 0 < len(built) == len(set(built))
