"""The examples run as a newcomer runs them, and print what their docstrings promise."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import slow

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def printed_by(name, *arguments, folder):
    """What an example prints, run in an empty folder."""
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def numbers(line):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100


def test_the_gradient_agrees_with_the_formula_and_leads_to_the_line(tmp_path):
    lines = printed_by("tensor_and_gradient.py", folder=tmp_path).splitlines()
    compared = [numbers(line) for line in lines if "by hand" in line]
    assert len(compared) == 2
    for backward, by_hand in compared:
        assert backward == pytest.approx(by_hand, abs=2e-4)
    _, w, b = numbers(lines[-1])
    assert (w, b) == pytest.approx((3, -2), abs=0.05)


@pytest.mark.parametrize("arguments", [slow([]), ["elsewhere.png"]])
def test_the_perceptron_learns_the_spiral_and_draws_it(tmp_path, arguments):
    lines = printed_by("multilayer_perceptron.py", *arguments, folder=tmp_path).splitlines()
    picture = (arguments or ["multilayer_perceptron.png"])[0]
    losses, accuracies = zip(*(numbers(line) for line in lines if line.startswith("step")))
    assert losses[0] == pytest.approx(1.1, abs=0.1)  # log 3: it starts by guessing
    assert accuracies[-1] > 98
    assert lines[-1] == f"wrote {picture}"
    assert [file.name for file in tmp_path.iterdir()] == [picture]
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_gradcheck_accepts_both_operations_and_catches_the_wrong_gradient(tmp_path):
    printed = printed_by("custom_gradient.py", folder=tmp_path)
    assert float(re.search(r"differs from the identity by at most (\S+)", printed)[1]) < 1e-12
    assert re.search(r"gradcheck of mish: +True\n", printed)
    assert re.search(r"gradcheck of inverse: +True\n", printed)
    refused = printed.split("gradcheck of wrong_inverse:\n")[1]
    assert "input 0 of shape (3, 3)" in refused
    assert "finite differences give" in refused


def test_a_convolution_of_ones_own_has_right_gradients_and_a_right_c_kernel(tmp_path):
    printed = printed_by("custom_operation.py", folder=tmp_path)
    assert re.search(r"gradcheck: +True\ngradgradcheck: +True\n", printed)
    # 18 products of normal numbers, added up in float32 in two orders.
    assert float(re.search(r"differs from the plain meaning by (\S+)", printed)[1]) < 18 * 2**-23 * 10


def test_row_expressions_of_ones_own_have_right_gradients_and_c_kernels(tmp_path):
    printed = printed_by("row_expression.py", folder=tmp_path)
    for name in ("qk_norm", "capped_loss"):
        assert f"{name}: gradcheck and gradgradcheck agree\n" in printed
        assert float(re.search(rf"{name}: C and NumPy differ by (\S+)", printed)[1]) < 1e-13


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_the_cuda_kernel_of_the_convolution_compiles(arch):
    from cupy.cuda.compiler import _NVRTCProgram

    source = "typedef float T;\n" + runpy.run_path(str(ROOT / "examples" / "custom_operation.py"))["CUDA_SOURCE"]
    binary = _NVRTCProgram(source, "conv2d.cu", method="cubin").compile((f"-arch={arch}", "--std=c++17"))
    assert binary


def test_muon_learns_the_spiral(tmp_path):
    lines = printed_by("muon.py", folder=tmp_path).splitlines()
    first, *_, last = [[float(x) for x in line.split()] for line in lines[1:]]
    assert first[1] == first[2] == pytest.approx(1.1, abs=0.1)  # log 3: both start by guessing
    assert last[1] < 0.2 and last[2] < 0.2
