import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyarr import schedule
from tinyarr.errors import ArgumentError

lengths = st.integers(1, 1000).flatmap(lambda steps: st.tuples(st.integers(0, steps - 1), st.just(steps)))


def every(lr, warmup, steps, final=0.1):
    """Every schedule, with the same peak, warm-up and length."""
    return {
        "constant": schedule.constant(lr, warmup=warmup),
        "linear": schedule.linear(lr, steps, warmup=warmup, final=final),
        "cosine": schedule.cosine(lr, steps, warmup=warmup, final=final),
        "warmup_stable_decay": schedule.warmup_stable_decay(
            lr, steps, warmup=warmup, decay=(steps - warmup) // 2, final=final
        ),
    }


@given(lengths, st.floats(1e-6, 1), st.floats(0, 1))
def test_every_schedule_rises_in_equal_parts_to_the_peak_and_never_rises_again(length, lr, final):
    warmup, steps = length
    for name, rate in every(lr, warmup, steps, final).items():
        rates = [rate(step) for step in range(steps + 2)]
        assert rates[:warmup] == pytest.approx([lr * (step + 1) / warmup for step in range(warmup)]), name
        assert rates[warmup] == lr, name
        slack = 4 * sys.float_info.epsilon * lr  # a few roundings of numbers of at most lr
        assert all(b <= a + slack for a, b in zip(rates[warmup:], rates[warmup + 1 :])), name
        assert min(rates[warmup:]) >= lr * final - slack, name


@given(lengths, st.floats(0, 1))
def test_every_decay_ends_at_its_final_share_and_stays_there(length, final):
    warmup, steps = length
    rates = every(2.0, warmup, steps, final)
    for name in ("linear", "cosine"):
        assert rates[name](steps) == rates[name](steps + 100) == pytest.approx(2 * final), name
    if steps - warmup > 1:
        assert rates["warmup_stable_decay"](steps) == pytest.approx(2 * final)


def test_constant_stays():
    rate = schedule.constant(0.5)
    assert [rate(step) for step in (0, 1, 10**9)] == [0.5] * 3


def test_linear_is_a_straight_line():
    rate = schedule.linear(1.0, 12, warmup=2, final=0.5)
    assert [rate(step) for step in (2, 4, 7, 12)] == pytest.approx([1, 0.9, 0.75, 0.5])


def test_cosine_is_half_a_cosine():
    rate = schedule.cosine(1.0, 14, warmup=2, final=0.0)
    expected = [(1 + math.cos(math.pi * i / 12)) / 2 for i in range(13)]
    assert [rate(step) for step in range(2, 15)] == pytest.approx(expected)
    assert schedule.cosine(1.0, 10)(10) == pytest.approx(0.1)


def test_warmup_stable_decay_holds_the_peak_until_the_decay():
    rate = schedule.warmup_stable_decay(1.0, 20, warmup=4, decay=5)
    assert [rate(step) for step in range(4, 16)] == [1.0] * 12
    assert [rate(step) for step in range(15, 21)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert schedule.warmup_stable_decay(1.0, 20, decay=0)(20) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule.linear(1.0, 10, warmup=11), "linear: warmup is 11, steps is 10"),
        (lambda: schedule.cosine(1.0, 10, warmup=-1), "cosine: warmup is -1"),
        (lambda: schedule.constant(1.0, warmup=-1), "constant: warmup is -1"),
        (lambda: schedule.warmup_stable_decay(1.0, 10, warmup=5, decay=6), "warmup_stable_decay: decay is 6"),
        (lambda: schedule.warmup_stable_decay(1.0, 10, decay=-1), "warmup_stable_decay: decay is -1"),
    ],
)
def test_lengths_that_do_not_fit_are_an_error(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
