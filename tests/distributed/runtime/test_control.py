"""No loss of a rank leaves another waiting: it ends all, and is named; what ends as it should ends in silence."""

import os
import signal
import socket
import time

import pytest

from tests.distributed.processes import seconds, start, wait_for
from tests.distributed.runtime.controls import together
from tests.tiers import slow
from tinyarr.errors import RankError

DEATH = 5.0  # seconds within which a death ends all, or, after the time-out, a hang

HANGS = "time.sleep(60)", "[None for _ in iter(int, 1)]", "control.begin('1', 1, 'x'); os.read(os.pipe()[0], 1)"
COMPUTE = """
    collective()
    say("computing")
    while True:
        sum(range(1000))
"""
WAIT = """
    collective()
    say("waiting")
    collective("all_gather")
"""


def test_exchange_returns_the_values_in_the_order_of_the_ranks(pair):
    a, b = pair()
    together(a.meet, b.meet)
    for key, ranks in (("x", (0, 1)), ("y", (1, 0)), ("z", (0, 1))):
        values = {rank: [key, rank, None, 0.5, {"a": "é\n"}] for rank in range(2)}
        expected = [values[rank] for rank in ranks]
        results = together(
            lambda: a.exchange(key, values[0], ranks), lambda: b.exchange(key, values[1], ranks)  # noqa: B023
        )
        assert results == [expected, expected]
    assert a.processes == b.processes == [f"{socket.gethostname()}, pid {os.getpid()}"] * 2


def test_some_of_the_ranks_exchange_without_the_others(pair):
    a, b, c = pair(size=3)
    together(a.meet, b.meet, c.meet)
    assert together(lambda: a.exchange("ac", 1, (0, 2)), lambda: c.exchange("ac", 2, (0, 2))) == [[1, 2], [1, 2]]
    assert b.exchange("b", 3, (1,)) == [3]


def test_the_first_value_under_a_key_is_everyones_whoever_asks(pair):
    a, b = pair()
    together(a.meet, b.meet)
    assert b.first("x", None) is None
    assert [b.first("x", "b's"), a.first("x", "a's"), a.first("x", None), b.first("x", "more")] == ["b's"] * 4
    assert a.first("y", "a's") == "a's"


def test_an_exchange_names_the_rank_that_does_not_come(pair):
    a, b = pair(timeout=1.0)
    together(a.meet, b.meet)
    b._told.set()
    error = together(lambda: a.exchange("0,1/7", 1, (0, 1)))[0]
    assert isinstance(error, RankError)
    assert "rank 1 (" in str(error) and "has not reached exchange 0,1/7" in str(error)


def test_a_collective_that_all_have_begun_and_that_does_not_end_is_told_with_what_each_last_did(pair):
    a, b = pair(timeout=1.0)
    together(a.meet, b.meet)
    a.begin("0,1", 1, "all_reduce")
    b.begin("0,1", 1, "broadcast")
    errors = together(*(lambda c=c: c.wait(lambda: False, "0,1", 1, (0, 1)) for c in (a, b)))
    for error in errors:
        assert isinstance(error, RankError)
        assert "its last was all_reduce, collective 1" in str(error)
        assert "its last was broadcast, collective 1" in str(error)
        assert "every rank has begun it" in str(error)


@pytest.mark.slow
def test_two_ranks_that_wait_for_each_other_in_different_groups_are_both_told(pair):
    a, b, c = pair(timeout=1.0, size=3)
    together(a.meet, b.meet, c.meet)
    c._told.set()
    a.begin("0,1", 1, "all_reduce")
    b.begin("0,1,2", 1, "broadcast")
    errors = together(
        lambda: a.wait(lambda: False, "0,1", 1, (0, 1)), lambda: b.wait(lambda: False, "0,1,2", 1, (0, 1, 2))
    )
    assert all(isinstance(error, RankError) for error in errors)
    assert "it waits for " in str(errors[0])


def test_what_is_done_is_no_loss_though_a_rank_is_lost(pair):
    a, b = pair()
    together(a.meet, b.meet)
    b._told.set()
    b._connection.end()
    a._told.set()
    wait_for(lambda: a._lost)
    a.wait(lambda: True, "0,1", 1, (0, 1))
    with pytest.raises(RankError, match=r"wait: rank 1 \(.*\) has ended without a word"):
        a.wait(lambda: False, "0,1", 2, (0, 1))


@pytest.mark.parametrize("lost, other", [(0, "waits"), slow(1, "waits"), slow(0, "computes"), (1, "computes")])
def test_a_killed_rank_ends_the_other_at_once(tmp_path, lost, other):
    codes = [{"waits": WAIT, "computes": COMPUTE}[other]] * 2
    codes[lost] = "collective(); say('ready'); time.sleep(60)"
    ranks = start(tmp_path, *codes)
    ranks[1 - lost].process.stdout.readline()
    ranks[lost].process.kill()
    took, (status, _, err) = seconds(ranks[1 - lost].end)
    assert status == 1 and f"rank {lost} (" in err and "has ended without a word" in err
    assert took < DEATH
    assert ("RankError" in err) == (other == "waits")
    assert ("It is here" in err) == (other == "computes")
    ranks[lost].end()


@pytest.mark.parametrize("lost", [slow(0), 1])
def test_an_exception_ends_the_others_and_is_told_to_them(tmp_path, lost):
    codes = [WAIT, WAIT]
    codes[lost] = "collective(); raise ValueError('no such shape')"
    ranks = start(tmp_path, *codes)
    took, ends = seconds(lambda: [rank.end() for rank in ranks])
    assert [status for status, _, _ in ends] == [1, 1]
    assert ends[lost][2].startswith("Traceback") and ends[lost][2].endswith("\nValueError: no such shape\n")
    assert "RankError: wait: rank" in ends[1 - lost][2] and "raised ValueError: no such shape" in ends[1 - lost][2]
    assert took < 30


