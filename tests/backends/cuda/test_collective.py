"""Collectives of one rank, which go over NCCL all the same. With several GPUs: tests/backends/cuda/ranks.py."""

import numpy as np
import pytest

import tinyarr as ta
from tests.backends.cuda import ranks
from tinyarr import Tensor, cuda, optim
from tinyarr.distributed import all_gather, all_reduce, broadcast, reduce, reduce_scatter, world

pytestmark = pytest.mark.cuda
COLLECTIVES = {
    **{op: (lambda x, op=op: all_reduce(x, op)) for op in ("sum", "mean", "max", "min")},
    "reduce": reduce,
    "broadcast": broadcast,
    "reduce_scatter": reduce_scatter,
    "mean, scattered": lambda x: reduce_scatter(x, "mean"),
    "all_gather": all_gather,
}


@pytest.mark.parametrize("dtype", ranks.DTYPES, ids=lambda d: d.name)
def test_every_collective_and_its_gradient_is_that_of_one_rank(dtype):
    ranks.check_collectives(world(), dtype, "cuda")


@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16, ta.float8_e4m3fn], ids=lambda d: d.name)
@pytest.mark.parametrize("name", COLLECTIVES)
def test_the_result_has_the_bits_of_the_operand(name, dtype):
    function = COLLECTIVES[name]
    x = Tensor(np.random.default_rng(0).standard_normal((257, 130)), dtype=dtype, device="cuda")
    y = x.astype(ta.float32) * 2
    compiled = ta.compile(lambda x, y: (function((y * 3).astype(dtype)), function(x), y * y))
    expected = [t.astype(ta.float32).tolist() for t in ((y * 3).astype(dtype), x, y * y)]
    assert function(x).astype(ta.float32).tolist() == expected[1]
    for _ in range(5):
        assert [t.astype(ta.float32).tolist() for t in compiled(x, y)] == expected
    (program,) = compiled.programs
    assert program._captured[1] is not None, "it was never captured"
    with program.timed() as calls:
        compiled(x, y)
    assert len(calls[0]) == len(program.kernels)
    assert sum(task.title == "wait" for task in program.kernels) == 2


def test_an_unaligned_operand_and_an_empty_one():
    x = Tensor(np.arange(101), dtype=ta.bfloat16, device="cuda")
    np.testing.assert_array_equal(all_reduce(x[1:]).numpy(), x[1:].numpy())
    np.testing.assert_array_equal(all_reduce(ta.stack([x, x]).T).numpy(), ta.stack([x, x]).T.numpy())
    assert all_reduce(x[:0]).shape == (0,)
    assert ta.compile(lambda x: all_reduce(x) * 2)(x[:0]).shape == (0,)


def test_collectives_on_their_way_at_once_and_programs_in_turns():
    ranks.check_tickets(world(), "cuda")


def test_a_replayed_program_counts_its_collectives():
    group, x = world(), ta.ones((64,), device="cuda")
    compiled, counts = ta.compile(lambda x: (all_reduce(x * 2), all_reduce(x, "max"))), []
    for _ in range(5):
        before = group._begun
        compiled(x)
        counts.append(group._begun - before)
    assert counts[1:] == [2] * 4  # the first may start NCCL


# Not of compiled bfloat16: without ranks cuBLASLt leaves out the rounding of gradients that only an update reads.
@pytest.mark.parametrize(
    ("dtype", "compiled"), [(ta.float32, True), (ta.float32, False), (ta.bfloat16, False)],
    ids=["float32 compiled", "float32 eager", "bfloat16 eager"],
)  # fmt: skip
@pytest.mark.parametrize("name", ranks.SCHEMES)
def test_training_on_one_rank_has_the_bits_of_training_without_ranks(name, dtype, compiled):
    def trained(make):
        return ranks.train(make, lambda groups: optim.AdamW(groups, lr=1e-2), 0, 1, "cuda", dtype, compiled)

    losses, weights = trained(ranks.SCHEMES[name](world()))
    expected = trained(None)
    assert losses == expected[0]
    assert all(np.array_equal(a, b) for a, b in zip(weights, expected[1], strict=True))


def test_guarded_programs_find_nothing_wrong(monkeypatch):
    monkeypatch.setenv("TINYARR_GUARD", "1")
    ranks.check_collectives(world(), ta.bfloat16, "cuda")
    ranks.check_collectives(world(), ta.int16, "cuda")
    cuda.synchronize()
