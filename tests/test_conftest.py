import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import slow

ROOT = Path(__file__).parents[1]
SKIPPED_TEST = """
import pytest

@pytest.mark.parity
def test_parity():
    pytest.skip("no oracle")
"""
SKIPPED_MODULE = """
import pytest

pytest.importorskip("a_module_that_is_not_installed")
pytestmark = pytest.mark.parity
"""


@pytest.mark.parametrize("source", [SKIPPED_TEST, SKIPPED_MODULE], ids=["test", "module"])
@pytest.mark.parametrize("required", [slow("0"), "1"])
def test_a_skipped_parity_test_fails_the_run_where_parity_is_required(tmp_path, source, required):
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_planted.py").write_text(source)
    config = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-m", "parity"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *config, tmp_path],
        env=os.environ | {"TINYARR_REQUIRE_PARITY": required},
        capture_output=True,
        text=True,
    )
    failed = run.returncode in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    assert failed == ("but a parity test was skipped" in run.stdout) == (required == "1"), run.stdout
