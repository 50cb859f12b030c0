import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {"cupy", "nvmath", "cudnn", "mpi4py", "tiktoken", "matplotlib", "rich", "safetensors", "torch"}


def test_importing_tinyarr_imports_no_extra():
    code = "import sys, tinyarr; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert EXTRAS.isdisjoint(run.stdout.split())


@pytest.mark.slow
def test_the_wheel_holds_tinyarr_with_its_kernels_and_nothing_else(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True)
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "tinyarr").rglob("*") if path.is_file()}
    assert packed == {name for name in source if "__pycache__" not in name}
