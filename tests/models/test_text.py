"""Text to train on: nothing leaks between splits, wrong files are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text import _stretches, load_text

words = st.text("abcde \n", min_size=400, max_size=2000)


def paragraphs(documents: list[str]) -> list[str]:
    return [paragraph for document in documents for paragraph in document.split("\n\n") if paragraph.strip()]


def test_the_default_text_is_large_and_about_a_fifth_of_it_is_for_validation():
    split = load_text()
    train, validation = (sum(map(len, documents)) for documents in (split.train, split.validation))
    assert train + validation > 300_000
    assert 0.1 < validation / (train + validation) < 0.3
    assert split == load_text()


def test_no_paragraph_of_the_default_text_occurs_twice():
    split = load_text()
    everything = paragraphs(split.train + split.validation)
    assert len(everything) == len(set(everything))


def test_a_file_keeps_its_repeats(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(["one paragraph", "another"] * 500))
    split = load_text(tmp_path / "a.txt")
    assert len(paragraphs(split.train + split.validation)) == 1000


def test_a_file_without_repeats_is_split_at_ends_of_paragraphs_without_leak_or_loss(tmp_path):
    written = [f"Paragraph {n}\nhas two lines." for n in range(1000)]
    (tmp_path / "a.txt").write_text("\n\n".join(written + written[:500]))
    split = load_text(tmp_path / "a.txt", drop_repeats=True)
    assert set(paragraphs(split.train)).isdisjoint(paragraphs(split.validation))
    assert sorted(paragraphs(split.train + split.validation)) == sorted(written)
    assert len(split.train) == len(split.validation) == 10
    assert 80 <= len(paragraphs(split.validation)) <= 120
    assert split == load_text(str(tmp_path / "a.txt"), drop_repeats=True)


@pytest.mark.parametrize(("separator", "unit"), [("\n", "one line"), (" ", "word")])
def test_long_paragraphs_are_cut_between_lines_or_words(tmp_path, separator, unit):
    (tmp_path / "a.txt").write_text(separator.join([unit] * 1000))
    split = load_text(tmp_path / "a.txt")
    for document in split.train + split.validation:
        assert set(document.strip().split(separator)) == {unit}


@given(words.filter(str.strip))
def test_pieces_of_a_file_alternate_and_together_are_its_text(content):
    pieces = _stretches(content)
    assert len(pieces) == 20 and "".join(pieces) == content


def test_windows_line_ends_and_a_byte_order_mark_do_not_reach_the_model(tmp_path):
    written = "\n\n".join(f"paragraph {n}" for n in range(200))
    (tmp_path / "unix.txt").write_bytes(written.encode())
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + written.replace("\n", "\r\n").encode())
    assert load_text(tmp_path / "unix.txt") == load_text(tmp_path / "windows.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b" \n\n\t", "holds no text"),
        (b"abc\xff" * 100, "byte 0xff at position 3 is not UTF-8 text: convert"),
        (b"\x7fELF\0\0" * 100, "zero byte, so it is a binary file"),
        (b"abc", "found 3 characters .*expected at least 1000"),
        (b"the same paragraph\n\n" * 1000, "found 20 characters without repeated paragraphs, expected at least 1000"),
    ],
)
def test_a_file_that_is_no_text_to_train_on_is_reported_by_name(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"load_text: .*a.txt: .*{message}"):
        load_text(tmp_path / "a.txt", drop_repeats=True)


def test_a_missing_file_or_a_folder_is_reported_by_name(tmp_path):
    for path, problem in [(tmp_path, "is a folder"), (tmp_path / "none.txt", "no such file")]:
        with pytest.raises(FileNotFoundError, match=f"load_text: {path}: {problem}"):
            load_text(path)
