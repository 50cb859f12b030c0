"""Text to train on, split without leakage. Floor 5."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

SHORTEST_FILE = 1000  # characters: each tenth of a stretch is then ten or more


@dataclass(frozen=True)
class Split:
    """Documents to train on and documents to validate on, which share no paragraph where repeats were dropped."""

    train: list[str]
    validation: list[str]


def load_text(path: str | Path | None = None, *, drop_repeats: bool = False) -> Split:
    """The documents of a text, split into training and validation.

    Without `path`: the documentation inside every Python (`pydoc_data.topics`), a document a topic; every
    sixth topic is for validation. With `path`: a UTF-8 file, cut into ten stretches, the last tenth of each
    for validation; the cuts are at the ends of paragraphs, or of lines or words where paragraphs are long.
    Of a paragraph (text between blank lines) that occurs several times only the first is kept, in a file only
    with `drop_repeats`: otherwise a model can score on validation text by remembering.

    Raises FileNotFoundError for a missing file, and ValueError for one that is empty, is no UTF-8 text, or is
    too short to split.
    """
    if path is None:
        from pydoc_data.topics import topics

        documents = _without_repeats(topics[name] for name in sorted(topics))
        return Split([d for i, d in enumerate(documents) if i % 6], documents[::6])
    text = _read(Path(path))
    if drop_repeats:
        [text] = _without_repeats([text])
    if len(text) < SHORTEST_FILE:
        found = f"{len(text)} characters{' without repeated paragraphs' * drop_repeats}"
        raise ValueError(f"load_text: {path}: found {found}, expected at least {SHORTEST_FILE}: give a longer text")
    pieces = _stretches(text)
    return Split([p for p in pieces[0::2] if p], [p for p in pieces[1::2] if p])


def _read(path: Path) -> str:
    if not path.is_file():
        wrong = "is a folder: give a text file" if path.is_dir() else "no such file: check the path"
        raise FileNotFoundError(f"load_text: {path}: {wrong}")
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
