"""Collectives on several ranks: against NumPy, and their gradients against one process."""

import pytest

from tests.distributed.ranks import run
from tests.tiers import slow

four = slow(4)


@pytest.mark.parametrize(("ranks", "compiled"), [(2, "some"), slow(2, "all"), slow(4, "all")])
def test_collectives_give_numpys_results_for_all_dtypes_layouts_and_groups(ranks, compiled):
    assert run("collectives", ranks, compiled).count("results are NumPy's") == ranks


@pytest.mark.parametrize("ranks", [1, 2, four])
def test_gradients_are_those_of_one_process_with_a_replicated_loss_and_faults_are_caught(ranks):
    assert run("gradients", ranks).count("have the gradients of one process") == ranks


@pytest.mark.parametrize("ranks", [2, four])
def test_programs_that_differ_by_rank_keep_the_order_and_number_of_their_collectives(ranks):
    assert run("uneven", ranks, seconds=60).count("programs agree") == ranks


@pytest.mark.parametrize("ranks", [2, four])
def test_different_collectives_raise_on_all_ranks_before_they_run(ranks):
    assert run("differing", ranks, seconds=60).count("differences are found") == ranks
