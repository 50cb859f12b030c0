"""Data that a run trains on and is judged by: a text or token shards, opened and checked before any work. Floor 5."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyarr.data import Batches, read_shards

from .baseline import nats_per_byte
from .options import Stop, TrainOptions
from .text import load_text
from .tokenizer import TOKENIZERS, encode, load_tokenizer, tokenizer_of_file

if TYPE_CHECKING:
    import tiktoken


@dataclass
class Corpus:
    """Batches to train and to validate on, and what belongs to them."""

    training: Batches
    validation: Batches
    vocab_size: int
    tokenizer: tiktoken.Encoding | None
    baseline: float | None  # what byte 4-grams get, where tokens are bytes
    fingerprint: str

    @property
    def sizes(self) -> tuple[int, int]:
        """Returns the numbers of tokens to train and to validate on."""
        training, validation = (sum(a.size for a in batches.arrays) for batches in (self.training, self.validation))
        return training, validation


def open_corpus(options: TrainOptions, vocab_size: int) -> Corpus:
    """The data that the options name; `vocab_size` is for shards without a tokenizer. Raises Stop for wrong files."""
    tokenizer = baseline = None
    if options.tokenizer is not None or options.data is None:
        tokenizer = open_tokenizer(options.tokenizer or "bytes")
        vocab_size = tokenizer.n_vocab
    try:
        if options.data is not None:
            train, validation = split_shards(read_shards(options.data))
        else:
            text = load_text(options.text, drop_repeats=options.drop_repeats)
            train, validation = [encode(tokenizer, text.train)], [encode(tokenizer, text.validation)]
            if tokenizer.name == "bytes":
                # End of text, 256, becomes the byte 0, which no text holds: the table predicts what the model does.
                judged = validation[0][: options.eval_tokens]
                baseline = nats_per_byte(*(ids.astype(np.uint8).tobytes() for ids in (train[0], judged)))
        shape = dict(batch_size=options.batch_size, seq_len=options.seq_len, vocab_size=vocab_size)
        corpus = Corpus(Batches(train, **shape, seed=options.seed), Batches(validation, **shape), vocab_size,
                        tokenizer, baseline, fingerprint(train + validation))
        # Tokens of another vocabulary show here, before any work.
        corpus.training.batch(0), next(corpus.validation.walk())
    except (ValueError, OSError) as error:
        raise Stop(error) from error
    return corpus


def split_shards(shards: list[np.memmap]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Shards to train and to validate on: by name, or else the last tenth of the last shard validates."""
    validation = [shard for shard in shards if "val" in Path(shard.filename).name]
    if validation:
        return [shard for shard in shards if "val" not in Path(shard.filename).name], validation
    *whole, last = shards
    cut = last.size * 9 // 10
    return [*whole, last[:cut]], [last[cut:]]


def fingerprint(arrays: list[np.ndarray]) -> str:
    """A hash of the sizes and of the first million tokens of each array: it tells other data from the same."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.size} {array.dtype} ".encode() + array[: 2**20].tobytes())
    return digest.hexdigest()


def open_tokenizer(name: str) -> tiktoken.Encoding:
    """The tokenizer of that name, or the one whose vocabulary file has that path. Raises Stop where it can't."""
    try:
        return load_tokenizer(name) if name in TOKENIZERS else load_tokenizer(tokenizer_of_file(name), name)
    except (ValueError, OSError) as error:
        raise Stop(f"--tokenizer {name}: {error}") from error
