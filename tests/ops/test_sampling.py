"""Draws from weights and permutations: how often each result comes, and that none comes that can't."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.samples.random import philox
from tests.tiers import at_most
from tinyarr import Generator, Tensor
from tinyarr.errors import ArgumentError, OutOfBounds, ShapeError

WEIGHTS = [1.0, 0.0, 5.0, 4.0]
weights = st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 7.0]), min_size=1, max_size=9).filter(any)
seeds = st.integers(0, 2**63 - 1)


def assert_as_often(counts, probabilities):
    """Pearson's statistic, of mean k and variance at most 2 k + 1 for k degrees, within five standard deviations."""
    counts, expected = np.asarray(counts), np.sum(counts) * np.asarray(probabilities)
    assert expected[expected > 0].min() > 100 and not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees + 1)


@pytest.mark.parametrize("rows", [1, 20_000])
def test_classes_are_drawn_as_often_as_their_weights_say(rows):
    """One row of many draws goes through cumulative sums, many rows of one draw through a race."""
    drawn = ta.multinomial(ta.broadcast_to(Tensor(WEIGHTS), (rows, 4)), 20_000 // rows, True, generator=Generator(1))
    assert drawn.shape == (rows, 20_000 // rows) and drawn.dtype is ta.int64
    assert_as_often(np.bincount(drawn.numpy().reshape(-1), minlength=4), np.array(WEIGHTS) / 10)


def test_without_replacement_each_class_is_drawn_among_those_that_are_left():
    p = np.array([0.1, 0.2, 0.3, 0.4])
    drawn = ta.broadcast_to(Tensor(p), (20_000, 4)).multinomial(3, generator=Generator(2)).numpy()
    orders = list(itertools.permutations(range(4), 3))
    counts = [(drawn == order).all(axis=1).sum() for order in orders]
    assert sum(counts) == len(drawn)
    assert_as_often(counts, [p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b]) for a, b, c in orders])


@at_most(60)
@given(weights, st.integers(1, 5), seeds, st.sampled_from([ta.float32, ta.float64, ta.bfloat16]))
def test_no_class_of_weight_0_is_drawn_and_none_twice_without_replacement(given_weights, count, seed, dtype):
    w = Tensor(given_weights, dtype=dtype)
    positive = np.flatnonzero(w.numpy())
    assert set(ta.multinomial(w, count, True, generator=Generator(seed)).tolist()) <= set(positive)
    k = min(count, len(positive))
    drawn = ta.multinomial(w, k, generator=Generator(seed)).tolist()
    assert len(set(drawn)) == k and set(drawn) <= set(positive)


@at_most(40)
@given(weights, seeds)
def test_draws_with_replacement_are_where_uniform_numbers_fall_among_the_cumulative_weights(given_weights, seed):
    sums = np.cumsum(np.array(given_weights))
    drawn = ta.multinomial(Tensor(given_weights, dtype=ta.float64), 8, True, generator=Generator(seed))
    falls = philox((8,), seed, 0) * 2.0**-32 * sums[-1]
    assert drawn.tolist() == np.searchsorted(sums, falls, side="right").tolist()


def test_a_program_draws_what_eager_mode_draws_from_the_same_seed():
    def draw(w):
        return ta.multinomial(w, 4, True), ta.multinomial(w, 1), w.multinomial(2), ta.randperm(9), ta.randn_like(w)

    compiled, w = ta.compile(draw), ta.rand(3, 5) + 0.1
    with ta.use_generator(Generator(5)):
        expected = [draw(w), draw(w)]
    with ta.use_generator(Generator(5)):
        found = [compiled(w), compiled(w)]
    for pair in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
        np.testing.assert_array_equal(*(x.numpy() for x in pair))
    assert found[0][3].tolist() != found[1][3].tolist()


@pytest.mark.parametrize("wrong", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
@pytest.mark.parametrize(("count", "replacement"), [(1, False), (2, True), (2, False)])
def test_what_are_no_weights_is_refused_eagerly_and_by_a_program(wrong, count, replacement):
    w = Tensor([[1.0, 1.0], wrong])
    with pytest.raises(ArgumentError, match=r"^multinomial: weights has shape \(2, 2\).*: none may be negative"):
        ta.multinomial(w, count, replacement)
    with pytest.raises(OutOfBounds):
        ta.compile(lambda w: ta.multinomial(w, count, replacement))(w)


def test_counts_of_draws_that_do_not_fit_are_refused():
    for count, message in ((0, "num_samples is 0: it must be 1 or more and, without replacement, at most 2$"),
                           (3, "num_samples is 3: .* at most 2$")):  # fmt: skip
        with pytest.raises(ArgumentError, match=message):
            ta.multinomial(ta.ones(2), count)
    with pytest.raises(ArgumentError, match="must have 2 positive ones, or use replacement=True"):
        ta.multinomial(Tensor([1.0, 0.0]), 2)
    with pytest.raises(ShapeError, match="multinomial: weights is 0-d"):
        ta.multinomial(Tensor(1.0), 1)
    assert ta.multinomial(ta.ones((0, 2)), 2).shape == (0, 2)
    assert ta.multinomial(ta.ones((2, 3), device="meta"), 2).shape == (2, 2)


@at_most(20)
@given(st.integers(0, 200), seeds)
def test_a_permutation_holds_each_number_once(n, seed):
    order = ta.randperm(n, generator=Generator(seed))
    assert order.dtype is ta.int64 and sorted(order.tolist()) == list(range(n))
    assert ta.randperm(n, generator=Generator(seed), dtype=ta.int16).tolist() == order.tolist()
    with pytest.raises(ShapeError, match=r"^randperm: shape is \(-1,\)"):
        ta.randperm(-1)
    with pytest.raises(TypeError, match=r"^randperm: n is \(2, 3\): it must be an int"):
        ta.randperm((2, 3))


def test_all_permutations_are_equally_frequent():
    generator = Generator(3)
    drawn = [tuple(ta.randperm(3, generator=generator).tolist()) for _ in range(1200)]
    assert_as_often([drawn.count(order) for order in itertools.permutations(range(3))], [1 / 6] * 6)


def test_draws_like_a_tensor_have_its_shape_dtype_and_device():
    x = ta.zeros((2, 3), dtype=ta.float64)
    for like, of_shape in ((ta.rand_like, ta.rand), (ta.randn_like, ta.randn)):
        found, expected = like(x, generator=Generator(4)), of_shape(2, 3, generator=Generator(4), dtype=ta.float64)
        assert found.dtype is ta.float64 and found.tolist() == expected.tolist()
        assert like(x, dtype=ta.float32, device="meta", requires_grad=True).requires_grad
        assert like(x, dtype=ta.float32).dtype is ta.float32
