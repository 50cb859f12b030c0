"""Text from a model, token by token. Floor 5."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tinyarr
from tinyarr import nn

from . import hugging_face
from .corpus import open_tokenizer
from .options import GenerateOptions, Stop, TrainOptions, allow_any_text
from .run import Run, newest
from .tokenizer import encode_prompt, end_tokens

if TYPE_CHECKING:
    import tiktoken


def generate(model_class: type, options: GenerateOptions) -> None:
    """Prints what a trained model writes after `options.prompt`, and on stderr which run it is from.

    Raises Stop for a file that is missing or wrong.
    """
    tinyarr.memory_stats(tinyarr.Device(options.device))  # a missing device is named before any work
    if options.weights is None:
        run = newest(model_class.name) if options.run is None else Run.open(options.run)
        model, tokenizer = from_run(model_class, run, options)
        print(f"{run.folder}: {model.name} {run.config['options']['size']}", file=sys.stderr)
    else:
        model, tokenizer = from_weights(model_class, options)
    if tokenizer.n_vocab != model.config.vocab_size:
        raise Stop(f"the tokenizer {tokenizer.name} has {tokenizer.n_vocab} tokens, the model "
                   f"{model.config.vocab_size}: give the --tokenizer that the model was trained with")
    write(model, tokenizer, options)


def write(model: Any, tokenizer: tiktoken.Encoding, options: GenerateOptions) -> None:
    """Prints the prompt and what the model writes after it, as it comes; without a prompt, a text of its own."""
    allow_any_text()
    prompt = encode_prompt(tokenizer, options.prompt)
    print(options.prompt, end="", flush=True)
    try:
        for piece in pieces(tokenizer, new_tokens(model, prompt, options)):
            print(piece, end="", flush=True)
    finally:  # what Ctrl-C has to say goes on a line of its own
        print()


def pieces(tokenizer: tiktoken.Encoding, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens, piece by piece, up to one that ends a text.

    A character whose bytes are spread over tokens comes once it is whole. Bytes that are no UTF-8 become U+FFFD.
    """
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    ends = end_tokens(tokenizer)
    for token in tokens:
        if token in ends:
            break
        yield characters.decode(tokenizer.decode_single_token_bytes(token))
    yield characters.decode(b"", final=True)


def new_tokens(model: Any, prompt: Sequence[int], options: GenerateOptions) -> Iterator[int]:
    """The tokens that the model draws after `prompt`, a function of the seed; it sees at most block_size of them."""
    random = np.random.Generator(np.random.Philox(options.seed))
    tokens, longest = list(prompt), model.config.block_size
    cache = model.new_cache(1, min(longest, len(tokens) + options.tokens))
    for _ in range(options.tokens):
        with tinyarr.no_grad():
            if len(tokens) <= longest:
                unread = tinyarr.Tensor([tokens[cache.length :]], device=options.device)
                logits = model(unread, cache)  # (1, T, V)
            else:  # every token moves to another position, so nothing that the cache holds serves any more
                logits = model(tinyarr.Tensor([tokens[-longest:]], device=options.device))
            last = logits[0, -1].astype(tinyarr.float32).numpy()
        tokens.append(draw(last, random, options.temperature, options.top_k, options.top_p))
        yield tokens[-1]


def draw(logits: np.ndarray, random: np.random.Generator, temperature: float, top_k: int, top_p: float) -> int:
    """One token: of the `top_k` likeliest (0: all), the fewest whose probability reaches `top_p`. logits: (V,).

    The probabilities are softmax(logits / temperature); temperature 0 takes the likeliest token.
    Source of top_p: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration.
    """
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    if temperature == 0:
        return int(order[0])
    scaled = logits[order].astype(np.float64)
    p = np.exp((scaled - scaled[0]) / temperature)
    p /= p.sum()
    kept = p[: np.searchsorted(p.cumsum(), top_p) + 1]
    return int(random.choice(order[: len(kept)], p=kept / kept.sum()))


def from_run(model_class: type, run: Run, options: GenerateOptions) -> tuple[Any, tiktoken.Encoding]:
    """The model that a run has trained so far, and its tokenizer. Raises Stop where they can't be had."""
    if run.config["model"] != model_class.name:
        raise Stop(f"{run.folder} holds a {run.config['model']}, not a {model_class.name}")
    saved = TrainOptions(**run.config["options"])
    name = options.tokenizer or saved.tokenizer
    if name is None and saved.data is not None:
        raise Stop(f"{run.folder} learned token shards: say with --tokenizer which tokenizer made them")
    tokenizer = open_tokenizer(name or "bytes")
    config = replace(model_class.sizes[saved.size], vocab_size=run.config["config"]["vocab_size"],
                     block_size=saved.seq_len)
    model = model_class(config, dtype=getattr(tinyarr, saved.dtype), device=options.device)
    run.load(model)
    return model.eval(), tokenizer


def from_weights(model_class: type, options: GenerateOptions) -> tuple[Any, tiktoken.Encoding]:
    """The model in a folder or file in Hugging Face's format, and the tokenizer that the options name."""
    path = Path(options.weights)
    try:
        size = model_class.sizes[options.size] if options.size else hugging_face.read_config(model_class, path)
        with nn.init.skipped():
            model = model_class(size, dtype=getattr(tinyarr, options.dtype), device=options.device)
        hugging_face.load(path, model)
    except (ValueError, OSError) as error:
        raise Stop(f"--weights {options.weights}: {error}") from error
    return model.eval(), open_tokenizer(options.tokenizer)