@pytest.mark.parametrize("lost", [0, slow(1)])
def test_a_rank_that_has_ended_is_not_waited_for(tmp_path, lost):
    codes = [WAIT, WAIT]
    codes[lost] = "collective()"
    ranks = start(tmp_path, *codes)
    ranks[1 - lost].process.stdout.readline()
    took, (status, _, err) = seconds(ranks[1 - lost].end)
    assert status == 1 and f"rank {lost} (" in err
    assert "has ended without reaching all_gather, collective 2 of group 0,1" in err
    assert took < DEATH
    status, _, err = ranks[lost].end()
    assert (status, err) == (0, "")


@pytest.mark.parametrize("hang, lost", [*(slow(hang, lost) for hang in HANGS[:2] for lost in range(2)), (HANGS[2], 1)])
def test_a_rank_that_hangs_is_named_and_ends_with_the_others(tmp_path, lost, hang):
    timeout = 1.0
    codes = [WAIT, WAIT]
    codes[lost] = "collective(); say('hangs'); " + hang
    ranks = start(tmp_path, *codes, timeout=timeout)
    ranks[1 - lost].process.stdout.readline()
    took, ends = seconds(lambda: [rank.end() for rank in ranks])
    assert [status for status, _, _ in ends] == [1, 1]
    assert f"rank {lost} (" in ends[1 - lost][2]
    assert "has not reached all_gather, collective 2 of group 0,1, for 1 s" in ends[1 - lost][2]
    assert "tinyarr: rank" in ends[lost][2] and "It is here" in ends[lost][2]
    assert took < timeout + DEATH


def test_a_rank_that_does_not_say_what_it_is_about_to_call_is_named(tmp_path):
    asks = "control.begin(everyone, 1, 'reduce'); control.exchange('key', 'reduce', range(2), (everyone, 1))"
    ranks = start(tmp_path, asks, "time.sleep(60)", timeout=1.0)
    took, ends = seconds(lambda: [rank.end() for rank in ranks])
    assert [status for status, _, _ in ends] == [1, 1]
    assert "has not reached reduce, collective 1 of group 0,1, for 1 s" in ends[0][2]
    assert took < 1 + DEATH


def test_ranks_that_ask_once_rank_0_has_ended_are_told_at_once(tmp_path):
    asks = "time.sleep(1); control.begin('1,2', 1, 'reduce'); control.exchange('key', 'reduce', (1, 2), ('1,2', 1))"
    took, ends = seconds(lambda: [rank.end() for rank in start(tmp_path, "", asks, asks)])
    assert [status for status, _, _ in ends] == [0, 1, 1]
    assert all("reduce, collective 1 of group 1,2, has not ended" in err for _, _, err in ends[1:])
    assert all("let rank 0 end last" in err for _, _, err in ends[1:])
    assert took < 15  # half the time-out


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_frozen_rank_is_named_though_nobody_waits_for_it(tmp_path, lost):
    timeout = 2.0
    ranks = start(tmp_path, COMPUTE, COMPUTE, timeout=timeout)
    for rank in ranks:
        rank.process.stdout.readline()
    ranks[lost].process.send_signal(signal.SIGSTOP)
    took, (status, _, err) = seconds(ranks[1 - lost].end)
    assert status == 1 and f"rank {lost} (" in err
    assert "has not been heard of for 2 s" in err
    assert took < timeout + DEATH
    ranks[lost].process.send_signal(signal.SIGCONT)
    took, (status, _, err) = seconds(ranks[lost].end)
    assert status == 1 and took < DEATH


@pytest.mark.slow
def test_a_run_that_is_stopped_as_a_whole_goes_on(tmp_path):
    timeout = 1.5
    code = "say('ready'); time.sleep(0.5); collective(); say('went on')"
    ranks = start(tmp_path, code, code, timeout=timeout)
    for rank in ranks:
        rank.process.stdout.readline()
    for rank in ranks:
        rank.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * timeout)
    for rank in ranks:
        rank.process.send_signal(signal.SIGCONT)
    assert [rank.end() for rank in ranks] == [(0, "went on\n", "")] * 2


@pytest.mark.parametrize("first", [0, slow(1)])
def test_ranks_end_in_any_order_in_silence_and_at_once(tmp_path, first):
    codes = ["collective(); time.sleep(1); say('end')"] * 2
    codes[first] = "collective(); say('end')"
    ranks = start(tmp_path, *codes)
    ranks[first].process.stdout.readline()
    took, end = seconds(ranks[first].end)
    assert end == (0, "", "") and took < 0.7
    assert ranks[1 - first].end() == (0, "end\n", "")


@pytest.mark.slow
def test_a_forked_child_is_no_rank(tmp_path):
    fork = """
    collective()
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    say(str(child))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    quiet = """
    collective()
    if os.fork() == 0:
        sys.exit()  # by way of what is done at exit
    os.wait()
    say("waiting")
    collective()
    """
    ranks = start(tmp_path, quiet, fork)
    ranks[0].process.stdout.readline()
    took, (status, out, err) = seconds(ranks[0].end)
    child = int(ranks[1].process.stdout.readline())
    assert status == 1 and "rank 1 (" in err and "has ended without a word" in err
    assert took < DEATH  # though its child is alive
    os.kill(child, signal.SIGKILL)
    ranks[1].end()
