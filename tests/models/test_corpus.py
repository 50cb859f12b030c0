"""What a run learns from: batches of the right text, a baseline on the same split, and data told from other data."""

from pathlib import Path

import numpy as np
import pytest

from models.baseline import nats_per_byte
from models.corpus import fingerprint, open_corpus, split_shards
from models.options import TrainOptions
from models.text import load_text
from tinyarr.data import read_shards, write_shard


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(f"The {n}th word is {n * 7919}." for n in range(200)))


def test_batches_come_from_the_text_and_validation_from_its_own_part():
    corpus = open_corpus(TrainOptions(text="text.txt", seq_len=16, batch_size=3), vocab_size=0)
    split = load_text("text.txt")
    drawn = [(split.train, corpus.training.batch(5)), (split.validation, next(corpus.validation.walk()))]
    for documents, (tokens, targets) in drawn:
        assert tokens.shape == targets.shape == (3, 16)
        text = "<|endoftext|>".join(["", *documents])
        assert all(corpus.tokenizer.decode(row) in text for row in tokens)


def test_the_baseline_is_told_for_bytes_alone_and_sees_the_text_that_the_model_sees():
    corpus = open_corpus(TrainOptions(text="text.txt"), vocab_size=0)
    split = load_text("text.txt")
    streams = ("".join("\0" + document for document in part).encode() for part in (split.train, split.validation))
    training, validation = streams
    assert corpus.baseline == nats_per_byte(training, validation)
    few = open_corpus(TrainOptions(text="text.txt", eval_tokens=100), vocab_size=0)
    assert few.baseline == nats_per_byte(training, validation[:100])
    write_shard("a.bin", np.arange(5000, dtype=np.uint16) % 256)
    assert open_corpus(TrainOptions(data="a.bin", tokenizer="bytes"), vocab_size=0).baseline is None


def test_shards_with_val_in_their_name_validate_or_else_the_last_tenth():
    for number, name in enumerate(["a_train_1", "a_train_2", "a_val_0"]):
        write_shard(f"{name}.bin", np.full(100, number, np.uint16))
    training, validation = split_shards(read_shards("a_*.bin"))
    assert [array[0] for array in training] == [0, 1] and [array[0] for array in validation] == [2]
    training, validation = split_shards(read_shards("a_train*.bin"))
    assert [array.size for array in training] == [100, 90] and [array.size for array in validation] == [10]


def test_a_fingerprint_tells_other_sizes_tokens_and_types():
    arrays = [np.arange(9, dtype=np.uint16)], [np.arange(8, dtype=np.uint16)], [np.arange(9, dtype=np.uint32)], [
        np.arange(9, dtype=np.uint16)[::-1]], [np.arange(4, dtype=np.uint16), np.arange(4, 9, dtype=np.uint16)]
    assert len({fingerprint(each) for each in arrays}) == len(arrays)
    assert fingerprint(arrays[0]) == fingerprint([np.arange(9, dtype=np.uint16)])
