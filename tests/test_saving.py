import contextlib
import errno
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tinyarr import Device, durable, saving
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


def test_tensors_are_loaded_one_at_a_time(tmp_path):
    saving.save(tmp_path / "x", {name: tinyarr.full((3,), n) for n, name in enumerate("abc")})
    loaded = saving.load_each(tmp_path / "x", "ca")
    assert [(name, t.tolist()) for name, t in loaded] == [("c", [2, 2, 2]), ("a", [0, 0, 0])]
    with pytest.raises(FileError, match="x holds no 'd'"):
        list(saving.load_each(tmp_path / "x", ["d"]))


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


@pytest.mark.parametrize(
    ("names", "metadata", "message"),
    [
        (["x", "__metadata__"], None, "name is '__metadata__'"),
        (["1", 1], None, "name is 1: names must be str"),
        (["x", "\ud800"], None, r"'\\ud800', which UTF-8 can't write"),
        (["x"], {"a": "b\udfff"}, r"'\\udfff', which UTF-8 can't write"),
        (["x"], {"\ud800": "b"}, r"'\\ud800', which UTF-8 can't write"),
        (["x"], ["a"], "must be strings"),
    ],
)
def test_names_and_metadata_that_no_file_can_hold_are_an_error_and_the_old_file_stays(
    tmp_path, names, metadata, message
):
    saving.save(tmp_path / "x", {"old": tinyarr.ones(1)})
    with pytest.raises(ArgumentError, match=f"^save: .*{message}"):
        saving.save(tmp_path / "x", dict.fromkeys(names, tinyarr.ones(2)), metadata)
    assert os.listdir(tmp_path) == ["x"] and list(saving.contents(tmp_path / "x")) == ["old"]


def test_a_header_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "MOST_HEADER_BYTES", 1000)
    saving.save(tmp_path / "x", {}, {"a": 900 * "b"})
    with pytest.raises(ArgumentError, match="take 1,032 bytes, and files may have 1,000"):
        saving.save(tmp_path / "x", {}, {"a": 1000 * "b"})


def test_a_long_name_leaves_room_for_that_of_the_unfinished_file(tmp_path):
    saving.save(tmp_path / (255 * "x"), {})
    assert os.listdir(tmp_path) == [255 * "x"]


def test_threads_may_save_to_one_path(tmp_path):
    errors = []

    def save(n):
        try:
            for _ in range(10):
                saving.save(tmp_path / "x", {"x": tinyarr.full((100,), n)}, {"n": str(n)})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(tmp_path) == ["x"]
    state, metadata = saving.load(tmp_path / "x")
    assert state["x"].tolist() == [int(metadata["n"])] * 100


def test_a_link_laid_under_the_unfinished_file_s_name_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda n: 2 * n * "0")  # the name, were it known
    (tmp_path / f".tinyarr-{16 * '0'}.unfinished").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        saving.save(tmp_path / "x", {"x": tinyarr.ones(2)})
    assert (tmp_path / "victim").read_text() == "precious" and len(os.listdir(tmp_path)) == 2


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    killed = "import os, tinyarr; os.fsync = lambda _: os.kill(os.getpid(), 9); tinyarr.saving.save('x', {})"
    subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert len(os.listdir(tmp_path)) == 1
    others = ["x", ".x.unfinished", ".tinyarr-1.unfinished", f".tinyarr-{16 * 'a'}.unfinished.txt"]
    for name in others:
        (tmp_path / name).touch()
    durable.remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(others)


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


EMPTY = json.dumps(entry("F32", (0,), (0, 0))).encode()
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
    "UTF-16": content(json.dumps({"x": entry()}).encode("utf-16-le"), bytes(8)),
    "byte order mark": content(b"\xef\xbb\xbf" + json.dumps({"x": entry()}).encode(), bytes(8)),
    "space before": content(b" " + json.dumps({"x": entry()}).encode(), bytes(8)),
    "comma at the end": content(b'{"x": %s,}' % EMPTY),
    "comma at the end of an entry": content(b'{"x": %s,}}' % EMPTY[:-1]),
    "no comma": content(b'{"x": %s "y": %s}' % (EMPTY, EMPTY)),
    "brace too many": content(b'{"x": {"dtype": "F32"}, "shape": [0], "data_offsets": [0, 0]}}'),
    "number with a zero before": content(b'{"x": {"dtype": "F32", "shape": [00], "data_offsets": [0, 0]}}'),
    "unknown escape": content(b'{"\\x": %s}' % EMPTY),
    "line end in a name": content(b'{"\n": %s}' % EMPTY),
    "text after": content(json.dumps({"x": entry()}).encode() + b"{}", bytes(8)),
    "name twice": content(b'{"x": %s, "\\u0078": %s}' % (EMPTY, EMPTY)),
    "metadata twice": content(b'{"__metadata__": {"a": "b"}, "__metadata__": {}}'),
    "key of metadata twice": content(b'{"__metadata__": {"a": "b", "a": "c"}}'),
    "key of an entry twice": content(b'{"x": {"dtype": "F32", "shape": [0], "shape": [0], "data_offsets": [0, 0]}}'),
    "key too many": content({"x": entry() | {"packed": [1]}}, bytes(8)),
    "name of the metadata twice": content(b'{"__metadata__": {}, "\\u005f_metadata__": %s}' % EMPTY),
    "key for another": content(b'{"x": {"dtype": "F32", "dtype": "F32", "shape": [0]}}'),
    "name beyond UTF-8": content(b'{"\\ud800": %s}' % EMPTY),
    "metadata beyond UTF-8": content(b'{"__metadata__": {"a": "\\ud800"}}'),
    "metadata like a tensor": content({"__metadata__": entry("F32", (0,), (0, 0))}),
    "tensor like metadata": content({"x": {"dtype": "F32", "shape": "0", "data_offsets": "00"}}),
    "more axes than NumPy has": content({"x": entry("U8", (1,) * 65, (0, 1))}, bytes(1)),
    "empty, yet larger than memory": content({"x": entry("U8", (0, 2**31, 2**32), (0, 0))}),
    "no int64": content({"x": entry("U8", (0, 2**64), (0, 0))}),
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


