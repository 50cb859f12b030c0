import contextlib
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tinyarr import Device, saving
from tinyarr.dtypes import ALL
from tinyarr.errors import ArgumentError, FileError
from tinyarr.testing import tensors

SAFETENSORS = {
    "bool": "BOOL", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "int8": "I8", "int16": "I16",
    "int32": "I32", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
in_any_layout = tensors(shapes, st.sampled_from(ALL))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A place for a file that examples overwrite."""
    return tmp_path_factory.mktemp("saving") / "x.safetensors"


def bits(x):
    x = x.numpy()
    return x.dtype, x.shape, x.tobytes()


@given(st.dictionaries(st.text(max_size=9), in_any_layout, max_size=5), st.dictionaries(st.text(), st.text()))
def test_what_was_saved_is_loaded_bit_for_bit(file, state, metadata):
    saving.save(file, state, metadata)
    loaded, its_metadata = saving.load(file)
    assert {name: bits(t) for name, t in loaded.items()} == {name: bits(t) for name, t in state.items()}
    assert its_metadata == metadata


@pytest.mark.parametrize("shape", [(), (0, 2), (3, 2)])
def test_every_dtype_is_read_by_the_safetensors_library(tmp_path, shape):
    state = {d.name: tinyarr.ones(shape, dtype=d) for d in ALL}
    saving.save(tmp_path / "x", state)
    read = dict(safetensors.deserialize((tmp_path / "x").read_bytes()))
    assert read.keys() == state.keys() == SAFETENSORS.keys()
    for name, t in state.items():
        found = read[name]
        assert (found["dtype"], found["shape"], bytes(found["data"])) == (
            SAFETENSORS[name], list(shape), t.numpy().tobytes())  # fmt: skip


@given(tensors(shapes, tinyarr.float32))
def test_a_view_in_any_layout_is_read_by_the_safetensors_library(file, x):
    saving.save(file, {"x": x}, {"made by": "tinyarr"})
    assert np.array_equal(safetensors.numpy.load_file(file)["x"], x.numpy())
    with safetensors.safe_open(file, framework="np") as f:
        assert f.metadata() == {"made by": "tinyarr"}


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    arrays = {d.name: np.arange(6).reshape(2, 3).astype(d.numpy) for d in ALL if not d.is_float}
    arrays |= {name: np.linspace(0, 1, 5, dtype=name) for name in ("float16", "float32", "float64")}
    safetensors.numpy.save_file(arrays, tmp_path / "x", {"made by": "safetensors"})
    loaded, metadata = saving.load(tmp_path / "x")
    assert {name: bits(t) for name, t in loaded.items()} == {
        name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()
    }
    assert metadata == {"made by": "safetensors"}


def test_every_tensor_lies_aligned_in_the_file(tmp_path):
    saving.save(tmp_path / "x", {d.name: tinyarr.ones((3,), dtype=d) for d in ALL})
    content = (tmp_path / "x").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:start]).items():
        assert (start + entry["data_offsets"][0]) % getattr(tinyarr, name).itemsize == 0


def test_only_the_named_tensors_are_loaded(tmp_path):
    saving.save(tmp_path / "x", {name: tinyarr.ones((2,)) for name in "abc"})
    assert list(saving.load(tmp_path / "x", ["c", "a"])[0]) == ["c", "a"]
    assert saving.load(tmp_path / "x", [])[0] == {}
    with pytest.raises(FileError, match=r"x holds no 'd'; it has 3 tensors, such as \['a', 'b', 'c'\]"):
        saving.load(tmp_path / "x", ["a", "d"])


def test_what_is_loaded_has_memory_of_its_own_on_the_device_asked_for(tmp_path):
    path = tmp_path / "x"
    saving.save(path, {"x": tinyarr.ones((2,))})
    loaded = saving.load(path)[0]["x"]
    loaded.assign(5.0)
    assert saving.load(path)[0]["x"].tolist() == [1, 1]
    assert saving.load(path, device="meta")[0]["x"].device is Device("meta")
    saving.save(path, {"x": loaded})
    assert saving.load(path)[0]["x"].tolist() == [5, 5]


def test_a_file_has_the_usual_permissions(tmp_path):
    saving.save(tmp_path / "x", {})
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_metadata_that_are_no_strings_are_an_error(tmp_path):
    with pytest.raises(ArgumentError, match=r"\{'step': 3\}.*must be strings"):
        saving.save(tmp_path / "x", {}, {"step": 3})
    assert os.listdir(tmp_path) == []


WRITER = """
import itertools, sys, tinyarr
from tinyarr import saving

for n in itertools.count(1):
    saving.save(sys.argv[1], {name: tinyarr.full((50_000,), n) for name in "abcd"}, {"n": str(n)})
    print(n, flush=True)
"""


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8, 16, 50])
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path, milliseconds):
    path = tmp_path / "x.safetensors"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    writer.stdout.readline()
    time.sleep(milliseconds / 1000)
    writer.send_signal(signal.SIGKILL)
    done = [1, *map(int, writer.communicate()[0].split())][-1]

    state, metadata = saving.load(path)
    assert int(metadata["n"]) in (done, done + 1)
    assert list(state) == list("abcd")
    assert all((t.numpy() == int(metadata["n"])).all() for t in state.values())


@contextlib.contextmanager
def disk_full_after(nbytes):
    """Every write beyond `nbytes` of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def failing(name):
    """os.<name> fails, as where the disk turns out to be full only then."""

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


@pytest.mark.parametrize(
    "trouble",
    [lambda: disk_full_after(0), lambda: disk_full_after(100), lambda: disk_full_after(50_000),
     lambda: failing("fsync"), lambda: failing("replace")],
    ids=["header", "header's end", "data", "sync", "rename"],
)  # fmt: skip
def test_a_full_disk_is_an_error_that_leaves_the_old_file_alone_and_nothing_else(tmp_path, trouble):
    path = tmp_path / "x"
    saving.save(path, {"x": tinyarr.ones((3,))})
    with pytest.raises(OSError) as caught, trouble():
        saving.save(path, {"x": tinyarr.zeros((100_000,))})
    assert caught.value.strerror
    assert os.listdir(tmp_path) == ["x"]
    assert saving.load(path)[0]["x"].tolist() == [1, 1, 1]


def test_an_interrupted_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saving.save(tmp_path / "x", {"x": tinyarr.ones((3,))})
    assert os.listdir(tmp_path) == []


def content(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SOUND = content({"x": entry(), "__metadata__": {"a": "b"}}, bytes(8))
DAMAGED = {
    "empty": b"",
    "too short for a length": b"PK\x03\x04",
    "no header": bytes(8),
    "zeros": bytes(100),
    "ones": b"\xff" * 100,
    "data too short": content({"x": entry()}, bytes(7)),
    "data too long": content({"x": entry()}, bytes(9)),
    "header longer than the file": content({"x": entry()}, bytes(8), length=2**63),
    "header cut short": content({"x": entry()}, bytes(8), length=5),
    "no text": content(b"\xff\xfe", bytes(8)),
    "deeper than any table": content(b"[" * 100_000),
    "no table": content([]),
    "no entry": content({"x": 3}),
    "empty entry": content({"x": {}}),
    "unknown dtype": content({"x": entry(dtype="F4")}, bytes(8)),
    "dtype no name": content({"x": entry(dtype=[])}, bytes(8)),
    "other size": content({"x": entry(shape=(3,))}, bytes(8)),
    "negative size": content({"x": entry(shape=(-2, -1))}, bytes(8)),
    "broken size": content({"x": entry(shape=(2.0,))}, bytes(8)),
    "shape no list": content({"x": entry(shape=2)}, bytes(8)),
    "three offsets": content({"x": entry(offsets=(0, 8, 8))}, bytes(8)),
    "backwards": content({"x": entry(offsets=(8, 0))}, bytes(8)),
    "before the data": content({"x": entry(offsets=(-8, 0))}, bytes(8)),
    "gap": content({"x": entry(offsets=(4, 12))}, bytes(12)),
    "same place": content({"x": entry(), "y": entry()}, bytes(8)),
    "overlap": content({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)),
    "metadata no table": content({"__metadata__": 3}),
    "metadata no strings": content({"__metadata__": {"a": 3}}),
}


def test_the_sound_file_that_the_damaged_ones_differ_from_is_loaded(file):
    file.write_bytes(SOUND)
    assert saving.load(file)[0]["x"].tolist() == [0, 0]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_an_error_that_names_it(file, damage):
    file.write_bytes(DAMAGED[damage])
    with pytest.raises(FileError, match=r"x\.safetensors is not a sound safetensors file"):
        saving.load(file)


@given(st.integers(0, len(SOUND) - 1))
def test_a_file_cut_short_anywhere_is_an_error(file, length):
    file.write_bytes(SOUND[:length])
    with pytest.raises(FileError):
        saving.load(file)


@given(st.integers(0, len(SOUND) - 9), st.integers(0, 255))
def test_a_wrong_byte_in_the_header_is_an_error_or_another_sound_file(file, position, byte):
    changed = bytearray(SOUND)
    changed[position] = byte
    file.write_bytes(changed)
    with contextlib.suppress(FileError):
        for t in saving.load(file)[0].values():
            assert t.nbytes == 8


def test_a_missing_file_or_folder_is_the_system_s_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        saving.load(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        saving.save(tmp_path / "missing" / "x", {})


def test_what_is_no_tensor_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="save: b is ndarray: make it a tensor"):
        saving.save(tmp_path / "x", {"a": tinyarr.ones(2), "b": np.ones(2)})
    assert not list(tmp_path.iterdir())


def test_the_new_name_is_flushed_to_disk_after_the_contents(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def record(descriptor):
        flushed.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "x").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    saving.save(tmp_path / "x", {"operation": tinyarr.ones(2)})
    (unfinished, there_before), folder = flushed
    assert re.fullmatch(rf"{tmp_path}/\.tinyarr-[0-9a-f]{{16}}\.unfinished", unfinished) and not there_before
    assert folder == (str(tmp_path), True)
