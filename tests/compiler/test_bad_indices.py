"""Bad indices in compiled functions: they end a program with OutOfBounds, on any number of threads."""

import os
import subprocess
import sys


def test_a_bad_index_ends_a_program_on_many_threads():
    code = """if True:
        import tinyarr as ta
        from tinyarr.errors import OutOfBounds

        def twice(table, i, j):
            return ta.take(table, i, axis=0) + ta.take(table, j, axis=0)

        def loss(table, i, j):
            hidden = ta.embedding(table, i) + ta.embedding(table, j)
            return ta.cross_entropy(hidden @ table.T, j)

        table, good = ta.ones((500, 32)), ta.arange(500)
        bad = ta.concat([good[:-1], ta.Tensor([500])])
        for function in ta.compile(twice), ta.compile(ta.value_and_grad(loss)):
            for i, j in [(good, bad), (bad, bad), (bad, good)] * 40:
                try:
                    function(table, i, j)
                except OutOfBounds as error:
                    assert "index 499 is 500" in str(error), error
                else:
                    raise AssertionError("no error")
            function(table, good, good)
    """
    command = [sys.executable, "-c", code]
    # The limit is there for a hang alone: the threads are more than the cores, and other programs want those.
    run = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "8"}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
