"""Text and tokenizers: nothing leaks between splits, tokens decode to the text, wrong files are named."""

import json
import sys
import threading

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from models import text
from models.text import encode, load_text, load_tokenizer

BYTES = load_tokenizer("bytes")
words = st.text("abcde \n", min_size=400, max_size=2000)


def paragraphs(documents: list[str]) -> list[str]:
    return [paragraph for document in documents for paragraph in document.split("\n\n") if paragraph.strip()]


def characters_of_bytes() -> list[str]:
    """How GPT-2's files write the bytes 0 to 255, as tiktoken's own reader defines it."""
    shown, spare = [], iter(range(256, 512))
    for byte in range(256):
        shown.append(chr(byte) if chr(byte).isprintable() and chr(byte) != " " else chr(next(spare)))
    return shown


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """A file of 50,000 merges: some that make " the", the rest pairs of bytes."""
    shown = characters_of_bytes()
    lines = ["t h", "th e", f"{shown[ord(' ')]} the", f"{shown[0xC3]} {shown[0xA9]}"]
    lines += [pair for a in shown for b in shown if (pair := f"{a} {b}") not in lines][: 50_000 - len(lines)]
    path = tmp_path_factory.mktemp("vocab") / "vocab.bpe"
    path.write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    return path


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


def test_a_file_is_split_at_ends_of_paragraphs_without_leak_or_loss(tmp_path):
    written = [f"Paragraph {n}\nhas two lines." for n in range(1000)]
    (tmp_path / "a.txt").write_text("\n\n".join(written + written[:500]))
    split = load_text(tmp_path / "a.txt")
    assert set(paragraphs(split.train)).isdisjoint(paragraphs(split.validation))
    assert sorted(paragraphs(split.train + split.validation)) == sorted(written)
    assert len(split.train) == len(split.validation) == 10
    assert 80 <= len(paragraphs(split.validation)) <= 120
    assert split == load_text(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(("separator", "unit"), [("\n", "one line"), (" ", "word")])
def test_long_paragraphs_are_cut_between_lines_or_words(tmp_path, separator, unit):
    (tmp_path / "a.txt").write_text(separator.join([unit] * 1000))
    split = load_text(tmp_path / "a.txt")
    for document in split.train + split.validation:
        assert set(document.strip().split(separator)) == {unit}


@given(words.filter(str.strip))
def test_pieces_of_a_file_alternate_and_together_are_its_text(content):
    pieces = text._stretches(content)
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
        (b"abc", "found 3 characters, .*expected at least 1000"),
        (b"the same paragraph\n\n" * 1000, "found 20 characters, repeated paragraphs dropped"),
    ],
)
def test_a_file_that_is_no_text_to_train_on_is_reported_by_name(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"load_text: .*a.txt: .*{message}"):
        load_text(tmp_path / "a.txt")


def test_a_missing_file_or_a_folder_is_reported_by_name(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(FileNotFoundError, match=f"load_text: {path}: no such file"):
            load_text(path)


@given(st.text())
def test_the_bytes_tokenizer_gives_each_byte_its_value(content):
    assert BYTES.encode_ordinary(content) == list(content.encode())
    assert BYTES.decode(list(content.encode())) == content


def test_the_bytes_tokenizer_ends_with_end_of_text():
    assert (BYTES.n_vocab, BYTES.eot_token) == (257, 256)
    assert BYTES.decode([104, 105, 256]) == "hi<|endoftext|>"


@pytest.fixture(scope="module")
def gpt2(merges):
    return load_tokenizer("gpt2", merges)


def test_gpt2_from_a_file_has_its_size_its_byte_order_and_the_merges_of_the_file(gpt2):
    assert (gpt2.n_vocab, gpt2.eot_token) == (50257, 50256)
    assert [gpt2.encode_ordinary(character) for character in "!~"] == [[0], [93]]
    assert gpt2.decode_single_token_bytes(188) == b"\0"
    assert gpt2.decode_single_token_bytes(220) == b" "
    assert gpt2.encode_ordinary("the the é") == [257, 258, *gpt2.encode_ordinary(" "), 259]


@given(st.text())
def test_gpt2_from_a_file_decodes_what_it_encodes(gpt2, content):
    assert gpt2.decode(gpt2.encode_ordinary(content)) == content


def test_gpt2_from_a_file_agrees_with_tiktokens_own_reader(merges, gpt2, tmp_path, monkeypatch):
    ranks = gpt2._mergeable_ranks
    shown = characters_of_bytes()
    names = {"".join(shown[byte] for byte in token): rank for token, rank in ranks.items()}
    (tmp_path / "encoder.json").write_text(json.dumps(names))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert data_gym_to_mergeable_bpe_ranks(str(merges), str(tmp_path / "encoder.json")) == ranks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"!": 0, "the": 1}', "line 1 is not a merge"),
        ("#version: 0.2\nt h\nth e\n\n", "line 4 is not a merge"),
        ("", "found 0 merges"),
        ("#version: 0.2\nt h\nth e\n", "found 2 merges, expected GPT-2's 50000"),
        ("t \x01\n", "line 1 is not a merge"),
    ],
)
def test_a_file_that_is_not_gpt2s_vocabulary_is_reported(tmp_path, content, message):
    (tmp_path / "vocab.bpe").write_text(content)
    with pytest.raises(ValueError, match=f"load_tokenizer: .*vocab.bpe: {message}"):
        load_tokenizer("gpt2", tmp_path / "vocab.bpe")
    with pytest.raises(FileNotFoundError, match=r"none\.bpe: no such file"):
        load_tokenizer("gpt2", tmp_path / "none.bpe")


def test_gpt2_without_file_cache_or_network_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(FileNotFoundError, match=r"gpt2 .*\(ConnectionError\): give .*vocab.bpe .*'bytes'"):
        load_tokenizer("gpt2")


def test_gpt2_gives_up_on_a_network_that_never_answers(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: release.wait())
    monkeypatch.setattr(text, "DOWNLOAD_SECONDS", 0.05)
    with pytest.raises(FileNotFoundError, match="TimeoutError"):
        load_tokenizer("gpt2")
    release.set()


def test_gpt2_comes_from_tiktoken_where_it_has_it(gpt2, monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": gpt2}.__getitem__)
    assert load_tokenizer("gpt2") is gpt2


def test_an_unknown_tokenizer_and_a_vocabulary_for_bytes_are_refused(merges):
    with pytest.raises(ValueError, match=r"unknown tokenizer 'gpt5': choose from bytes, gpt2"):
        load_tokenizer("gpt5")
    with pytest.raises(ValueError, match=r"bytes tokenizer got the vocabulary .*vocab\.bpe"):
        load_tokenizer("bytes", merges)


def test_without_tiktoken_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tiktoken"):
        load_tokenizer("bytes")


def test_each_document_is_encoded_after_an_end_of_text():
    tokens = encode(BYTES, ["hi", "", "é"])
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [256, *b"hi", 256, 256, *"é".encode()]
    assert encode(BYTES, []).shape == (0,)


def test_end_of_text_written_inside_a_document_stays_text():
    tokens = encode(BYTES, ["a<|endoftext|>b"])
    assert tokens.tolist() == [256, *b"a<|endoftext|>b"]


def test_a_large_vocabulary_is_encoded_as_uint32():
    ranks = {bytes([b]): b for b in range(256)}
    end = {"<|endoftext|>": 128000}
    large = tiktoken.Encoding("large", pat_str="(?s:.)", mergeable_ranks=ranks, special_tokens=end)
    tokens = encode(large, ["a"])
    assert tokens.dtype == np.uint32 and tokens.tolist() == [128000, 97]
