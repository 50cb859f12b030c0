import ctypes
import os
import subprocess
import sys

import pytest

from tinyarr.backends.cpu import c_compiler
from tinyarr.backends.cpu.c_compiler import CompilerError, find_compiler, load

ANSWER = "int answer(void) { return 42; }\n"


def test_a_source_becomes_a_library_that_can_be_called():
    assert load(ANSWER).answer() == 42


def test_a_given_folder_keeps_source_and_library(tmp_path):
    load(ANSWER, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".c", ".so"}
    assert ctypes.CDLL(str(next(tmp_path.glob("*.so")))).answer() == 42


def test_a_source_with_an_error_raises_with_the_compilers_message():
    with pytest.raises(CompilerError, match=r"(?s)rejected the source.*undeclared"):
        load("int answer(void) { return missing; }\n")


def test_tinyarr_cc_names_the_compiler_with_its_options(monkeypatch):
    monkeypatch.setenv("TINYARR_CC", "cc -DANSWER=42")
    assert find_compiler() == ["cc", "-DANSWER=42"]
    assert load("int answer(void) { return ANSWER; }\n").answer() == 42


def test_a_tinyarr_cc_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("TINYARR_CC", "no-such-compiler")
    with pytest.raises(CompilerError, match="TINYARR_CC is 'no-such-compiler'"):
        find_compiler()


def test_without_a_compiler_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(c_compiler.shutil, "which", lambda name: None)
    with pytest.raises(CompilerError, match=r"none of cc, gcc, clang is installed: .* TINYARR_CC") as raised:
        find_compiler()
    assert "\n" not in str(raised.value)


def test_a_ctrl_c_that_python_puts_off_does_not_end_the_compiler(tmp_path):
    (tmp_path / "cc").write_text('#!/bin/sh\nkill -s INT -- "-$GROUP"\nexec cc "$@"\n')
    (tmp_path / "cc").chmod(0o755)
    program = f"""
import os, signal
from tinyarr.backends.cpu.c_compiler import load
signal.signal(signal.SIGINT, lambda *_: print("later"))
os.environ.update(TINYARR_CC={str(tmp_path / "cc")!r}, GROUP=str(os.getpgid(0)))
print(load({ANSWER!r}).answer())
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], process_group=0, capture_output=True, text=True, env=env)
    assert run.stdout == "later\n42\n", run.stderr
