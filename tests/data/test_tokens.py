"""Token shards and batches: what was written is read, and the order depends on seed and step alone."""

import os
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiers import at_most
from tinyarr.data import Batches, read_shards, write_shard
from tinyarr.errors import FileError


def counting(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.uint32)


def gathered(batches: Batches, first: int, count: int, **sharding: int) -> np.ndarray:
    return np.concatenate([batches.batch(step, **sharding)[0] for step in range(first, first + count)])


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_shard_reads_back_as_it_was_written_and_is_memory_mapped(tmp_path, dtype):
    tokens = np.array([0, 1, 50256, np.iinfo(dtype).max], dtype)
    write_shard(tmp_path / "a.bin", tokens)
    [shard] = read_shards(str(tmp_path / "a.bin"))
    assert isinstance(shard, np.memmap) and not shard.flags.writeable
    assert shard.dtype == dtype and np.array_equal(shard, tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(("dtype", "magic", "version"), [("<u2", 20240520, 1), ("<u4", 20240801, 7)])
def test_a_shard_has_the_header_of_llm_c(tmp_path, dtype, magic, version):
    write_shard(tmp_path / "a.bin", np.array([7, 8, 9], dtype))
    data = (tmp_path / "a.bin").read_bytes()
    assert np.frombuffer(data, "<i4", 256).tolist() == [magic, version, 3] + [0] * 253
    assert np.frombuffer(data, dtype, offset=1024).tolist() == [7, 8, 9]


def test_a_strided_array_is_written_in_its_own_order(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(10, dtype=np.uint16)[::-3])
    assert read_shards(str(tmp_path / "a.bin"))[0].tolist() == [9, 6, 3, 0]


def test_a_pattern_opens_its_shards_in_name_order(tmp_path):
    for number in (2, 0, 1):
        write_shard(tmp_path / f"train_{number}.bin", np.full(3, number, np.uint16))
    assert [shard[0] for shard in read_shards(str(tmp_path / "train_*.bin"))] == [0, 1, 2]


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file matches .*none_\*\.bin.*quote"):
        read_shards(str(tmp_path / "none_*.bin"))


@pytest.mark.parametrize(
    ("header", "tokens", "message"),
    [
        ([20240520], 0, "1020 bytes, expected a header of 1024"),
        ([123, 1, 4], 8, r"magic is 123, expected 20240520 \(uint16 tokens\) or 20240801"),
        ([20240520, 7, 4], 8, "version is 7, expected 1"),
        ([20240801, 1, 4], 16, "version is 1, expected 7"),
        ([20240520, 1, 0], 0, "announces 0 tokens"),
        ([20240520, 1, -5], 0, "announces -5 tokens"),
        ([20240520, 1, 4], 7, "1031 bytes, expected 1032 for the 4 uint16 tokens"),
        ([20240801, 7, 4], 17, "1041 bytes, expected 1040 for the 4 uint32 tokens"),
    ],
)
def test_a_wrong_header_or_size_is_reported_with_file_and_expectation(tmp_path, header, tokens, message):
    words = np.zeros(255 if len(header) == 1 else 256, "<i4")
    words[: len(header)] = header
    (tmp_path / "a.bin").write_bytes(words.tobytes() + bytes(tokens))
    with pytest.raises(ValueError, match=f"read_shards: .*a.bin: .*{message}"):
        read_shards(str(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    "tokens", [np.zeros(3), np.zeros(3, np.int64), np.zeros((2, 2), np.uint16), counting(0)]
)
def test_what_no_shard_can_hold_is_refused_before_a_file_is_made(tmp_path, tokens):
    with pytest.raises(ValueError, match="write_shard: tokens"):
        write_shard(tmp_path / "a.bin", tokens)
    assert not list(tmp_path.iterdir())


lengths = st.lists(st.integers(0, 60), min_size=1, max_size=4)
sizes = st.integers(1, 7)
seeds = st.integers(0, 2**64 - 1)


@given(lengths, sizes, sizes, seeds, st.integers(0, 10**9))
def test_targets_are_the_tokens_that_follow_and_windows_stay_inside_one_array(lengths, B, T, seed, step):
    arrays = [1000 * number + np.arange(length) for number, length in enumerate(lengths)]
    if max(lengths) <= T:
        with pytest.raises(ValueError, match=rf"has {max(lengths)} tokens, expected at least seq_len \+ 1"):
            Batches(arrays, B, T, vocab_size=10**4)
        return
    tokens, targets = Batches(arrays, B, T, vocab_size=10**4, seed=seed).batch(step)
    assert tokens.shape == targets.shape == (B, T)
    assert tokens.dtype == targets.dtype == np.int64
    assert tokens.flags.c_contiguous and targets.flags.c_contiguous
    assert (targets == tokens + 1).all() and (np.diff(tokens, axis=1) == 1).all()


@given(st.lists(st.integers(8, 60), min_size=1, max_size=3), seeds, st.integers(0, 5))
def test_an_epoch_visits_every_window_once_and_leaves_out_less_than_two_an_array(lengths, seed, epoch):
    T, arrays = 4, [1000 * number + np.arange(length) for number, length in enumerate(lengths)]
    batches = Batches(arrays, 1, T, vocab_size=10**4, seed=seed)
    seen = gathered(batches, epoch * batches.windows, batches.windows).ravel().tolist()
    assert len(seen) == len(set(seen))
    for number, length in enumerate(lengths):
        assert length - 2 * T < sum(token // 1000 == number for token in seen) < length


def test_epochs_differ_in_order_and_in_where_windows_begin():
    batches = Batches(counting(1000), 1, 10, vocab_size=1000)
    first, second = (gathered(batches, epoch * batches.windows, batches.windows)[:, 0] for epoch in (0, 1))
    assert (first != np.sort(first)).any()
    assert first[0] % 10 != second[0] % 10
    assert ((first - first[0]) != (second - second[0])).any()


def test_another_seed_gives_another_order():
    batches = [Batches(counting(1000), 8, 10, vocab_size=1000, seed=seed).batch(0)[0] for seed in range(50)]
    assert len({tokens.tobytes() for tokens in batches}) == 50


def test_every_order_of_a_few_windows_is_about_equally_likely():
    counts = dict.fromkeys(permutations(range(3)), 0)
    for seed in range(600):
        arrays = [counting(2), 1 + counting(2), 2 + counting(2)]
        tokens, _ = Batches(arrays, 3, 1, vocab_size=9, seed=seed).batch(0)
        counts[tuple(tokens.ravel().tolist())] += 1
    # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand times.
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 20.5


@given(seeds, st.integers(0, 100), st.integers(1, 4), st.integers(1, 4))
def test_micro_batches_and_ranks_together_are_the_one_large_batch(seed, step, parts, B):
    large = Batches(counting(500), parts * B, 8, vocab_size=500, seed=seed).batch(step)[0]
    small = Batches(counting(500), B, 8, vocab_size=500, seed=seed)
    assert np.array_equal(gathered(small, step * parts, parts), large)
    ranks = [small.batch(step, rank=rank, ranks=parts)[0] for rank in range(parts)]
    assert np.array_equal(np.concatenate(ranks), large)


def test_the_order_is_the_same_in_every_version_and_on_every_machine():
    batches = Batches(counting(100), 4, 10, vocab_size=100, seed=2**63 + 5)
    assert [batches.batch(step)[0][:, 0].tolist() for step in (0, 5)] == [[9, 59, 39, 89], [15, 85, 65, 35]]


@given(lengths.filter(lambda lengths: max(lengths) > 4), sizes)
def test_the_walk_reads_every_window_once_in_order(lengths, B):
    arrays = [1000 * number + np.arange(length) for number, length in enumerate(lengths)]
    walked = list(Batches(arrays, B, 4, vocab_size=10**4).walk())
    tokens = np.concatenate([tokens for tokens, _ in walked])
    expected = [array[start : start + 4] for array in arrays for start in range(0, len(array) - 4, 4)]
    assert np.array_equal(tokens, np.array(expected))
    assert np.array_equal(np.concatenate([targets for _, targets in walked]), tokens + 1)
    assert all(len(tokens) == B for tokens, _ in walked[:-1]) and 1 <= len(walked[-1][0]) <= B


@given(st.integers(1, 2**40), st.integers(0, 2**32))
@at_most(20)
def test_the_order_of_a_huge_array_costs_no_memory(extra, step):
    huge = np.broadcast_to(np.uint16(3), (2**41 + extra,))
    tokens, targets = Batches(huge, 4, 8, vocab_size=4, seed=1).batch(step)
    assert (tokens == 3).all() and (targets == 3).all()


@pytest.mark.parametrize("wrong", [5, -1])
def test_a_token_outside_the_vocabulary_is_reported_with_its_place(wrong):
    tokens = np.array([0, 1, 2, wrong, 4, 0, 1])
    batches = Batches([np.zeros(3, np.uint16), tokens], 2, 3, vocab_size=5)
    with pytest.raises(ValueError, match=rf"array 1: token 3 is {wrong}, expected an id from 0 to 4"):
        list(batches.walk())


def test_a_shard_that_is_cut_short_while_it_is_read_is_an_error_and_not_the_end_of_the_process(tmp_path):
    write_shard(tmp_path / "a.bin", np.zeros(50_000, np.uint16))
    batches = Batches([shard[10:] for shard in read_shards(str(tmp_path / "a.bin"))], 4, 8, vocab_size=1)
    batches.batch(0)
    os.truncate(tmp_path / "a.bin", 4096)
    for read in (lambda: batches.batch(0), lambda: next(batches.walk())):
        with pytest.raises(FileError, match=r"a\.bin has 4096 bytes, and had 101024: another program has cut it short"):
            read()


def test_a_token_outside_the_vocabulary_names_its_shard(tmp_path):
    write_shard(tmp_path / "gpt2.bin", np.full(100, 50256, np.uint16))
    batches = Batches(read_shards(str(tmp_path / "gpt2.bin")), 2, 4, vocab_size=257)
    with pytest.raises(ValueError, match=r"gpt2\.bin: token \d+ is 50256, expected an id from 0 to 256"):
        batches.batch(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"seq_len": 0}, "seq_len is 0, expected at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0, expected at least 1"),
        ({"seed": -1}, r"seed is -1, expected 0 to 2\*\*64 - 1"),
        ({"seed": 2**64}, "expected 0 to"),
        ({"arrays": []}, "longest of 0 token arrays has 0 tokens"),
        ({"arrays": np.zeros(9)}, r"array 0 has shape \(9,\) and dtype float64"),
        ({"arrays": np.zeros((3, 3), int)}, r"array 0 has shape \(3, 3\) and dtype int64"),
    ],
)
def test_arguments_that_make_no_batch_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Batches(**{"arrays": counting(9), "batch_size": 2, "seq_len": 4, "vocab_size": 9} | changes)


@pytest.mark.parametrize(
    "place", [{"step": -1}, {"step": 0, "rank": 1}, {"step": 0, "rank": -1}, {"step": 0, "ranks": 0}]
)
def test_a_step_or_rank_out_of_range_is_refused(place):
    with pytest.raises(ValueError, match="expected step >= 0 and 0 <= rank < ranks"):
        Batches(counting(9), 2, 4, vocab_size=9).batch(**place)
