import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {"cupy", "nvmath", "cudnn", "mpi4py", "tiktoken", "matplotlib", "rich", "safetensors", "torch"}
LATER = {f"tinyarr.{name}" for name in "compiler program cuda distributed data saving tuning ops.more.einsum".split()}


def printed(code):
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_importing_tinyarr_imports_no_extra_and_nothing_that_no_tensor_needs():
    loaded = printed("import sys, tinyarr; print(*sys.modules)")
    assert (EXTRAS | LATER).isdisjoint(loaded)
    assert not any(name.startswith("tinyarr.backends.") and name != "tinyarr.backends.kinds" for name in loaded)


@pytest.mark.parametrize("name", ["compile", "cuda", "einsum", "unique_values", "distributed"])
def test_what_is_imported_later_is_there_in_any_order_and_listed(name):
    code = f"import tinyarr; x = tinyarr.{name}; import tinyarr.compiler, tinyarr.ops.more.einsum, tinyarr.distributed"
    code += f"; print(x is tinyarr.{name}, {name!r} in dir(tinyarr), {name!r} in tinyarr.__all__)"
    assert printed(code) == ["True", "True", "True"]


def test_a_later_import_inside_a_compiled_function_is_no_effect():
    code = "import tinyarr; f = tinyarr.compile(lambda x: tinyarr.einsum('i,i->', x, x)); x = tinyarr.ones(3)"
    assert printed(f"{code}; print(f(x).item(), f(x).item())") == ["3.0", "3.0"]


@pytest.mark.slow
def test_the_wheel_holds_tinyarr_with_its_kernels_and_nothing_else(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True)
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "tinyarr").rglob("*") if path.is_file()}
    assert packed == {name for name in source if "__pycache__" not in name}
