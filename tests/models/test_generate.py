"""Text from a model: what is drawn, how it becomes characters, and where the model comes from."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from models import generate
from models.cache import KVCache
from models.command import main
from models.generate import draw, new_tokens, pieces
from models.gpt2 import GPT2, Config
from models.hugging_face import GPT2Format
from models.options import GenerateOptions
from models.tokenizer import encode_prompt, load_tokenizer
from tinyarr import saving

BYTES = load_tokenizer("bytes")
MICRO = Config(vocab_size=257, block_size=8, n_layer=1, n_head=2, n_embd=16)

logits = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20).map(lambda x: np.array(x, np.float32))


class Micro(GPT2):
    sizes = {"tiny": MICRO}


class Counter:
    """A model that always predicts the token after the last one, and remembers what it was shown."""

    config = SimpleNamespace(block_size=4)

    def __init__(self):
        self.seen = []

    def new_cache(self, B, capacity):
        return KVCache(0, (B, 1, capacity, 1), dtype=tinyarr.float32, device="cpu")

    def __call__(self, tokens, cache=None):
        self.seen.append(tokens.tolist()[0])
        if cache is not None:
            cache.advance(tokens.shape[1])
        return tinyarr.Tensor(np.eye(300)[tokens.numpy() + 1] * 100)


def drawn(values, count=2000, **options):
    """The share of each token among `count` draws."""
    random = np.random.Generator(np.random.Philox(0))
    settings = dict(temperature=1.0, top_k=0, top_p=1.0) | options
    tokens = [draw(np.log(values), random, **settings) for _ in range(count)]
    return np.bincount(tokens, minlength=len(values)) / count


def test_tokens_are_drawn_as_often_as_the_model_predicts():
    assert drawn([0.5, 0.1, 0.4]) == pytest.approx([0.5, 0.1, 0.4], abs=0.04)


def test_temperature_sharpens():
    assert drawn([0.5, 0.1, 0.4], temperature=0.5) == pytest.approx([25 / 42, 1 / 42, 16 / 42], abs=0.04)


def test_top_k_keeps_the_likeliest():
    assert drawn([0.5, 0.1, 0.4], top_k=2) == pytest.approx([5 / 9, 0, 4 / 9], abs=0.04)


@pytest.mark.parametrize(("top_p", "expected"), [(0.0, [1, 0, 0]), (0.4, [1, 0, 0]), (0.6, [5 / 9, 0, 4 / 9]),
                                                 (0.95, [0.5, 0.1, 0.4])])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, expected):
    assert drawn([0.5, 0.1, 0.4], top_p=top_p) == pytest.approx(expected, abs=0.04)


@given(logits, st.floats(0.01, 10), st.integers(0, 30), st.floats(0, 1), st.integers(0, 99))
def test_a_draw_is_a_token_among_the_likeliest(values, temperature, top_k, top_p, seed):
    token = draw(values, np.random.default_rng(seed), temperature, top_k, top_p)
    assert 0 <= token < len(values)
    assert (values > values[token]).sum() < (top_k or len(values))


@given(logits)
def test_temperature_0_takes_the_first_of_the_likeliest(values):
    assert draw(values, None, 0.0, 0, 1.0) == values.argmax()


@given(st.text())
def test_pieces_are_the_text_whatever_the_tokens(text):
    assert "".join(pieces(BYTES, BYTES.encode(text, disallowed_special=()))) == text


def test_a_character_comes_once_it_is_whole_and_stray_bytes_are_replaced():
    assert list(pieces(BYTES, b"a\xc3\xa9\xe2\x82")) == ["a", "", "é", "", "", "�"]


def test_the_text_ends_before_the_end_of_text_token():
    assert "".join(pieces(BYTES, [97, BYTES.eot_token, 98])) == "a"


def test_the_model_sees_new_tokens_only_and_no_more_than_its_longest_context():
    model = Counter()
    assert list(new_tokens(model, [1, 2], GenerateOptions(tokens=4, temperature=0))) == [3, 4, 5, 6]
    assert model.seen == [[1, 2], [3], [4], [2, 3, 4, 5]]


def test_tokens_are_a_function_of_the_seed():
    model = GPT2(MICRO, generator=tinyarr.Generator(0))
    first, again, other = (list(new_tokens(model, [1], GenerateOptions(tokens=20, seed=s))) for s in (1, 1, 2))
    assert first == again != other


def test_weights_with_hugging_face_s_names_are_read(tmp_path, capsys):
    model = GPT2(MICRO, generator=tinyarr.Generator(3))
    saving.save(tmp_path / "w.safetensors", GPT2Format.weights(model))
    options = ["--weights", str(tmp_path / "w.safetensors"), "--size", "tiny", "--tokenizer", "bytes"]
    main(Micro, ["generate", *options, "--prompt", "é€", "--tokens", "30", "--seed", "4"])
    prompt = [*"é€".encode()]
    expected = "é€" + "".join(pieces(BYTES, new_tokens(model, prompt, GenerateOptions(tokens=30, seed=4))))
    assert capsys.readouterr().out == expected + "\n"


def test_a_start_token_that_also_ends_texts_stands_before_no_prompt_but_for_an_empty_one(tmp_path):
    assert encode_prompt(BYTES, "It") == [73, 116] and encode_prompt(BYTES, "") == [256]
    llama = tiktoken.Encoding("llama3", pat_str=".", mergeable_ranks={bytes([b]): b for b in range(256)},
                              special_tokens={"<|begin_of_text|>": 256, "<|end_of_text|>": 257})
    assert encode_prompt(llama, "It") == [256, 73, 116] and encode_prompt(llama, "") == [256]


def test_ctrl_c_ends_the_line_and_says_so(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        yield 65
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "new_tokens", interrupted)
    saving.save(tmp_path / "w.safetensors", GPT2Format.weights(GPT2(MICRO)))
    options = ["--weights", str(tmp_path / "w.safetensors"), "--size", "tiny", "--tokenizer", "bytes"]
    with pytest.raises(SystemExit, match="130"):
        main(Micro, ["generate", *options])
    assert capsys.readouterr() == ("A\n", "python -m models.gpt2: interrupted\n")


@pytest.mark.parametrize("encoding", ["latin1", "ascii", "utf-8"])
def test_a_terminal_without_a_character_shows_a_question_mark(encoding, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(generate, "new_tokens", lambda *_: iter("’!".encode()))
    generate.write(None, BYTES, GenerateOptions(prompt="“It"))
    out.flush()
    assert out.buffer.getvalue() == "“It’!\n".encode(encoding, "replace")


@pytest.mark.parametrize(("change", "message"), [
    ({"--weights": "none.safetensors"}, "none.safetensors"),
    ({"--weights": "none", "--size": None}, "none: no such folder or file"),
    ({"--size": None}, "config.json: no such file: it says how large the model is"),
    ({"--weights": "text.txt"}, "text.txt is not a sound safetensors file"),
    ({"--tokenizer": "none.bpe"}, "--tokenizer none.bpe: load_tokenizer: none.bpe: no such file"),
    ({"--device": "tpu"}, "Device: 'tpu' is not a device"),
    ({"--device": "cuda:99"}, "cuda:99: "),
])
def test_wrong_files_and_devices_end_in_one_line(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no tensors in here")
    saving.save("w.safetensors", GPT2Format.weights(GPT2(MICRO)))
    given = {"--weights": "w.safetensors", "--size": "tiny", "--tokenizer": "bytes"} | change
    with pytest.raises(SystemExit, match="2"):
        main(Micro, ["generate", *(word for pair in given.items() if pair[1] for word in pair)])
    out, error = capsys.readouterr()
    assert out == "" and message in error and error.count("\n") == 1


def test_a_tokenizer_of_another_vocabulary_is_told_in_one_line(tmp_path, capsys):
    class Wider(GPT2):
        sizes = {"tiny": dataclasses.replace(MICRO, vocab_size=300)}

    saving.save(tmp_path / "w.safetensors", GPT2Format.weights(GPT2(Wider.sizes["tiny"])))
    options = ["--weights", str(tmp_path / "w.safetensors"), "--size", "tiny", "--tokenizer", "bytes"]
    with pytest.raises(SystemExit, match="2"):
        main(Wider, ["generate", *options])
    assert "the tokenizer bytes has 257 tokens, the model 300" in capsys.readouterr().err


def test_weights_of_another_size_are_told_in_one_line(tmp_path, capsys):
    other = GPT2(dataclasses.replace(MICRO, n_embd=8))
    saving.save(tmp_path / "w.safetensors", GPT2Format.weights(other))
    options = ["--weights", str(tmp_path / "w.safetensors"), "--size", "tiny", "--tokenizer", "bytes"]
    with pytest.raises(SystemExit, match="2"):
        main(Micro, ["generate", *options])
    assert "--weights" in (error := capsys.readouterr().err) and "does not fit" in error
