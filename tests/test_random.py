"""Random numbers: Philox's published answers, positions alone decide, and the distributions are what they say."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tinyarr.backends.numpy.functions import philox_scratch, random_bits
from tinyarr.errors import ArgumentError, DtypeError
from tinyarr.ops.random import _exact_cos_turns, _exact_log
from tinyarr.testing import gradcheck

MASK = 0xFFFFFFFF
N = 200_000


def philox(counter, key, rounds=10):
    """Philox 4x32 as its authors define it: Salmon et al. 2011, section 3.3."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def words(key, counter, stream, start, count):
    """The words of the CPU kernel."""
    out = np.zeros(count, np.uint32)
    scratch = [np.empty(shape, dtype) for shape, dtype in philox_scratch(count)]
    random_bits(key, counter, stream, start, out, scratch)
    return out.tolist()


# The known answers of Random123 1.14 (kat_vectors, philox4x32 10).
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_bits_are_the_published_answers_of_philox(counter, key, answer):
    c0, c1, c2, c3 = counter
    block, stream = c0 + ((c1 & 0xFFFF) << 32), c1 >> 16
    assert philox(counter, key) == answer
    assert words(key[0] + (key[1] << 32), c2 + (c3 << 32), stream, 4 * block, 4) == answer


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**62), st.integers(0, 300), st.integers(1, 40))
def test_a_draw_is_philox_of_its_position_key_and_counter(seed, counter, start, count):
    generator = ta.Generator(seed)
    generator.counter = counter
    drawn = ta.random_bits((start + count,), generator=generator).tolist()
    key, last = [seed & MASK, seed >> 32], [counter & MASK, counter >> 32]
    expected = [philox([i // 4, 0, *last], key)[i % 4] for i in range(start, start + count)]
    assert drawn[start:] == words(seed, counter, 0, start, count) == expected


# Position alone decides


DRAWS = {
    "bits": lambda shape, g: ta.random_bits(shape, generator=g),
    "uniform": lambda shape, g: ta.uniform(shape, -2.0, 3.0, generator=g),
    "normal": lambda shape, g: ta.normal(shape, 1.0, 2.0, generator=g),
    "bfloat16": lambda shape, g: ta.randn(shape, generator=g, dtype=ta.bfloat16),
    "randint": lambda shape, g: ta.randint(-5, 1000, shape, generator=g),
    "dropout": lambda shape, g: ta.ones(shape).dropout(0.3, generator=g),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("shape", [(1,), (5,), (32_767,), (32_769,), (3, 7, 1111), (2, 40_000), (0, 4), ()], ids=str)
def test_a_draw_is_the_beginning_of_a_larger_one_in_any_shape(draw, shape):
    long = draw((100_000,), ta.Generator(7)).numpy()
    found = draw(shape, ta.Generator(7)).numpy()
    assert found.shape == shape and found.ravel().tobytes() == long[: found.size].tobytes()


@pytest.mark.parametrize("layout", [lambda x: x.T, lambda x: x[::-1], lambda x: x[:, :1].broadcast_to(x.shape)])
def test_dropout_of_a_view_draws_the_mask_of_a_contiguous_tensor(layout):
    x = layout(ta.rand(300, 301) + 1)
    kept = x.dropout(0.5, generator=ta.Generator(1)) != 0
    expected = ta.ones(x.shape).dropout(0.5, generator=ta.Generator(1)) != 0
    assert kept.numpy().tobytes() == expected.numpy().tobytes()


# Distributions: statistics stay within what one draw in a thousand exceeds, and the seeds are fixed


def distance(sample, cdf):
    """The largest distance of the empirical distribution function from `cdf`, in units of 1 / sqrt(n)."""
    x = np.sort(sample.astype(np.float64))
    steps = np.arange(len(x) + 1) / len(x)
    expected = np.vectorize(cdf)(x)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max()) * math.sqrt(len(x))


KOLMOGOROV = 1.95  # exceeded with probability 0.001
DEVIATIONS = 3.3  # so is this many standard deviations of a normal variable


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_uniform_and_normal_draws_have_their_distributions(seed):
    g = ta.Generator(seed)
    uniform, normal = ta.uniform(N, -1.0, 3.0, generator=g).numpy(), ta.normal(N, 5.0, 2.0, generator=g).numpy()
    assert distance(uniform, lambda x: (x + 1) / 4) < KOLMOGOROV
    assert distance(normal, lambda x: (1 + math.erf((x - 5) / 2 / math.sqrt(2))) / 2) < KOLMOGOROV


def test_the_moments_of_normal_draws_are_right():
    z = ta.randn(N, generator=ta.Generator(3), dtype=ta.float64).numpy()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < DEVIATIONS * math.sqrt(variance / N)


def test_neighbours_draws_and_seeds_are_uncorrelated():
    def draw(seed, times):
        g = ta.Generator(seed)
        return [ta.randn(N, generator=g).numpy().astype(np.float64) for _ in range(times)][-1]

    x = draw(0, 1)
    for y in (np.roll(x, 1), np.roll(x, 4), draw(0, 2), draw(1, 1), draw(2**32, 1)):
        assert abs((x * y).mean()) < DEVIATIONS / math.sqrt(N)


def test_uniform_draws_stay_below_the_upper_end_whatever_the_rounding():
    for low, high, dtype in ((0, 1, ta.bfloat16), (1, 2, ta.float32), (0, 1, ta.float16), (-1, 0, ta.float8_e4m3fn)):
        x = ta.uniform(1 << 21, low, high, generator=ta.Generator(0), dtype=dtype).astype(ta.float64).numpy()
        assert x.min() >= low and x.max() < high


def test_randint_reaches_both_ends_evenly_and_never_leaves_them():
    counts = np.bincount(ta.randint(-3, 4, N, generator=ta.Generator(0)).numpy() + 3)
    assert len(counts) == 7 and np.all(np.abs(counts - N / 7) < DEVIATIONS * math.sqrt(N * 6 / 49))
    assert set(ta.randint(250, 256, 100, dtype=ta.uint8).tolist()) == set(range(250, 256))
    assert ta.randint(5, 6, (2, 2)).tolist() == [[5, 5], [5, 5]]
    wide = ta.randint(-(2**31), 2**31, N, generator=ta.Generator(0)).numpy()
    assert wide.min() < -(2**31) * 0.999 and wide.max() > 2**31 * 0.999


@ta.elementwise
def log_of_normals(x):
    return _exact_log(x)


@ta.elementwise
def cosine_of_normals(turns):
    return _exact_cos_turns(turns)


def test_the_logarithm_of_the_normals_is_within_four_ulp_and_exact_at_one():
    x = np.arange(1, 2**24 + 1, 37) / 2**24
    exact = np.log(x)
    found = log_of_normals(ta.Tensor(x, dtype=ta.float32)).numpy()
    assert np.all(np.abs(found - exact) <= 4 * np.spacing(np.abs(exact).astype(np.float32)))
    assert log_of_normals(ta.Tensor(1.0)).item() == 0.0


def test_the_cosine_of_the_normals_is_within_one_ulp_of_one_and_exact_at_quarter_turns():
    turns = np.arange(0, 2**24, 37) / 2**24
    found = cosine_of_normals(ta.Tensor(turns, dtype=ta.float32)).numpy()
    assert np.abs(found - np.cos(2 * np.pi * turns)).max() <= np.spacing(np.float32(1))
    assert cosine_of_normals(ta.Tensor([0.0, 0.25, 0.5, 0.75])).tolist() == [1.0, 0.0, -1.0, 0.0]


# Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation_and_scales_what_it_keeps(p):
    y = ta.ones(N).dropout(p, generator=ta.Generator(0)).numpy()
    assert set(y.tolist()) == {0.0, float(np.float32(1 / (1 - p)))}
    assert abs((y == 0).mean() - p) < DEVIATIONS * math.sqrt(p * (1 - p) / N)


def test_dropouts_gradient_draws_the_same_mask_and_saves_nothing():
    x = ta.rand(100, 1000, requires_grad=True)
    before = ta.memory_stats().in_use
    y = (x + 1).dropout(0.4)
    assert ta.memory_stats().in_use - before < 1.5 * x.nbytes
    ta.rand(5)
    y.sum().backward()
    assert np.array_equal(x.grad.numpy() == 0, y.numpy() == 0)
    seeded = ta.Generator(5).state_dict()

    def dropped(x):
        g = ta.Generator()
        g.load_state_dict(seeded)
        return x.dropout(0.5, generator=g)

    assert gradcheck(dropped, ta.randn(4, 5, dtype=ta.float64))


def test_dropout_does_nothing_where_nothing_is_dropped():
    x = ta.ones(3)
    assert x.dropout(0.0) is x and x.dropout(0.9, training=False) is x
    for p in (1.5, -0.1, math.nan):
        with pytest.raises(ArgumentError, match=r"dropout: p is .*\[0, 1\]"):
            x.dropout(p)


# Generators


def test_a_generator_goes_on_where_its_state_says():
    g = ta.Generator(9)
    ta.rand(3, generator=g)
    state = g.state_dict()
    expected = [ta.randn(4, generator=g).tolist(), ta.rand(2, generator=g).tolist()]
    other = ta.Generator(0)
    other.load_state_dict(state)
    assert [ta.randn(4, generator=other).tolist(), ta.rand(2, generator=other).tolist()] == expected


def test_manual_seed_starts_the_default_generator_anew():
    ta.manual_seed(3)
    first = ta.rand(5).tolist()
    assert ta.rand(5).tolist() != first
    assert ta.manual_seed(3) is ta.default_generator() and ta.rand(5).tolist() == first
    assert ta.rand(5, generator=ta.Generator(3)).tolist() == first


def test_a_draw_takes_one_counter_whatever_its_size_or_device():
    g = ta.Generator(0)
    with ta.use_generator(g):
        ta.randn(100_000)
        ta.rand((0,))
        ta.zeros(4).dropout(0.5)
        ta.rand(3, device="meta")
        ta.rand(3, generator=ta.Generator(1))
    assert g.state_dict() == {"key": 0, "counter": 4}


def test_use_generator_holds_in_its_block_and_thread_alone():
    g, outer = ta.Generator(1), ta.default_generator()
    seen = []
    with ta.use_generator(g):
        thread = threading.Thread(target=lambda: seen.append(ta.default_generator()))
        thread.start()
        thread.join()
        assert ta.default_generator() is g
        with pytest.raises(KeyError), ta.use_generator(outer):
            raise KeyError
        assert ta.default_generator() is g
    assert ta.default_generator() is outer
    assert seen[0] is not outer and (seen[0].key, seen[0].counter) == (0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ta.Generator(-1), r"seed is -1: it must lie in \[0, 2\*\*63\)"),
        (lambda: ta.Generator(2**63), "seed is"),
        (lambda: ta.randint(3, 3, (2,)), "low is 3, high is 3"),
        (lambda: ta.randint(0, 2**32 + 1, (2,)), "high - low must lie in"),
        (lambda: ta.rand(2, -1), "every size must be 0 or more"),
        (lambda: ta.uniform(2, low=1, high=0), "uniform: low is 1.0, high is 0.0: high - low must be finite"),
        (lambda: ta.uniform(2, high=math.inf), "high is inf"),
        (lambda: ta.uniform(2, low=math.nan), "low is nan"),
    ],
)
def test_what_can_not_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ta.randint(0, 1000, (2,), dtype=ta.uint8), "randint: .* 999 does not fit uint8"),
        (lambda: ta.randint(-1, 1, (2,), dtype=ta.uint8), "randint: .* -1 does not fit uint8"),
        (lambda: ta.rand(3, dtype=ta.int32), "uniform: dtype is int32: it must be a floating dtype"),
        (lambda: ta.randn(3, dtype=ta.bool), "normal: dtype is bool: it must be a floating dtype"),
    ],
)
def test_a_dtype_that_can_not_hold_the_draws_is_refused(make, message):
    with pytest.raises(DtypeError, match=message):
        make()


def test_a_dtype_that_just_holds_the_draws_is_taken():
    assert ta.randint(255, 256, 3, dtype=ta.uint8).tolist() == [255] * 3
    assert ta.uniform(2, low=0.5, high=0.5).tolist() == [0.5] * 2
