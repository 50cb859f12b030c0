"""TINYARR_LOG: what compiled functions tell on stderr, and only where it is asked for."""

import re

import pytest

import tinyarr as ta
from tinyarr import Tensor, diagnostics
from tinyarr.errors import ArgumentError


def told(monkeypatch, capfd, words):
    """What is written on stderr by a function that is traced for two signatures and run three times."""
    monkeypatch.setenv("TINYARR_LOG", words)

    @ta.compile
    def scaled(x, rate):
        return ta.exp(x) @ x * (2 if rate > 1 else 1)

    for rate in (0.5, 2.0, 2.0):
        scaled(ta.ones((3, 3)), rate)
    return capfd.readouterr().err


def test_nothing_is_told_unasked(monkeypatch, capfd):
    assert told(monkeypatch, capfd, "") == ""


def test_trace_tells_why_and_what_it_cost(monkeypatch, capfd):
    needed, first, second = told(monkeypatch, capfd, "trace").splitlines()
    assert re.search(r"scaled: arguments\[1\]: its value was needed at .*test_diagnostics.py:\d+$", needed)
    cost = r"\(\d nodes: trace \d\.\d{3} s, passes \d\.\d{3} s, plan \d\.\d{3} s, compile \d\.\d{3} s\)$"
    assert re.search(rf"scaled: traced: the first call {cost}", first)
    assert re.search(rf"scaled: traced: arguments\[1\]: 0.5, then 2.0 {cost}", second)


def test_kernels_and_launches_tell_sources_and_seconds(monkeypatch, capfd):
    lines = told(monkeypatch, capfd, "kernels, launches")
    assert "KERNEL exp_kernel(const float *x0, float *out0)\n{\n" in lines
    launches = re.findall(r"^ +\d+\.\d{6} s  (\w+) +float32\[3, 3\] +.*test_diagnostics.py:\d+$", lines, re.MULTILINE)
    assert launches[0] == "exp_kernel" and launches.count("exp_kernel") == 3 and launches.count("matmul_kernel") == 3


def test_a_word_that_means_nothing_raises_and_all_are_listed(monkeypatch):
    monkeypatch.setenv("TINYARR_LOG", "trace,kernel")
    with pytest.raises(ArgumentError, match=r"TINYARR_LOG: 'kernel' is none of its words.*trace.*kernels.*launches"):
        ta.compile(lambda x: x * 2)(Tensor([1.0]))
    assert list(diagnostics.WORDS) == ["trace", "kernels", "launches"]
