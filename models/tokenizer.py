"""Tokenizers: from text to token ids and back, as tiktoken encodings built from local files. Floor 5."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
STARTS = (END_OF_TEXT, "<|begin_of_text|>")  # which precede each document, by tokenizer
ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")  # what a model ends a text with
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_MERGES = 50_000
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
LLAMA3_RANKS = 128_000
LLAMA3_SPECIAL = (
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id "
    "start_header_id end_header_id eom_id eot_id python_tag"
).split()
LLAMA3_SPECIALS = 256
DOWNLOAD_SECONDS = 30


def load_tokenizer(name: str = "bytes", vocab: str | Path | None = None) -> tiktoken.Encoding:
    """The tokenizer of that name.

    "bytes": the 256 single bytes, then end of text; needs no file. "gpt2": GPT-2's 50,257 tokens, from the
    file `vocab` (GPT-2's `vocab.bpe`, which Hugging Face calls `merges.txt`), or else from tiktoken's cache,
    which tiktoken fills from the network the first time. "llama3": Llama 3's 128,256 tokens, from Meta's
    `tokenizer.model`.

    Raises ValueError for an unknown name or a wrong file, FileNotFoundError where there is no vocabulary, and
    ModuleNotFoundError without tiktoken.
    """
    if name not in TOKENIZERS:
        raise ValueError(f"load_tokenizer: unknown tokenizer {name!r}: choose from {', '.join(TOKENIZERS)}")
    try:
        import tiktoken  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("load_tokenizer: tiktoken is missing: pip install tiktoken") from error
    return TOKENIZERS[name](vocab)


def _bytes_tokenizer(vocab: str | Path | None) -> tiktoken.Encoding:
    import tiktoken

    if vocab is not None:
        raise ValueError(f"load_tokenizer: the bytes tokenizer got the vocabulary {vocab}, expected none: "
                         "leave it out, or choose the tokenizer that it belongs to")
    return tiktoken.Encoding(
        "bytes", pat_str=r"(?s:.)", mergeable_ranks={bytes([b]): b for b in range(256)},
        special_tokens={END_OF_TEXT: 256})


def _gpt2_tokenizer(vocab: str | Path | None) -> tiktoken.Encoding:
    import tiktoken

    if vocab is None:
        return _from_tiktoken("gpt2")
    ranks = _gpt2_ranks(Path(vocab))
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


def _llama3_tokenizer(vocab: str | Path | None) -> tiktoken.Encoding:
    import tiktoken

    if vocab is None:
        raise FileNotFoundError("load_tokenizer: llama3 needs the path of Meta's tokenizer.model, none came")
    ranks = _llama3_ranks(Path(vocab))
    special = [f"<|{name}|>" for name in LLAMA3_SPECIAL]
    special += [f"<|reserved_special_token_{2 + i}|>" for i in range(LLAMA3_SPECIALS - len(special))]
    return tiktoken.Encoding(
        "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks,
        special_tokens={name: len(ranks) + i for i, name in enumerate(special)})


TOKENIZERS: dict[str, Callable[[str | Path | None], tiktoken.Encoding]] = {
    "bytes": _bytes_tokenizer,
    "gpt2": _gpt2_tokenizer,
    "llama3": _llama3_tokenizer,
}


def tokenizer_of_file(path: str | Path) -> str:
    """The name of the tokenizer whose vocabulary a file holds: Llama 3's lines are a token in base64 and its rank."""
    if not Path(path).is_file():
        wrong = "is a folder" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"load_tokenizer: {path}: {wrong}: give one of {', '.join(TOKENIZERS)}, or the "
                                "path of GPT-2's vocab.bpe or Llama 3's tokenizer.model")
    with open(path, "rb") as file:
        words = file.readline(200).split()
    return "llama3" if len(words) == 2 and words[1].isdigit() else "gpt2"


