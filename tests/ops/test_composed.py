"""Operations that are composed of others: their gradients against finite differences, their values against NumPy."""

import functools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import Tensor, nn, where
from tinyarr.errors import ArgumentError, DtypeError, OutOfBounds, ShapeError, TinyarrError
from tinyarr.testing import gradcheck, gradgradcheck

RANK = Tensor([[2, 0], [1, 1]])

DIFFERENTIABLE = {  # name: (function, shapes of its operands)
    "mean": (lambda x: x.mean(axis=1), [(2, 3)]),
    "var": (lambda x: x.var(axis=0, correction=1), [(3, 2)]),
    "std": (lambda x: x.std(), [(2, 3)]),
    "logsumexp": (lambda x: ta.logsumexp(x, axis=-1), [(2, 3)]),
    "softmax": (ta.softmax, [(2, 3)]),
    "log_softmax": (ta.log_softmax, [(2, 3)]),
    "sort": (lambda x: ta.sort(x, axis=0, descending=True), [(4, 2)]),
    "topk": (lambda x: ta.topk(x, 2)[0], [(2, 4)]),
    "take_along_axis": (lambda x: ta.take_along_axis(x, RANK, axis=1), [(2, 3)]),
    "integer tensors": (lambda x: x[RANK, 0], [(3, 2)]),
    "integer tensors that broadcast": (lambda x: x[Tensor([[0], [2]]), :, Tensor([1, 1])], [(3, 2, 2)]),
    "mask": (lambda x: x[Tensor([[True, False, True], [False, True, True]])], [(2, 3)]),
    "diff": (lambda x: ta.diff(x, n=2), [(2, 4)]),
    "roll": (lambda x: ta.roll(x, (1, -1), axis=(0, 1)), [(2, 3)]),
    "pad": (lambda x: ta.pad(x, (1, -1, 2, 0), value=3.0), [(2, 3)]),
    "tile": (lambda x: ta.tile(x, (2, 1, 2)), [(2, 2)]),
    "repeat": (lambda x: ta.repeat(x, Tensor([2, 0, 1]), axis=1), [(2, 3)]),
    "one part of a split": (lambda x: ta.split(x, [1, 2], axis=1)[1], [(2, 3, 2)]),
    "unstack": (lambda x: ta.unstack(x, axis=1), [(2, 3)]),
    "moveaxis": (lambda x: ta.moveaxis(x, 0, -1), [(2, 3, 1)]),
    "tril": (lambda x: ta.tril(x, k=1), [(3, 4)]),
    "triu": (ta.triu, [(2, 3, 3)]),
    "meshgrid": (lambda x, y: tuple(ta.meshgrid(x, y)), [(2,), (3,)]),
    "outer": (ta.outer, [(2,), (3,)]),
    "vecdot": (lambda x, y: ta.vecdot(x, y, axis=-2), [(2, 3, 2), (3, 1)]),
    "tensordot": (lambda x, y: ta.tensordot(x, y, axes=((0, 2), (1, 0))), [(2, 3, 2), (2, 2, 3)]),
    "einsum": (lambda x, y, z: ta.einsum("bij,jk,b->ik", x, y, z), [(2, 2, 3), (3, 2), (2,)]),
    "einsum of a diagonal": (lambda x: ta.einsum("iij->j", x), [(3, 3, 2)]),
    "vector_norm": (ta.vector_norm, [(2, 3)]),
    "vector_norm of order 3": (lambda x: ta.vector_norm(x, ord=3, axis=0), [(2, 3)]),
    "vector_norm of order inf": (lambda x: ta.vector_norm(x, ord=float("inf")), [(2, 3)]),
    "nll_loss": (lambda x: ta.nll_loss(x, Tensor([0, 2]), ignore_index=2), [(2, 3)]),
    "cross_entropy, smoothed": (lambda x: ta.cross_entropy(x, Tensor([0, 2]), label_smoothing=0.2), [(2, 3)]),
    "l1_loss": (ta.l1_loss, [(2, 3), (2, 3)]),
    "huber_loss": (lambda x, y: ta.huber_loss(3 * x, y, delta=0.7), [(2, 3), (2, 3)]),
    "smooth_l1_loss": (lambda x, y: ta.smooth_l1_loss(3 * x, y, beta=0.7), [(2, 3), (2, 3)]),
    "binary_cross_entropy": (lambda x, y: ta.binary_cross_entropy(ta.sigmoid(x), ta.sigmoid(y)), [(2, 3), (2, 3)]),
    "masked_fill": (lambda x, y: ta.masked_fill(x, Tensor([True, False, True]), y), [(2, 3), ()]),
    "cosine_similarity": (ta.cosine_similarity, [(2, 3, 2), (3, 1)]),
    "attention with a mask": (
        lambda q, k, v, m: ta.scaled_dot_product_attention(q, k, v, m, enable_gqa=True),
        [(1, 4, 2, 3), (1, 2, 3, 3), (1, 2, 3, 2), (4, 2, 3)],
    ),
    "layer_norm without weights": (ta.layer_norm, [(2, 3)]),
    "rms_norm without weight": (ta.rms_norm, [(2, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_of_first_and_second_order_agree_with_finite_differences(name):
    function, shapes = DIFFERENTIABLE[name]
    rng = np.random.default_rng(0)
    sizes = [max(int(np.prod(s)), 1) for s in shapes]
    # All elements differ, also between operands, so that none lies at a tie.
    operands = [Tensor(rng.permutation(np.linspace(-1 + k / 11, 2 + k / 7, n)).reshape(s))
                for k, (s, n) in enumerate(zip(shapes, sizes), 1)]
    assert gradcheck(function, *operands)
    assert gradgradcheck(function, *operands)


SUBSCRIPTS = [
    ("ij,jk->ik", [(2, 3), (3, 4)]), ("ij,jk", [(2, 3), (3, 4)]), ("bij,bjk->bik", [(2, 2, 3), (2, 3, 1)]),
    ("ij->ji", [(2, 3)]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]), ("i,i->", [(3,), (3,)]), ("i,j", [(2,), (3,)]),
    ("...ij,jk->...ik", [(2, 2, 3), (3, 2)]), ("...i,...i->...", [(2, 1, 3), (4, 3)]), ("ij->", [(2, 3)]),
    ("bhqd,bhkd->bhqk", [(1, 2, 3, 2), (1, 2, 4, 2)]), ("i...->...", [(2, 3)]),
    ("ab,bc,cd->ad", [(2, 3), (3, 2), (2, 2)]),
    ("ij,ij->ij", [(2, 3), (2, 3)]), ("i,ij->j", [(0,), (0, 3)]), ("b,c,bc->", [(2,), (3,), (2, 3)]),
    ("zyx", [(1, 2, 3)]),
]  # fmt: skip


@pytest.mark.parametrize(("subscripts", "shapes"), SUBSCRIPTS)
def test_einsum_gives_what_numpy_gives(subscripts, shapes):
    rng = np.random.default_rng(0)
    operands = [rng.normal(size=s) for s in shapes]
    expected = np.einsum(subscripts, *operands)
    found = ta.einsum(subscripts, *map(Tensor, operands))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@at_most(40)
@given(st.data())
def test_pad_puts_a_value_around_or_cuts_off(data):
    x = np.arange(12.0).reshape(3, 4)
    axes = data.draw(st.integers(0, 2))
    widths = [(data.draw(st.integers(-1, 2)), data.draw(st.integers(-2, 2))) for _ in range(axes)]
    value = data.draw(st.sampled_from((0, 2.5, -np.inf)))
    added = [(0, 0)] * (2 - axes) + [(max(a, 0), max(b, 0)) for a, b in reversed(widths)]
    cut = [slice(None)] * (2 - axes) + [slice(max(-a, 0), min(b, 0) or None) for a, b in reversed(widths)]
    found = ta.pad(Tensor(x), [w for pair in widths for w in pair], "constant", value)
    np.testing.assert_array_equal(found.numpy(), np.pad(x[tuple(cut)], added, constant_values=value))


indices = st.one_of(
    st.integers(-2, 1),
    st.slices(2),
    st.just(None),
    st.lists(st.integers(-2, 1), min_size=1, max_size=3),
    st.sampled_from(([[0], [1]], [True, False], [[True, False], [True, True]])),
)


@at_most(300)
@given(st.lists(indices, min_size=1, max_size=4), st.integers(0, 4), st.booleans())
@example([0, 0, [[True, False], [True, True]], 0], 0, False)
def test_indexing_reads_and_writes_what_numpy_does(parts, at, with_ellipsis):
    """Keys of any mixture over an array whose axes all have size 2; what NumPy refuses is refused."""
    keys = [np.array(p) if isinstance(p, list) else p for p in parts]
    if with_ellipsis:
        keys.insert(min(at, len(keys)), ...)
    key = tuple(keys)
    ours = tuple(Tensor(k) if isinstance(k, np.ndarray) else k for k in key)
    data = np.arange(16.0).reshape(2, 2, 2, 2)
    try:
        expected = data[key]
    except IndexError:
        with pytest.raises((TinyarrError, TypeError)):
            Tensor(data)[ours]
        return
    found = Tensor(data)[ours]
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.shape == expected.shape
    written, ours_written = data.copy(), Tensor(data)
    written[key] = -1.0
    ours_written[ours] = -1.0
    np.testing.assert_array_equal(ours_written.numpy(), written)


REFUSED = [
    (lambda: ta.einsum("ij,jk->iz", ta.ones((2, 2)), ta.ones((2, 2))), ArgumentError, "each letter of the result"),
    (lambda: ta.einsum("ij,jk", ta.ones((2, 2))), ArgumentError, "1 operands came"),
    (lambda: ta.einsum("ijk", ta.ones((2, 2))), ShapeError, r"operand 0 has shape \(2, 2\)"),
    (lambda: ta.einsum("ij,jk", ta.ones((2, 3)), ta.ones((2, 2))), ShapeError, "axis 'j' has sizes 3 and 2"),
    (lambda: ta.tensordot(ta.ones((2, 3)), ta.ones((2, 3))[:1]), ShapeError, "equally long"),
    (lambda: ta.tensordot(ta.ones(2), ta.ones(2), axes=2), ArgumentError, "too many"),
    (lambda: ta.vecdot(ta.ones(2), ta.ones(3)), ShapeError, "axis -1 must be equally long"),
    (lambda: ta.vecdot(ta.ones(2), ta.ones(2), axis=0), ArgumentError, "count from the end"),
    (lambda: ta.outer(ta.ones((2, 1)), ta.ones(2)), ShapeError, "1 dimension"),
    (lambda: ta.topk(ta.ones(3), 4), ArgumentError, "topk: k is 4, axis 0 of x has size 3"),
    (lambda: ta.searchsorted(ta.ones((2, 2)), ta.ones(1)), ShapeError, r"they must be \(N,\) and any"),
    (lambda: ta.searchsorted(ta.ones(2), ta.ones(1), side="up"), ArgumentError, "'up'"),
    (lambda: ta.take_along_axis(ta.ones((2, 2)), Tensor([0])), ShapeError, "equally many axes"),
    (lambda: ta.take_along_axis(ta.ones((2, 2)), Tensor([[0, 2]]), axis=0), OutOfBounds, "take"),
    (lambda: ta.roll(ta.ones((2, 2)), (1, 2), axis=0), ArgumentError, "equally many"),
    (lambda: ta.repeat(ta.ones(3), Tensor([1, 2])), ShapeError, "one for each"),
    (lambda: ta.pad(ta.ones(3), (1,)), ArgumentError, r"pad: pad is \(1,\), x has 1 dimensions"),
    (lambda: ta.pad(ta.ones(3), (1, 1, 1, 1)), ArgumentError, "two for each"),
    (lambda: ta.pad(ta.ones(3), (-2, -2)), ShapeError, r"pad: x has shape \(3,\)"),
    (lambda: ta.pad(ta.ones(3), (1, 1), "reflect"), ArgumentError, "pad: mode is 'reflect'"),
    (lambda: ta.pad(Tensor([1, 2]), (1, 1), value=0.5), DtypeError, "pad: value is 0.5, x .* int64.*: use x.astype"),
    (lambda: ta.meshgrid(ta.ones(2), indexing="ji"), ArgumentError, "'xy' or 'ij'"),
    (lambda: ta.meshgrid(ta.ones((2, 2))), ShapeError, "1 dimension"),
    (lambda: ta.tril(ta.ones(2)), ShapeError, "at least 2 dimensions"),
    (lambda: ta.diff(ta.ones(2), n=-1), ArgumentError, "n is -1"),
    (lambda: ta.moveaxis(ta.ones((2, 2)), (0, 1), 0), ShapeError, "equally many"),
    (lambda: ta.one_hot(Tensor([0, 3]), 3), OutOfBounds, r"0 to 3: it must lie in \[0, 3\)"),
    (lambda: ta.huber_loss(ta.ones(2), ta.ones(2), delta=0), ArgumentError, "delta is 0"),
    (lambda: ta.smooth_l1_loss(ta.ones(2), ta.ones(2), beta=-1), ArgumentError, "beta is -1"),
    (lambda: Tensor([1, 2]).masked_fill(Tensor([True, False]), -np.inf), DtypeError, "value is floating, x .* int64"),
    (lambda: ta.masked_fill(ta.ones(2), Tensor([0, 1]), 0), DtypeError, "masked_fill: mask .* int64: it must be bool"),
    (lambda: ta.masked_fill(ta.ones(2), ta.ones(2) > 0, ta.ones(2)), ShapeError, r"value has shape \(2,\).* 0-d"),
    (lambda: ta.cosine_similarity(ta.ones(2), ta.ones(2)), OutOfBounds, "cosine_similarity: axis"),
    (lambda: ta.cross_entropy(ta.ones((1, 2)), Tensor([0]), label_smoothing=2.0), ArgumentError, "smoothing is 2.0"),
    (lambda: ta.reshape(ta.ones((2, 3)).mT, (6,), copy=False), ArgumentError, "copy is False"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_mask_behind_an_ellipsis_must_fit_and_a_single_bool_adds_an_axis():
    x = ta.ones((2, 3))
    assert x[..., Tensor([True, False, True])].shape == (2, 2)
    with pytest.raises(ShapeError, match=r"a mask has shape \(2,\): it must match x from axis 1 on"):
        x[..., Tensor([True, False])]
    for true, false in ((True, False), (np.True_, np.False_), (Tensor(True), Tensor(False))):
        assert x[true].shape == (1, 2, 3) and x[false].shape == (0, 2, 3)
    x[True] = 5.0
    x[np.False_] = 7.0
    assert x.tolist() == [[5.0] * 3] * 2


def test_a_class_counts_as_its_weight_says_and_others_beside_it():
    x, targets, weight = ta.randn(2, 3, 4), Tensor([[0, 3, 1], [-100, 2, 1]]), Tensor([2.0, 0.0, 0.5, 1.0])
    losses, counts = ta.cross_entropy(x, targets, reduction="none"), Tensor([[2, 1, 0], [0, 0.5, 0]])
    for found in (ta.cross_entropy(x, targets, weight), ta.nll_loss(ta.log_softmax(x), targets, weight)):
        np.testing.assert_allclose(found.item(), ((losses * counts).sum() / 3.5).item(), rtol=1e-6)
    np.testing.assert_array_equal(
        ta.cross_entropy(x, targets, weight, reduction="none").numpy(), (losses * counts).numpy()
    )
    smooth = ta.cross_entropy(x, targets, weight, label_smoothing=1.0, reduction="sum")
    spread = where(ta.expand_dims(targets, -1) < 0, 0, -ta.log_softmax(x) * weight / 4).sum()
    np.testing.assert_allclose(smooth.item(), spread.item(), rtol=1e-6)
    assert np.isnan(ta.cross_entropy(x, ta.full((2, 3), 1), weight).item())
    assert nn.CrossEntropyLoss(weight)(x, targets).item() == ta.cross_entropy(x, targets, weight).item()
    for wrong in (ta.ones(3), ta.ones(4, dtype=ta.int32)):
        with pytest.raises(ShapeError, match=r"cross_entropy: weight has .* it must be floating, of shape \(4,\)"):
            ta.cross_entropy(x, targets, wrong)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_drops_weights(is_causal):
    q, k, v = (ta.randn(2, 3, 4, 5) for _ in range(3))
    ta.manual_seed(7)
    found = ta.scaled_dot_product_attention(q, k, v, dropout_p=0.5, is_causal=is_causal)
    ta.manual_seed(7)
    scores = q @ k.mT / 5**0.5
    scores = where(ta.tril(ta.ones((4, 4), dtype=ta.bool)), scores, -np.inf) if is_causal else scores
    np.testing.assert_allclose(found.numpy(), (ta.dropout(ta.softmax(scores), 0.5) @ v).numpy(), rtol=1e-4, atol=1e-5)
    assert not ta.scaled_dot_product_attention(q, k, v, None, 1.0).any()


@pytest.mark.parametrize("y", [1, 2.0, 3, 3.0, 8.0, -1, -1.0, -2, -2.0])
def test_a_small_whole_power_of_floats_is_products(y):
    x = np.array([0.0, -0.0, 1e-20, -1e-20, 1e20, -1e20, 1.5, -3.0, np.inf, -np.inf, np.nan], np.float32)
    expected = np.ones_like(x)
    with np.errstate(all="ignore"):
        for _ in range(abs(int(y))):
            expected = expected * (x if y > 0 else 1 / x)
        np.testing.assert_allclose(expected, np.power(x, np.float32(y)), rtol=8 * 2.0**-23)
    for function in (lambda x: x**y, lambda x: ta.pow(x, y), lambda x: ta.pow(x, y, out=ta.empty_like(x))):
        for run in (function, ta.compile(function)):
            np.testing.assert_allclose(run(Tensor(x)).numpy(), expected, rtol=3 * 2.0**-23)


def test_a_float_power_of_integers_is_floating_and_a_negative_one_rounds_toward_0():
    x = Tensor([1, 2, -3])
    assert (x**2.0).dtype is (x**-1.0).dtype is ta.float32 and (x**-2).dtype is ta.int64
    assert (x**2.0).tolist() == [1, 4, 9] and (x**-1).tolist() == [1, 0, 0] and (x**-1.0).tolist()[:2] == [1, 0.5]


def test_a_padded_tensor_keeps_its_dtype():
    for x, value in ((Tensor([True]), 1), (Tensor([1]), 0.0), (ta.ones(1, dtype=ta.bfloat16), -np.inf)):
        assert ta.pad(x, (1, 1), value=value).dtype is x.dtype


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_class_is_refused_eager_and_compiled(target):
    x, targets = ta.zeros((2, 3)), Tensor([0, target])
    for function in (ta.nll_loss, ta.cross_entropy):
        for call in (function, ta.compile(function)):
            with pytest.raises(OutOfBounds):
                call(x, targets)
            assert call(x, targets, ignore_index=target).item() == function(x[:1], targets[:1]).item()


def test_a_huber_loss_without_a_bound_is_half_the_square():
    x = Tensor([-3.0, 0.0, 0.5, 3e3])
    for delta in (np.inf, 3e3):
        loss_of = functools.partial(ta.huber_loss, target=ta.zeros_like(x), delta=delta, reduction="sum")
        loss, gradient = ta.value_and_grad(loss_of)(x)
        assert loss.item() == (x * x / 2).sum().item() and gradient.tolist() == x.tolist()


def test_one_hot_marks_each_class():
    assert ta.one_hot(Tensor([[2], [0]])).tolist() == [[[0, 0, 1]], [[1, 0, 0]]]
    assert ta.one_hot(Tensor([1]), 4).dtype is ta.int64


def test_nan_sorts_last_and_counts_as_the_largest():
    x = Tensor([1.0, float("nan"), -1.0])
    assert ta.argsort(x).tolist() == [2, 0, 1] and ta.argsort(x, descending=True).tolist() == [1, 0, 2]
    assert ta.searchsorted(ta.sort(x), Tensor([0.0, float("nan")])).tolist() == [1, 2]


def test_rows_that_pad_a_head_are_no_classes():
    x, weight, targets = ta.normal((6, 8)), ta.normal((24, 8)), ta.randint(0, 20, (6,))
    padded = ta.value_and_grad(lambda x, w: ta.linear_cross_entropy(x, w, targets, classes=20), (0, 1))
    alone = ta.value_and_grad(lambda x, w: ta.linear_cross_entropy(x, w[:20], targets), (0, 1))
    (loss, grads), (expected, exact) = padded(x, weight), alone(x, weight)
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=4e-7)
    for g, e in zip(grads, exact, strict=True):
        np.testing.assert_allclose(g.numpy(), e.numpy(), atol=1e-6)
    with pytest.raises(OutOfBounds, match="20"):
        ta.linear_cross_entropy(x, weight, ta.full((6,), 20), classes=20)
    for classes in (0, 25):
        with pytest.raises(ArgumentError, match=f"^linear_cross_entropy: classes is {classes}: the weight has 24 rows"):
            ta.linear_cross_entropy(x, weight, targets, classes=classes)


def test_cross_entropy_has_the_gradient_of_its_composite_in_a_program():
    logits, targets = Tensor(np.random.default_rng(0).standard_normal((6, 9))), Tensor([0, 8, 3, -100, 5, 5])
    both = ta.value_and_grad(lambda x: 3 * ta.cross_entropy(x, targets))
    for found, expected in zip(ta.compile(both)(logits), both(logits), strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12, atol=1e-15)


found_in_rows = st.sampled_from([-1.0, 0.0, 0.5, 2.0, np.inf, np.nan])
sorted_rows = st.integers(0, 6).flatmap(
    lambda n: st.lists(st.lists(found_in_rows, min_size=n, max_size=n), min_size=1, max_size=3)
)


@at_most(60)
@given(sorted_rows, st.sampled_from(["left", "right"]), st.integers(0, 2**32 - 1))
def test_each_row_is_searched_for_its_own_elements(rows, side, seed):
    rows = np.sort(np.array(rows, np.float32))
    among = np.array([-2, -1, 0, 0.3, 0.5, 2, np.inf, np.nan], np.float32)
    wanted = np.random.default_rng(seed).choice(among, (len(rows), 5))
    expected = np.stack([np.searchsorted(row, x, side) for row, x in zip(rows, wanted)])
    np.testing.assert_array_equal(ta.searchsorted(Tensor(rows), Tensor(wanted), side=side).numpy(), expected)
    np.testing.assert_array_equal(ta.searchsorted(Tensor(rows[0]), Tensor(wanted), side=side).numpy()[0], expected[0])
    backwards, sorter = rows[:, ::-1].copy(), np.arange(rows.shape[1])[::-1] + np.zeros((len(rows), 1), np.int64)
    found = ta.searchsorted(Tensor(backwards), Tensor(wanted), side=side, sorter=Tensor(sorter))
    np.testing.assert_array_equal(found.numpy(), expected)


members = st.lists(st.sampled_from([-1.0, 0.0, -0.0, 0.5, 3.0, np.nan]), max_size=6)


@at_most(60)
@given(members, members, st.sampled_from([ta.float32, ta.float64]))
def test_isin_gives_what_numpy_gives(x, elements, dtype):
    x, elements = np.array(x, np.float32).reshape(-1, 1), np.array(elements)
    for invert in (False, True):
        found = ta.isin(Tensor(x), Tensor(elements, dtype=dtype), invert=invert)
        np.testing.assert_array_equal(found.numpy(), np.isin(x, elements, invert=invert))
    assert ta.compile(ta.isin)(Tensor([[3, 1]]), Tensor([1, 7])).tolist() == [[False, True]]


def test_a_filled_tensor_keeps_its_dtype():
    x = Tensor([1, 2, 3], dtype=ta.int8)
    filled = x.masked_fill(x > 1, 7)
    assert filled.dtype is ta.int8 and filled.tolist() == [1, 7, 7] and x.tolist() == [1, 2, 3]
    x = ta.ones(2, dtype=ta.bfloat16)
    assert x.masked_fill(Tensor([[True], [False]]), -np.inf).tolist() == [[-np.inf] * 2, [1] * 2]
    assert ta.ones(2).masked_fill(Tensor([True, False]), Tensor(2.0, dtype=ta.float64)).dtype is ta.float32


def test_the_cosine_of_vectors_of_any_length():
    x = np.random.default_rng(0).standard_normal((4, 3))
    for scale in (1, 1e-30, 1e30):
        found = ta.cosine_similarity(Tensor(x * scale, dtype=ta.float32), Tensor(x[::-1].copy()), eps=1e-38)
        expected = (x * x[::-1]).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x[::-1], axis=1)
        np.testing.assert_allclose(found.numpy(), expected, atol=16 * 2.0**-23)
    assert ta.cosine_similarity(Tensor([[3.0, 4.0]]), Tensor([[0.5, 0.0]]), eps=2).item() == np.float32(0.15)
    zero = ta.zeros((1, 3), requires_grad=True)
    ta.cosine_similarity(zero, ta.ones((1, 3))).sum().backward()
    assert np.isfinite(zero.grad.numpy()).all()
    assert ta.cosine_similarity(ta.ones((2, 3), dtype=ta.bfloat16), ta.ones(3, dtype=ta.bfloat16)).dtype is ta.bfloat16


def test_a_certain_mistake_costs_100_and_has_a_finite_gradient():
    p = Tensor([0.0, 1.0, 0.0, 1.0, 2.0], requires_grad=True)
    losses = ta.binary_cross_entropy(p, Tensor([0.0, 1.0, 1.0, 0.0, 0.0]), reduction="none")
    losses[:4].sum().backward()
    assert losses[:4].tolist() == [0, 0, 100, 100] and np.isnan(losses[4].item())
    assert p.grad.tolist() == [0, 0, -np.float32(1e12), np.float32(1e12), 0]
    assert ta.smooth_l1_loss(p[:4], 1 - p[:4], beta=0).item() == ta.l1_loss(p[:4], 1 - p[:4]).item()
