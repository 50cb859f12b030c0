"""Row expressions in tiles: each row is what it is alone, whatever rows are in its tile and however many tiles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.ops.test_rowwise import EXPRESSIONS, operation
from tests.tiers import at_most
from tinyarr import Tensor, row
from tinyarr.backends.numpy import rows
from tinyarr.ops import scalar
from tinyarr.ops.primitive import Call


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(rows, "TILE", 8)


@ta.rowwise(outputs=("scaled", "largest"))
def safe(x):
    """A row over its sum, or where that is small, over its largest element; the first is the usual side."""
    total, largest = row.sum(x), row.max(x)
    by = scalar.where(total > 1, total, scalar.where(largest > 0.25, largest, row.min(x) - 1))
    return x / by, scalar.where(total > 1, largest, -largest)


X = np.array([[1, 2, 3], [0.1, 0.2, 0.3], [0.1, 0.1, 0.1], [5, 5, 5], [0, 0, 0], [1, 1, -1]], np.float32)


@at_most(20)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_tile_of_rows_that_take_both_sides_of_a_choice_gives_each_what_it_gets_alone(order, count):
    chosen = X[list(order)[:count]]
    together = safe(Tensor(chosen))
    for k, x in enumerate(chosen):
        alone = safe(Tensor(x[None]))
        assert all((whole[k] == part[0]).all() for whole, part in zip(together, alone, strict=True))
    total = chosen.sum(axis=1, keepdims=True)
    assert (together[1].numpy() == np.where(total > 1, 1, -1) * chosen.max(axis=1, keepdims=True)).all()


def test_to_ask_for_scratch_changes_nothing():
    call = Call(safe, ta.Device("cpu"), (X.shape,), (ta.float32,), {})
    typed = safe.typed(call.in_shapes, call.in_dtypes, call.params)
    whole = rows._Rows(call, typed)
    program = rows._Rows(call, *rows._usual(typed, whole.varies), whole)
    starts = list(program.starts)
    assert program.conditions and program.scratch() == program.scratch() and program.starts == starts


@at_most(12)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=2), st.sampled_from([(7, 3), (3, 5, 2), (2, 2, 3, 2)]), st.data())
def test_tiles_change_no_bit_of_a_row(expressions, shape, data):
    def leading(rank):
        return tuple(data.draw(st.sampled_from([1, n])) for n in shape[:-1])[len(shape) - 1 - rank :]

    rng = np.random.default_rng(0)
    sizes = [shape, (*leading(len(shape) - 1), 1), shape[-1:], ()]
    given_ = [Tensor(rng.uniform(-1, 1, size).astype(np.float32)) for size in sizes]
    whole = operation(*expressions)(*given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "TILE", 4)
        tiled = operation(*expressions)(*given_)
    whole, tiled = ((x,) if isinstance(x, Tensor) else x for x in (whole, tiled))
    assert [x.numpy().tobytes() for x in whole] == [x.numpy().tobytes() for x in tiled]


@pytest.mark.parametrize("n", [1, 3, 40])
def test_sums_over_rows_are_those_of_all_tiles(small_tiles, n):
    x = np.random.default_rng(0).integers(-9, 9, (100, n)).astype(np.float32)  # whole numbers, whose sums are exact
    _, pull = ta.vjp(lambda w: ta.rms_norm(Tensor(x), w), ta.ones(n))
    (exact,) = ta.vjp(lambda w: ta.rms_norm(Tensor(x, dtype=ta.float64), w), ta.ones(n, dtype=ta.float64))[1](
        Tensor(x, dtype=ta.float64)
    )
    np.testing.assert_allclose(pull(Tensor(x))[0].numpy(), exact.numpy(), rtol=2.0**-20)


def test_the_sum_over_a_million_rows_is_as_exact_as_in_pairs():
    @ta.rowwise
    def shifted(x, weight):
        return x + weight

    (g,) = ta.vjp(lambda w: shifted(ta.full((1_000_000, 2), 0.1), w), ta.zeros(2))[1](ta.full((1_000_000, 2), 0.1))
    np.testing.assert_allclose(g.numpy(), 1e6 * float(np.float32(0.1)), rtol=2.0**-18)


def test_a_factor_of_1_and_a_term_of_0_are_left_out_and_a_term_of_minus_0_is_not():
    @ta.rowwise
    def f(x, *, term):
        is_usual = row.sum(x) > -1
        return x * scalar.where(is_usual, 1.0, row.max(x)) - scalar.where(is_usual, term, row.min(x))

    x = Tensor([[-0.0, 2.0]])
    assert np.signbit(f(x, term=0.0).numpy()).tolist() == [[True, False]]
    assert np.signbit(f(x, term=-0.0).numpy()).tolist() == [[False, False]]
