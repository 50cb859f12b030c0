"""Forked children of processes that have run compiled functions on several threads: they run on, with the same bits."""

import os
import subprocess
import sys

import pytest

COMMON = """
import multiprocessing, os, signal, sys, threading, traceback, warnings
import tinyarr as ta

warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, which this is about
f, x = ta.compile(lambda x: (ta.exp(x * 0.001).sum(axis=0), x @ x.T)), ta.ones((300, 200)) * 3

def bits(*_):
    return [r.numpy().tobytes() for r in f(x)]

wanted = bits()

def child(work):
    pid = os.fork()
    if not pid:
        signal.alarm(20)  # ends a child that hangs
        try:
            work()
        except Exception:
            traceback.print_exc()
            os._exit(1)
        sys.exit()  # as a process does that ends of itself
    assert os.waitpid(pid, 0)[1] == 0

def same():
    assert bits() == wanted
    assert ta.compile(lambda x: x + 1)(x).tolist() == (x + 1).tolist()
"""
CASES = {
    "a child and a grandchild": "child(lambda: (same(), child(lambda: (same(), child(same)))))\nsame()",
    "multiprocessing": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(bits, range(4)).get(60) == [wanted] * 4
same()
""",
    "beside a thread that runs a program": """
ended = threading.Event()

def run():
    while not ended.is_set():
        f(x)

thread = threading.Thread(target=run)
thread.start()
for _ in range(5):
    child(lambda: bits() == wanted or os._exit(1))
ended.set()
thread.join()
""",
    "beside a thread that compiles": """
inside, go = threading.Event(), threading.Event()

def traced(x):
    inside.set()
    go.wait(60)
    return x + 1

g = ta.compile(traced)
thread = threading.Thread(target=lambda: g(x))
thread.start()
inside.wait()
child(lambda: (go.set(), same(), g(x)))
go.set()
thread.join()
""",
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_forked_child_runs_on(case):
    command, environment = [sys.executable, "-c", COMMON + case], {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
