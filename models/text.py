"""Text to train on, split without leakage, and the tokenizers that turn it into token ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_MERGES = 50_000
DOWNLOAD_SECONDS = 30
SHORTEST_FILE = 1000  # characters: each tenth of a stretch is then ten or more


@dataclass(frozen=True)
class Split:
    """Documents to train on, and documents that share no paragraph with them to validate on."""

    train: list[str]
    validation: list[str]


def load_text(path: str | Path | None = None) -> Split:
    """The documents of a text, repeated paragraphs dropped, split into training and validation.

    Without `path`: the documentation inside every Python (`pydoc_data.topics`), a document a topic; every
    sixth topic is for validation. With `path`: a UTF-8 file, cut into ten stretches, the last tenth of each
    for validation; the cuts lie at the ends of paragraphs, or of lines or words where paragraphs are long. Of
    a paragraph (text between blank lines) that occurs several times only the first is kept: otherwise a model
    could score on validation text by remembering.

    Raises FileNotFoundError for a missing file, and ValueError for one that is empty, is no UTF-8 text, or is
    too short to split.
    """
    if path is None:
        from pydoc_data.topics import topics

        documents = _without_repeats(topics[name] for name in sorted(topics))
        return Split([d for i, d in enumerate(documents) if i % 6], documents[::6])
    [text] = _without_repeats([_read(Path(path))])
    if len(text) < SHORTEST_FILE:
        raise ValueError(f"load_text: {path}: found {len(text)} characters, repeated paragraphs dropped, "
                         f"expected at least {SHORTEST_FILE}: give a longer text")
    pieces = _stretches(text)
    return Split([p for p in pieces[0::2] if p], [p for p in pieces[1::2] if p])


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"load_text: {path}: no such file: check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"load_text: {path}: byte {error.object[error.start]:#04x} at position "
                         f"{error.start} is not UTF-8 text: convert the file, for example with iconv -t UTF-8"
                         ) from error
    if "\0" in text:
        raise ValueError(f"load_text: {path}: found a zero byte, so it is a binary file: give a text file")
    if not text.strip():
        raise ValueError(f"load_text: {path}: the file holds no text: give a text file")
    return text


def _without_repeats(documents: Iterable[str]) -> list[str]:
    """The documents, less each paragraph seen before in any of them; empty ones are dropped."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        new = []
        for paragraph in document.split("\n\n"):
            if paragraph not in seen:
                seen.add(paragraph)
                new.append(paragraph)
        kept.append("\n\n".join(new))
    return [document for document in kept if document.strip()]


def _stretches(text: str) -> list[str]:
    """The text in twenty pieces, by turns nine tenths and one tenth of one of ten equal stretches."""
    hundredths = [10 * stretch + part for stretch in range(10) for part in (9, 10)]
    ends = [_boundary(text, len(text) * hundredth // 100) for hundredth in hundredths]
    return [text[start:end] for start, end in pairwise([0, *ends])]


def _boundary(text: str, position: int) -> int:
    """The end of the paragraph, else line, else word at `position`, at most a hundredth of the text on."""
    for mark in ("\n\n", "\n", " "):
        found = text.find(mark, position, position + len(text) // 100)
        if found >= 0:
            return found + len(mark)
    return position


def load_tokenizer(name: str = "bytes", vocab: str | Path | None = None) -> tiktoken.Encoding:
    """The tokenizer of that name, with `<|endoftext|>` as its last token (`eot_token`).

    "bytes": the 256 single bytes, then end of text; needs no file. "gpt2": GPT-2's 50,257 tokens, from the
    file `vocab` (GPT-2's `vocab.bpe`, which Hugging Face calls `merges.txt`), or else from tiktoken's cache,
    which tiktoken fills from the network the first time.

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
    ranks = _ranks(Path(vocab))
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


TOKENIZERS: dict[str, Callable[[str | Path | None], tiktoken.Encoding]] = {
    "bytes": _bytes_tokenizer,
    "gpt2": _gpt2_tokenizer,
}


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


def _ranks(path: Path) -> dict[bytes, int]:
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


def encode(tokenizer: tiktoken.Encoding, documents: Sequence[str]) -> np.ndarray:
    """Token ids of all documents, end of text before each: uint16 (tokens,), uint32 for a large vocabulary.

    `<|endoftext|>` written inside a document is encoded as the text that it is.
    """
    dtype = np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32
    end_of_text = np.array([tokenizer.eot_token], dtype)
    parts = [end_of_text[:0]]
    for document in documents:
        parts += [end_of_text, tokenizer.encode_to_numpy(document, disallowed_special=()).astype(dtype)]
    return np.concatenate(parts)
