"""Data parallelism and sharded optimizers with several ranks, against one process and against theory."""

import pytest

from tests.distributed.ranks import run
from tests.tiers import slow

four = slow(4)
CASES = [(2, model, dtype) for model in ("gpt2", "llama3") for dtype in ("float32", "bfloat16")]
CASES += [(4, "gpt2", "float32"), (4, "llama3", "bfloat16")]


def test_two_ranks_train_to_the_bits_of_one_process():
    assert run("schemes", 2, "few").count("trains as one process does") == 2


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "model", "dtype"), CASES)
def test_every_scheme_trains_as_one_process_does(ranks, model, dtype):
    assert run("schemes", ranks, model, dtype, seconds=900).count("trains as one process does") == ranks


@pytest.mark.parametrize("ranks", [2, four])
def test_parameters_without_gradient_frozen_written_by_hand_or_too_few_are_handled(ranks):
    assert run("parameters", ranks).count("parameters of every kind are right") == ranks


@pytest.mark.parametrize(("ranks", "cases"), [(2, "some"), slow(2, "all"), slow(4, "all")])
def test_bytes_sent_and_memory_held_are_those_of_theory(ranks, cases):
    assert run("costs", ranks, cases).count("costs are those of theory") == ranks
