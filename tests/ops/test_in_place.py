"""Methods that write: what they write, who sees it, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import Generator, Tensor, no_grad
from tinyarr.errors import DtypeError, GradientError, ShapeError
from tinyarr.testing import tensors

WRITES = {  # by method: its call, and the result in NumPy
    "copy_": (lambda x, y: x.copy_(y), lambda x, y: y),
    "fill_": (lambda x, y: x.fill_(1.5), lambda x, y: np.full_like(x, 1.5)),
    "zero_": (lambda x, y: x.zero_(), lambda x, y: np.zeros_like(x)),
    "add_": (lambda x, y: x.add_(y), lambda x, y: x + y),
    "add_ with alpha": (lambda x, y: x.add_(y, alpha=-0.5), lambda x, y: x - 0.5 * y),
    "add_ of a number": (lambda x, y: x.add_(2), lambda x, y: x + 2),
    "sub_": (lambda x, y: x.sub_(y, alpha=2), lambda x, y: x - 2 * y),
    "mul_": (lambda x, y: x.mul_(y), lambda x, y: x * y),
    "div_": (lambda x, y: x.div_(y), lambda x, y: x / y),
    "lerp_": (lambda x, y: x.lerp_(y, 0.25), lambda x, y: x + 0.25 * (y - x)),
    "clamp_": (lambda x, y: x.clamp_(-1, 0.5), lambda x, y: np.clip(x, -1, 0.5)),
    "clamp_ from below": (lambda x, y: x.clamp_(min=y), np.maximum),
    "masked_fill_": (lambda x, y: x.masked_fill_(y > 0, 3), lambda x, y: np.where(y > 0, 3, x)),
}  # fmt: skip


@at_most(120)
@given(st.data(), st.sampled_from(sorted(WRITES)), st.sampled_from([(3, 3), (2, 3), (2, 1, 3)]))
def test_a_result_is_written_into_memory_of_any_layout(data, name, shape):
    method, reference = WRITES[name]
    x = data.draw(tensors(shape, ta.float64, repeats=False))
    transposed = ta.swapaxes(x, -1, -2) if shape == (3, 3) else ta.ones(shape, dtype=ta.float64)
    y = data.draw(st.one_of(st.just(transposed), st.just(x), tensors(shape, ta.float64), tensors((1, 3), ta.float32)))
    before = x.numpy(), y.numpy()
    with np.errstate(all="ignore"):
        expected = reference(*before)
    assert method(x, y) is x
    np.testing.assert_array_equal(x.numpy(), np.broadcast_to(expected, shape))


@pytest.mark.parametrize("name", WRITES)
def test_a_program_writes_what_eager_mode_writes(name):
    method, _ = WRITES[name]

    def step(state, x, y):
        method(state[0], y)
        return method(x.clone(), y) + state[0]

    states, x, y = [[ta.arange(6.0).reshape((2, 3))] for _ in range(2)], ta.randn(2, 3), ta.randn(2, 3)
    compiled = ta.compile(lambda x, y: step(states[0], x, y))
    for _ in range(3):
        assert compiled(x, y).tolist() == step(states[1], x, y).tolist()
    assert states[0][0].tolist() == states[1][0].tolist()


def test_numbers_are_inputs_of_a_program():
    step = ta.compile(lambda x, y, a: x.clone().add_(y, alpha=a).lerp_(y, a).clamp_(-a, a).sub_(y, alpha=a))
    for a in (0.5, 0.25, 1.0):
        expected = min(a, 1 + a + a * (1 - (1 + a))) - a
        assert step(ta.ones(1), ta.ones(1), a).tolist() == [expected]
    assert len(step.programs) == 1


def test_views_see_a_write_and_a_view_writes_into_what_it_shows():
    x = ta.zeros((2, 3))
    row = x[1]
    row.add_(2).mul_(ta.Tensor([1.0, 2.0, 3.0]))
    x[:, 0].fill_(7)
    assert x.tolist() == [[7, 0, 0], [7, 4, 6]] and row.tolist() == [7, 4, 6]


def test_what_takes_part_in_a_gradient_is_written_under_no_grad_alone():
    w, x = ta.ones(2, requires_grad=True), ta.ones(2)
    for write in (lambda: w.add_(1), lambda: x.mul_(w), lambda: (w * 2).clamp_(0, 1), lambda: w.normal_(),
                  lambda: w.zero_(), lambda: x.copy_(w), lambda: x.lerp_(x, w)):  # fmt: skip
        with pytest.raises(GradientError, match=r"takes part in a gradient.*under no_grad\(\)"):
            write()
    assert w.tolist() == x.tolist() == [1, 1]
    with no_grad():
        w.add_(x, alpha=-0.5).mul_(w)
        x.copy_(w)
    assert w.tolist() == x.tolist() == [0.25, 0.25] and w.requires_grad and w.is_leaf and not x.requires_grad
    y = ta.ones(2)
    loss = (w * y).sum()
    y.add_(1)
    with pytest.raises(GradientError, match="written"):
        loss.backward()


def test_a_result_that_does_not_fit_is_refused():
    n = Tensor([1, 2])
    for write in (lambda: n.add_(1.5), lambda: n.div_(2), lambda: (n > 1).add_(1), lambda: n.mul_(ta.ones(2))):
        with pytest.raises(DtypeError, match=r"^\w+_: the result has dtype \w+, x \w+: use astype"):
            write()
    with pytest.raises(ShapeError, match=r"^add_: the result has shape \(3, 2\), x has shape \(2,\): they"):
        n.add_(ta.ones((3, 2), dtype=ta.int64))
    assert n.add_(ta.ones(2, dtype=ta.int8)).tolist() == [2, 3] and n.sub_(4).tolist() == [-2, -1]
    half = ta.ones(2, dtype=ta.bfloat16)
    assert half.add_(ta.ones(2)).dtype is ta.bfloat16 and half.tolist() == [2, 2]


def test_draws_are_written_in_place():
    x = ta.empty((2, 3), dtype=ta.float64)
    assert x.normal_(1, 2, generator=Generator(3)) is x
    assert x.tolist() == ta.normal((2, 3), 1, 2, generator=Generator(3), dtype=ta.float64).tolist()
    assert x.uniform_(-1, 1, generator=Generator(3)).tolist() == (
        ta.uniform((2, 3), -1, 1, generator=Generator(3), dtype=ta.float64).tolist()
    )


def test_data_reads_without_history_and_says_how_to_write():
    w = ta.ones(2, requires_grad=True)
    data = w.data
    assert not data.requires_grad and data.array.storage is w.array.storage
    w.data.normal_(0, 0.02)
    w.data.copy_(ta.full((2,), 3.0))
    assert w.tolist() == [3, 3] and w.requires_grad
    for write in ("w.data = w.data - 1", "w.data -= 1"):
        with pytest.raises(GradientError, match=r"^data: x\.data = y came: use x\.assign\(y\)"):
            exec(write)
    assert w.tolist() == [3, 3] and w.numel() == 2 and type(w.numel()) is int
    x = ta.zeros(3).requires_grad_()
    assert x.requires_grad and not x.requires_grad_(False).requires_grad