def _from_tiktoken(name: str) -> tiktoken.Encoding:
    """tiktoken's own encoding; its download knows no time limit, so it runs in a thread that can be left."""
    import tiktoken

    results: list[tiktoken.Encoding | Exception] = []

    def load() -> None:
        try:
            results.append(tiktoken.get_encoding(name))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    result = results[0] if results else TimeoutError(f"no answer within {DOWNLOAD_SECONDS} s")
    if isinstance(result, Exception):
        raise FileNotFoundError(
            f"load_tokenizer: {name} is not in tiktoken's cache and could not be downloaded "
            f"({type(result).__name__}): give GPT-2's vocab.bpe (Hugging Face's merges.txt) as the "
            "vocabulary, or run once with a network, or choose the tokenizer 'bytes'") from result
    return result


def _gpt2_ranks(path: Path) -> dict[bytes, int]:
    """Token ids of a `vocab.bpe`: the 256 bytes, then what each merge makes, in the order of the file.

    The file writes a byte as one printable character: itself where it is printable and no space in Latin-1,
    else one from U+0100 on. The same order gives the ids of the bytes. Source: GPT-2's `encoder.py`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"load_tokenizer: {path}: no such file: give the path of GPT-2's vocab.bpe")
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    byte_of = {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokens = [bytes([byte]) for byte in byte_of.values()]
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("#version"):
            continue
        try:
            left, right = line.split(" ")
            tokens.append(bytes(byte_of[character] for character in left + right))
        except (ValueError, KeyError) as error:
            raise ValueError(f"load_tokenizer: {path}: line {number} is not a merge of two tokens: give "
                             "GPT-2's vocab.bpe, not its encoder.json") from error
    if len(tokens) != 256 + GPT2_MERGES:
        raise ValueError(f"load_tokenizer: {path}: found {len(tokens) - 256} merges, expected GPT-2's "
                         f"{GPT2_MERGES}: give GPT-2's vocab.bpe, or copy it again")
    return {token: rank for rank, token in enumerate(tokens)}


def _llama3_ranks(path: Path) -> dict[bytes, int]:
    """Token ids of a `tokenizer.model`: a line a token, its bytes in base64 and its rank."""
    if not path.is_file():
        raise FileNotFoundError(f"load_tokenizer: {path}: no such file: give the path of Llama 3's tokenizer.model")
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"load_tokenizer: {path}: line {number} is not a token in base64 and its rank: give "
                             "Meta's tokenizer.model of Llama 3, not Llama 2's or Hugging Face's") from error
    if sorted(ranks.values()) != list(range(LLAMA3_RANKS)):
        raise ValueError(f"load_tokenizer: {path}: found {len(ranks)} tokens, expected Llama 3's {LLAMA3_RANKS}: "
                         "give its tokenizer.model, or copy it again")
    return ranks


def start_token(tokenizer: tiktoken.Encoding) -> int:
    """The token that precedes each document."""
    return next(tokenizer.encode_single_token(name) for name in STARTS if name in tokenizer.special_tokens_set)


def end_tokens(tokenizer: tiktoken.Encoding) -> set[int]:
    """The tokens with which a text ends."""
    return {tokenizer.encode_single_token(name) for name in ENDS if name in tokenizer.special_tokens_set}


def encode_prompt(tokenizer: tiktoken.Encoding, prompt: str) -> list[int]:
    """Token ids of a prompt, as `encode` for a document; but GPT-2's start token, which parts texts, is a prompt alone.

    A prompt may begin in the middle of a text: GPT-2 then expects no start token, Llama 3 always does.
    """
    start, tokens = start_token(tokenizer), tokenizer.encode(prompt, disallowed_special=())
    return tokens if tokens and start in end_tokens(tokenizer) else [start, *tokens]


def encode(tokenizer: tiktoken.Encoding, documents: Sequence[str]) -> np.ndarray:
    """Token ids of all documents, the start token before each: uint16 (tokens,), uint32 for a large vocabulary.

    `<|endoftext|>` written inside a document is encoded as the text that it is.
    """
    dtype = np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32
    start = np.array([start_token(tokenizer)], dtype)
    parts = [start[:0]]
    for document in documents:
        parts += [start, tokenizer.encode_to_numpy(document, disallowed_special=()).astype(dtype)]
    return np.concatenate(parts)
