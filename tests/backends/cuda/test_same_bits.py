"""A compiled training run gives the same bits in another process."""

import subprocess
import sys

import pytest


@pytest.mark.cuda
def test_two_processes_train_to_the_same_bits():
    options = ["--size", "tiny", "--batch-size", "4", "--seq-len", "64", "--steps", "8"]
    command = [sys.executable, "-m", "tests.backends.cuda.same_bits", *options]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and "the same bits" in ran.stdout, ran.stdout + ran.stderr