def sliced(data):
    """A sound header with a few pieces cut out, doubled or put in."""
    header = bytearray(SOUND[8:-8])
    pieces = st.sampled_from([b'"', b"{", b"}", b"[", b",", b"\\", b"\xff", b"-1", b"2.0", b"null", b'"y":', EMPTY])
    for _ in range(data.draw(st.integers(0, 3))):
        begin = data.draw(st.integers(0, len(header)))
        end = data.draw(st.integers(begin, min(begin + 40, len(header))))
        header[begin:end] = data.draw(pieces | st.just(header[begin:end] * 2) | st.just(b""))
    return bytes(header)


@given(st.data())
def test_a_changed_header_is_an_error_or_what_the_safetensors_library_reads(file, data):
    file.write_bytes(content(sliced(data), bytes(8)))
    try:
        loaded = saving.load(file)[0]
    except FileError as error:
        assert len(str(error)) < 1000
    else:
        read = dict(safetensors.deserialize(file.read_bytes()))
        assert {name: list(t.shape) for name, t in loaded.items()} == {name: t["shape"] for name, t in read.items()}


def filled(begin, piece, end=b""):
    """A file with a header of 1.1 MB."""
    return content(begin + piece * ((1_100_000 - len(begin) - len(end)) // len(piece)) + end)


NUMBERS = b'{"a": {"dtype": "U8", "shape": ['
LARGE = {
    "numbers": filled(NUMBERS, b"9999999999,", b'9], "data_offsets": [0, 8]}}'),
    "long numbers": filled(NUMBERS, 4000 * b"9" + b",", b'9], "data_offsets": [0, 8]}}'),
    "one number": filled(NUMBERS, b"9", b'], "data_offsets": [0, 8]}}'),
    "lists": filled(b'{"__metadata__": {"a": [', b"[],", b"[]]}}"),
    "tables": filled(b'{"__metadata__": {"a": [', b"{},", b"{}]}}"),
    "depth": filled(b'{"a":', b"[", b""),
    "spaces": filled(b'{"a": {"dtype": ', b" ", b""),
    "quotes": filled(b"{", b'"', b""),
    "backslashes": filled(b'{"', b"\\", b""),
    "a long name": filled(b'{"', b"a", b'": 3}'),
    "a long name of a wrong shape": filled(b'{"', b"a", b'": {"dtype": "U8", "shape": [2], "data_offsets": [0, 3]}}'),
    "a long dtype": filled(b'{"a": {"dtype": "', b"U", b'", "shape": [2], "data_offsets": [0, 2]}}'),
    "metadata": filled(b'{"__metadata__": {"a": ""', b',"b": ""', b"}}"),
    "equal names": filled(b'{"x": %s' % EMPTY, b',"x":%s' % EMPTY.replace(b" ", b""), b"}"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_header_costs_time_and_memory_in_proportion_to_its_size(file, kind):
    def load():
        with pytest.raises(FileError) as caught:
            saving.load(file)
        assert len(str(caught.value)) < 1000

    def seconds(function, *arguments):
        start = time.process_time()
        function(*arguments)
        return time.process_time() - start

    file.write_bytes(LARGE[kind])
    # JSON alone takes 0.02 s, and more where other processes make the machine slow.
    assert seconds(load) < 0.1 or seconds(load) < 5 * seconds(json.loads, LARGE["equal names"][8:])
    tracemalloc.start()
    load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The bytes, once more as text, and of a table an object for each key and value.
    assert peak < 40 * len(LARGE[kind])


def test_a_header_of_more_than_100_megabytes_is_not_read(file):
    with open(file, "wb") as f:
        f.write((100_000_001).to_bytes(8, "little"))
        f.truncate(200_000_000)
    with pytest.raises(FileError, match="header has 100,000,001 bytes, and 100,000,000 are allowed"):
        saving.load(file)


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(tmp_path):
    saving.save(tmp_path / "x", {name: tinyarr.ones((100_000,)) for name in "ab"})
    tensors = saving.load_each(tmp_path / "x")
    assert next(tensors)[0] == "a"
    os.truncate(tmp_path / "x", 500_000)
    with pytest.raises(FileError, match=r"x ended 300[0-9]{3} bytes before the end of b: another program has cut it"):
        next(tensors)


def test_what_is_no_regular_file_is_an_error_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(FileError, match="it is no regular file"):
        saving.load(tmp_path / "x")


def test_every_byte_of_a_bool_but_0_is_true(file):
    file.write_bytes(content({"x": entry("BOOL", (4,), (0, 4))}, bytes([0, 1, 2, 255])))
    loaded = saving.load(file)[0]["x"]
    assert loaded.numpy().view(np.uint8).tolist() == [0, 1, 1, 1]


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
