import ctypes
import os
import re
import shutil
import subprocess
import sys

import pytest

import tinyarr as ta
from tinyarr import cache
from tinyarr.backends.c import compiler, library
from tinyarr.backends.c.compiler import CCompilerError, SourceError, find_compiler, load, load_cached

ANSWER = "int answer(void) { return 42; }\n"


def test_a_source_becomes_a_library_that_can_be_called():
    assert load(ANSWER).answer() == 42


def test_a_given_folder_keeps_source_and_library(tmp_path):
    load(ANSWER, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".c", ".so"}
    assert ctypes.CDLL(str(next(tmp_path.glob("*.so")))).answer() == 42


def test_a_source_with_an_error_raises_with_the_compilers_message():
    with pytest.raises(CCompilerError, match=r"(?s)rejected the source.*undeclared"):
        load("int answer(void) { return missing; }\n")


def test_tinyarr_cc_names_the_compiler_with_its_options(monkeypatch):
    monkeypatch.setenv("TINYARR_CC", "cc -DANSWER=42")
    assert find_compiler() == ["cc", "-DANSWER=42"]
    assert load("int answer(void) { return ANSWER; }\n").answer() == 42


def test_a_tinyarr_cc_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("TINYARR_CC", "no-such-compiler")
    with pytest.raises(CCompilerError, match="TINYARR_CC is 'no-such-compiler'"):
        find_compiler()


def test_without_a_compiler_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(CCompilerError, match=r"none of cc, gcc, clang is installed: .* TINYARR_CC") as raised:
        find_compiler()
    assert "\n" not in str(raised.value)


