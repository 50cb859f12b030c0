"""The gradient tests catch wrong gradient rules."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_flipped_sign_and_nearly_every_other_mutant_is_caught():
    """In a process of its own: a mutant is what is imported in place of tinyarr."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.mutate_gradients"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    counts = {kind: (int(n), int(total)) for kind, n, total in re.findall(r"(\w+) +(\d+) of +(\d+) caught", run.stdout)}
    assert counts["sign"][0] == counts["sign"][1], run.stdout
    assert sum(total for _, total in counts.values()) > 250
    for kind, (caught, total) in counts.items():
        assert caught >= 0.95 * total, f"{kind}:\n{run.stdout}"
