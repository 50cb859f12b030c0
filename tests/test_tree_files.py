"""Trees of tensors and plain values in a file: what was saved is loaded, and no file makes anything but a FileError."""

import contextlib
import json
import math

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tests.tiers import at_most
from tinyarr import durable, nn, optim, saving, tree_files
from tinyarr.dtypes import ALL
from tinyarr.errors import ArgumentError, FileError
from tinyarr.testing import tensors

texts = st.text(max_size=5) | st.sampled_from(["\ud800", "'"])
values = st.none() | st.booleans() | st.integers() | st.floats() | texts
leaves = values | tensors(st.sampled_from([(), (2,), (0, 3)]), st.sampled_from(ALL))
keys = st.text("ab.'_", max_size=3) | st.integers(0, 12) | st.just("__metadata__")
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A place for a file that examples overwrite."""
    return tmp_path_factory.mktemp("trees") / "x.safetensors"


def comparable(x):
    """What is equal for trees of one kind, bit for bit."""
    if isinstance(x, tinyarr.Tensor):
        return "tensor", x.dtype.name, x.shape, x.numpy().tobytes()
    if isinstance(x, list | tuple):
        return type(x).__name__, [comparable(item) for item in x]
    if isinstance(x, dict):
        return "dict", [(type(key), key, comparable(item)) for key, item in x.items()]
    return type(x), repr(x)


@at_most(100)
@given(trees)
def test_what_was_saved_is_loaded(file, tree):
    tinyarr.save(file, tree)
    assert comparable(tinyarr.load(file)) == comparable(tree)


def test_a_run_goes_on_where_it_was_saved(tmp_path):
    def made():
        generator = tinyarr.Generator(3)
        model = nn.Sequential(nn.Linear(4, 4, generator=generator), nn.Dropout(0.5))
        optimizer = optim.AdamW(model.parameters(), lr=0.1)
        scheduler = optim.Scheduler(optimizer, tinyarr.schedule.cosine(0.1, 10))
        average = optim.ExponentialMovingAverage(model.parameters())
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "average": average, "draws": generator}

    def trained(run, steps):
        with tinyarr.random.use_generator(run["draws"]):
            for _ in range(steps):
                run["model"](tinyarr.rand(2, 4)).sum().backward()
                for name in ("optimizer", "average", "scheduler"):
                    run[name].update() if name == "average" else run[name].step()
                run["optimizer"].zero_grad()
        return comparable({name: x.state_dict() for name, x in run.items()})

    run, resumed = made(), made()
    trained(run, 3)
    tinyarr.save(tmp_path / "x", {name: x.state_dict() for name, x in run.items()})
    for name, state in tinyarr.load(tmp_path / "x").items():
        resumed[name].load_state_dict(state)
    assert trained(run, 3) == trained(resumed, 3)


def test_other_programs_read_the_tensors_by_their_paths(tmp_path):
    x, y, z = (tinyarr.full((2,), i) for i in range(3))
    tinyarr.save(tmp_path / "x", {"model": {"weight": x, 3: [y]}, "model.weight": z})
    read = safetensors.numpy.load_file(tmp_path / "x")
    assert {name: a.tolist() for name, a in read.items()} == {
        "model.weight": [0, 0], "model.3.0": [1, 1], "model.weight'": [2, 2]
    }  # fmt: skip


def test_a_file_of_another_program_is_a_dict_of_tensors(tmp_path):
    safetensors.numpy.save_file({"a.b": np.arange(3)}, tmp_path / "x", {"made by": "another"})
    loaded = tinyarr.load(tmp_path / "x")
    assert list(loaded) == ["a.b"] and loaded["a.b"].tolist() == [0, 1, 2]
    assert tinyarr.load(tmp_path / "x", device="meta")["a.b"].device.kind == "meta"


def holding_itself():
    tree = []
    tree.append({"inner": tree})
    return tree


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": [0, np.ones(3)]}, TypeError, r"save: tree\['a'\]\[1\] is ndarray: it must consist of .* make a tensor"),
        ({"a": np.float64(1)}, TypeError, r"save: tree\['a'\] is float64"),
        ({"a": {1, 2}}, TypeError, r"save: tree\['a'\] is set"),
        (1j, TypeError, r"save: tree is complex"),
        ({"a": {1.5: 0}}, TypeError, r"save: tree\['a'\] has the key 1.5 \(float\): use a str or an int"),
        ({True: 0}, TypeError, r"save: tree has the key True \(bool\)"),
        (holding_itself(), ArgumentError, "save: tree is nested too deeply, or holds itself"),
        ([10**5000], ArgumentError, "save: tree can't be written: .*digits"),
        (["x" * 2**24], ArgumentError, "save: tree takes 16,777,220 characters without its tensors, and 16,777,216"),
    ],
    ids=lambda x: x[:40] if isinstance(x, str) else "",
)
def test_what_no_file_can_hold_is_an_error_and_leaves_the_older_file(tmp_path, tree, error, message):
    tinyarr.save(tmp_path / "x", [1])
    with pytest.raises(error, match=message):
        tinyarr.save(tmp_path / "x", tree)
    assert tinyarr.load(tmp_path / "x") == [1] and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_not_complete_leaves_the_older_one(tmp_path, monkeypatch):
    def full(path):
        raise OSError("no space left")

    tinyarr.save(tmp_path / "x", {"step": 1})
    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        tinyarr.save(tmp_path / "x", {"step": 2})
    assert tinyarr.load(tmp_path / "x") == {"step": 1}


UNSOUND = [
    "", "[", "NaN", "[Infinity]", '{"tensor": "b"}', '{"tensor": ["a"]}', '{"tensor": {"tensor": "a"}}', "{}",
    '{"tuple": "ab"}', '{"tuple": {"tensor": "a"}}', '{"float": "1"}', '{"float": []}', '{"dict": [1]}',
    '{"dict": [[[], 1]]}', '{"dict": [["a"]]}', '{"dict": [["a", 1], ["a", 2]]}', '{"dict": [[null, 1]]}',
    '{"dict": {"dict": []}}', '{"list": []}', '{"tuple": [], "dict": []}', "[" * 100_000, "1" * 5000, " " * (2**24 + 1),
]  # fmt: skip


@pytest.mark.parametrize("text", UNSOUND, ids=lambda text: text[:24])
def test_a_tree_that_is_none_is_a_file_error(tmp_path, text):
    saving.save(tmp_path / "x", {"a": tinyarr.ones(2)}, {tree_files.TREE: text})
    with pytest.raises(FileError, match=r"^load: .*x holds no sound tree .*: copy or save it again$"):
        tinyarr.load(tmp_path / "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "nan", "tensor", "dict"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["tensor", "tuple", "dict", "float", "x"]), inner, max_size=2),
    max_leaves=8,
)


@at_most(200)
@given(json_values | trees.map(lambda tree: tree_files._encoded(tree, (), {})), st.data())
def test_any_metadata_give_a_tree_or_a_file_error(file, value, data):
    text = json.dumps(value)
    cut = data.draw(st.integers(0, len(text)))
    text = text[:cut] + data.draw(st.sampled_from(["", '"', "[", "]", "0", "{"])) + text[cut + 1 :]
    saving.save(file, {"a": tinyarr.ones(2)}, {tree_files.TREE: text})
    try:
        comparable(tinyarr.load(file))
    except FileError as error:
        assert len(str(error)) < 1000


@at_most(100)
@given(st.data())
def test_a_damaged_file_gives_a_tree_or_a_file_error(file, data):
    tinyarr.save(file, {"a": [tinyarr.ones(3), (1.5, math.inf)], "b": {"c": "text"}})
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(FileError):
        comparable(tinyarr.load(file))
