"""Tokenizers: tokens decode to the text, documents begin and end where they should, wrong files are named."""

import base64
import itertools
import json
import sys
import threading

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from models import tokenizer
from models.tokenizer import encode, end_tokens, load_tokenizer, start_token, tokenizer_of_file

BYTES = load_tokenizer("bytes")


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
    monkeypatch.setattr(tokenizer, "DOWNLOAD_SECONDS", 0.05)
    with pytest.raises(FileNotFoundError, match="TimeoutError"):
        load_tokenizer("gpt2")
    release.set()


def test_gpt2_comes_from_tiktoken_where_it_has_it(gpt2, monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": gpt2}.__getitem__)
    assert load_tokenizer("gpt2") is gpt2


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory):
    """A file like Llama 3's: the 256 bytes, " the", "1234" and their parts, then pairs and triples of bytes."""
    tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the", b"12", b"123", b"1234", b"45"]
    more = (bytes(t) for n in (2, 3) for t in itertools.product(range(128, 256), repeat=n))
    tokens += itertools.islice(more, 128_000 - len(tokens))
    path = tmp_path_factory.mktemp("vocab") / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % rank for rank, t in enumerate(tokens)))
    return path


@pytest.fixture(scope="module")
def llama3(tokenizer_model):
    return load_tokenizer("llama3", tokenizer_model)


def test_llama3_has_its_size_and_its_special_tokens_at_the_end(llama3):
    assert llama3.n_vocab == 128_256
    ids = {name: llama3.encode_single_token(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "eot_id")}
    assert ids == {"begin_of_text": 128_000, "end_of_text": 128_001, "eot_id": 128_009}
    assert llama3.encode_single_token("<|reserved_special_token_246|>") == 128_255
    assert llama3.encode_ordinary(" the the") == [258, 258]


def test_llama3_keeps_at_most_three_digits_together(llama3):
    assert [llama3.decode([token]) for token in llama3.encode_ordinary("12345")] == ["123", "45"]


@given(st.text())
def test_llama3_decodes_what_it_encodes(llama3, content):
    assert llama3.decode(llama3.encode(content, disallowed_special=())) == content


def test_each_tokenizer_knows_what_begins_and_ends_a_text(llama3):
    assert (start_token(llama3), end_tokens(llama3)) == (128_000, {128_001, 128_008, 128_009})
    assert (start_token(BYTES), end_tokens(BYTES)) == (256, {256})
    assert encode(llama3, ["a"]).tolist() == [128_000, 97]


def test_the_tokenizer_of_a_vocabulary_file_is_known_by_its_contents(merges, tokenizer_model):
    assert (tokenizer_of_file(merges), tokenizer_of_file(tokenizer_model)) == ("gpt2", "llama3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nIg== 1\n", "found 2 tokens, expected Llama 3's 128000"),
        (b"IQ== 0\nno base64! 1\n", "line 2 is not a token in base64"),
        (b"\x0a\x0e\x0a\x05<unk>", "line 1 is not a token in base64"),
    ],
)
def test_a_file_that_is_not_llama3s_vocabulary_is_reported(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=f"load_tokenizer: .*tokenizer.model: {message}"):
        load_tokenizer("llama3", tmp_path / "tokenizer.model")
    with pytest.raises(FileNotFoundError, match=r"none\.model: no such file"):
        load_tokenizer("llama3", tmp_path / "none.model")
    with pytest.raises(FileNotFoundError, match="llama3 needs the path"):
        load_tokenizer("llama3")


def test_an_unknown_tokenizer_and_a_vocabulary_for_bytes_are_refused(merges):
    with pytest.raises(ValueError, match=r"unknown tokenizer 'gpt5': choose from bytes, gpt2, llama3"):
        load_tokenizer("gpt5")
    with pytest.raises(ValueError, match=r"bytes tokenizer got the vocabulary .*vocab\.bpe"):
        load_tokenizer("bytes", merges)


def test_without_tiktoken_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tiktoken"):
        load_tokenizer("bytes")


def test_each_document_is_encoded_after_a_start_token():
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
