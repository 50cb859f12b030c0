"""Options: two tables of all that a run or a text depends on, with default, group and meaning; and Stop. Floor 5."""

from __future__ import annotations

import errno
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class Stop(Exception):
    """Ends the program with one line and an exit status, 2 for a mistake in the command or in a file it names."""

    def __init__(self, message: object, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def option(default: Any, group: str, meaning: str, *, least: float = 0, most: float = math.inf,
           choices: Sequence[str] | None = None) -> Any:
    """A field of a table below: its default, the group and the words of --help, and what values it takes."""
    return field(default=default, metadata=dict(group=group, meaning=meaning, least=least, most=most, choices=choices))


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run. The defaults train a small GPT on a laptop in a few minutes.

    Raises Stop where options contradict each other.
    """

    size: str = option("tiny", "model", "which configuration of the model")
    dtype: str = option("float32", "model", "of the weights and of the computation", choices=("float32", "bfloat16"))
    device: str = option("cpu", "model", "where to train: cpu, cuda, cuda:1 and so on")

    text: str | None = option(None, "data", "a text file to learn; else the documentation inside Python")
    drop_repeats: bool = option(False, "data", "leave out paragraphs of --text that it had before, so that none can be "
                                "remembered in a validation")
    data: str | None = option(None, "data", "token shards in llm.c's format, as 'shards*.bin'; files with 'val' in "
                              "their name are for validation, else the last tenth of the last shard is")
    tokenizer: str | None = option(None, "data", "bytes, gpt2, or the path of GPT-2's vocab.bpe or Llama 3's "
                                   "tokenizer.model; else bytes, but with --data the vocabulary of --size and no "
                                   "sample of text")
    seq_len: int = option(64, "data", "tokens in a sequence, and the longest context of the model", least=1)
    batch_size: int = option(12, "data", "sequences in a batch, which several ranks share out evenly", least=1)

    steps: int = option(1800, "optimization", "updates of the weights", least=1)
    accumulate: int = option(1, "optimization", "batches whose gradients make one update", least=1)
    lr: float = option(4e-3, "optimization", "highest learning rate")
    schedule: str = option("cosine", "optimization", "how the learning rate falls after --warmup: not at all, to a "
                           "tenth along a line or a cosine, or (wsd) to 0 in the last fifth",
                           choices=("constant", "linear", "cosine", "wsd"))
    warmup: int | None = option(None, "optimization", "updates over which the learning rate rises from 0; else a "
                                "twentieth of --steps")
    weight_decay: float = option(0.1, "optimization", "AdamW's, of matrices only")
    clip: float = option(1.0, "optimization", "largest norm of the gradient, 0 for any")
    seed: int = option(0, "optimization", "of the first weights and of the order of the data", most=2**63 - 1)

    compile: bool = option(True, "run", "run a step as compiled programs (in C, on a GPU as CUDA graphs), or each "
                           "operation as it comes")
    zero: int = option(0, "run", "what several ranks share out instead of each keeping it: 0 nothing, 1 the "
                       "optimizer's state, 2 the gradients too", most=2)
    eval_every: int = option(400, "run", "updates between validations; each also saves a checkpoint", least=1)
    # The default is enough for a standard error below 0.01 nats.
    eval_tokens: int = option(2**17, "run", "tokens of the validation text after which a validation ends", least=1)
    out: str | None = option(None, "run", "a new folder for the run; else the next free number under runs/")
    resume: str | None = option(None, "run", "the folder of a run to go on with; all other options are the run's own")

    def __post_init__(self) -> None:
        if self.text is not None and self.data is not None:
            raise Stop("--text and --data exclude each other: give one")
        if self.drop_repeats and self.text is None:
            raise Stop("--drop-repeats belongs to --text: give one, or leave it out")
        if self.out is not None and self.resume is not None:
            raise Stop("--out and --resume exclude each other: a resumed run stays in its folder")
        if self.warmup is not None and self.warmup >= self.steps:
            raise Stop(f"--warmup {self.warmup} must be less than --steps {self.steps}: give a smaller one")


@dataclass(frozen=True)
class GenerateOptions:
    """Options of a generated text. Raises Stop where options contradict each other."""

    run: str | None = option(None, "model", "the folder of a run; else the model's newest under runs/")
    weights: str | None = option(None, "model", "a folder in Hugging Face's format, or a safetensors file of one, "
                                 "instead of --run")
    size: str | None = option(None, "model", "which configuration --weights has; else its config.json says it")
    dtype: str = option("float32", "model", "to which --weights are converted", choices=("float32", "bfloat16"))
    tokenizer: str | None = option(None, "model", "bytes, gpt2, or the path of GPT-2's vocab.bpe or Llama 3's "
                                   "tokenizer.model; else the run's own")
    device: str = option("cpu", "model", "where to compute: cpu, cuda, cuda:1 and so on")

    prompt: str = option("", "text", "how the text begins")
    tokens: int = option(400, "text", "how many tokens to add, fewer where the text ends by itself", least=1)
    temperature: float = option(0.8, "text", "0 always takes the likeliest token, 1 draws as the model predicts")
    top_k: int = option(0, "text", "draw among this many likeliest tokens only, 0 for all")
    top_p: float = option(1.0, "text", "draw among the fewest tokens that have this probability together", most=1)
    seed: int = option(0, "text", "of the draws", most=2**63 - 1)

    def __post_init__(self) -> None:
        if self.run is not None and self.weights is not None:
            raise Stop("--run and --weights exclude each other: give one")
        if self.weights is not None and self.tokenizer is None:
            raise Stop("--weights also needs --tokenizer: the files don't name it")
        if self.weights is None and self.size is not None:
            raise Stop("--size belongs to --weights: a run knows its own")


def allow_any_text() -> None:
    """Has stdout write ? for a character that its encoding lacks, where it would raise UnicodeEncodeError."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def in_words(error: Exception) -> str:
    """Returns an error's message; of the system's the file, the reason, and what to do where that is a full disk."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    advice = ": make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror}{advice}"