def test_a_ctrl_c_that_python_puts_off_does_not_end_the_compiler(tmp_path):
    (tmp_path / "cc").write_text('#!/bin/sh\nkill -s INT -- "-$GROUP"\nexec cc "$@"\n')
    (tmp_path / "cc").chmod(0o755)
    program = f"""
import os, signal
from tinyarr.backends.c.compiler import load
signal.signal(signal.SIGINT, lambda *_: print("later"))
os.environ.update(TINYARR_CC={str(tmp_path / "cc")!r}, GROUP=str(os.getpgid(0)))
print(load({ANSWER!r}).answer())
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], process_group=0, capture_output=True, text=True, env=env)
    assert run.stdout == "later\n42\n", run.stderr


@pytest.mark.parametrize("chosen", ["'unclosed", " ", "{folder}", "{folder}/text"])
def test_a_tinyarr_cc_that_is_no_program_is_named(monkeypatch, tmp_path, chosen):
    (tmp_path / "text").touch()
    chosen = chosen.format(folder=tmp_path)
    monkeypatch.setenv("TINYARR_CC", chosen)
    with pytest.raises(CCompilerError, match=re.escape(f"TINYARR_CC is {chosen!r}, which is not a program")):
        find_compiler()


BROKEN = {
    "a text": ("", "does not run .*Exec format error"),
    "makes nothing": ("#!/bin/sh\n", "makes no library that loads here .*kernels.so"),
    "makes no library": ("#!/bin/sh\nwhile [ $1 != -o ]; do shift; done; echo > $2\n", "makes no library that loads"),
    "does not say why": ("#!/bin/sh\nprintf '\\377' >&2; exit 1\n", "rejected the source:\n\ufffd"),
    "is killed": ("#!/bin/sh\nfor x; do [ $x = -fsyntax-only ] && exit; done; kill -9 $$\n", "fails on a valid source"),
    "reads": ("#!/bin/sh\ncat; exit 1\n", "rejected the source"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_compiler_that_does_not_work_is_named_and_numpy_serves(monkeypatch, tmp_path, kind):
    script, message = BROKEN[kind]
    (tmp_path / "broken").write_text(script)
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("TINYARR_CC", str(tmp_path / "broken"))
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CCompilerError, match=f"C compiler: .*broken {message}"):
        load(ANSWER)
    with pytest.warns(UserWarning, match=f"NumPy's kernels.*broken {message}"):
        assert ta.compile(lambda x: x * 7)(ta.ones(1)).item() == 7.0


def test_where_nothing_temporary_can_be_written_numpy_serves(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="NumPy's kernels.*no folder to work in.*TMPDIR"):
        assert ta.compile(lambda x: x * 7)(ta.ones(1)).item() == 7.0


def test_a_disk_that_is_full_for_the_code_of_a_program_has_numpy_serve(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    compiler.check_openmp()
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.warns(UserWarning, match="no folder to work in"):
        assert ta.compile(lambda x: x * 7)(ta.ones(1)).item() == 7.0


def test_a_program_whose_code_is_rejected_is_an_error(monkeypatch):
    monkeypatch.setattr(library._Generator, "source", lambda self: "no C")
    with pytest.raises(SourceError, match="rejected the source"):
        ta.compile(lambda x: x * 7)(ta.ones(1))


@pytest.fixture
def entry(monkeypatch, tmp_path):
    """The file of the only library in the cache, from which it is loaded."""
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path))
    assert load_cached(ANSWER).answer() == 42
    (file,) = tmp_path.iterdir()
    return file


def test_a_library_is_loaded_from_memory_and_not_from_a_file_that_may_change(entry, monkeypatch):
    loaded, load = [], ctypes.CDLL
    monkeypatch.setattr(compiler.ctypes, "CDLL", lambda path: loaded.append(path) or load(path))
    answer = load_cached(ANSWER).answer
    entry.write_bytes(bytes(len(entry.read_bytes())))
    assert answer() == 42 and [path.startswith("/proc/self/fd/") for path in loaded] == [True]


def test_where_memory_cannot_be_loaded_a_private_file_is(entry, monkeypatch):
    loaded, load = [], ctypes.CDLL

    def only_files(path):
        if path.startswith("/proc"):
            raise OSError("failed to map segment from shared object")
        loaded.append(path)
        return load(path)

    monkeypatch.setattr(compiler.ctypes, "CDLL", only_files)
    assert load_cached(ANSWER).answer() == 42
    assert len(loaded) == 1 and not os.path.exists(loaded[0]) and str(entry.parent) not in loaded[0]


def test_each_of_many_libraries_is_loaded_and_none_holds_a_descriptor(tmp_path):
    binaries = []
    for i in range(2):
        load(f"int answer(void) {{ return {i}; }}\n", tmp_path)
        binaries.append((tmp_path / "kernels.so").read_bytes())
    before = len(os.listdir("/proc/self/fd"))
    libraries = [compiler._loaded(binaries[i % 2]) for i in range(30)]
    assert [x.answer() for x in libraries] == [0, 1] * 15
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_library_of_another_machine_is_compiled_anew(entry):
    assert cache.write(entry.name, b"\x7fELF of another C library")
    assert load_cached(ANSWER).answer() == 42
    assert b"another" not in cache.read(entry.name)


def test_a_pipe_in_the_place_of_a_library_is_replaced(entry):
    entry.unlink()
    os.mkfifo(entry)
    assert load_cached(ANSWER).answer() == 42 and entry.is_file()


def test_the_version_in_the_key_is_that_of_the_whole_command(entry, monkeypatch):
    for wrapper in ("env", "env A=1"):  # as ccache is one
        monkeypatch.setenv("TINYARR_CC", f"{wrapper} cc")
        assert "env" not in compiler._version(tuple(find_compiler()))


@pytest.mark.slow
@pytest.mark.parametrize("options", ["noexec", "ro", "size=4k", "size=64k", "size=256k"])
@pytest.mark.parametrize("variable", ["TMPDIR", "TINYARR_CACHE"])
def test_a_file_system_that_forbids_to_execute_or_to_write_or_is_full_costs_time_alone(tmp_path, variable, options):
    folder = tmp_path / "mounted"
    folder.mkdir()
    inside = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {options} tmpfs {folder} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    variables = {"TINYARR_CACHE": str(tmp_path / "cache"), variable: str(folder)}
    program = "import tinyarr as ta; print(ta.compile(lambda x: x * 7)(ta.ones(1)).item(), len(ta.rand(1 << 20)))"
    twice = [*inside, "sh", "-c", '"$@"; "$@"', "sh", sys.executable, "-c", program]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    run = subprocess.run(twice, env=env, capture_output=True, text=True)
    assert run.stdout == 2 * "7.0 1048576\n", run.stderr
