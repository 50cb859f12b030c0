"""What is said where a piece of CUDA is missing. None of this needs a GPU."""

import importlib.util
import subprocess
import sys
import types
import warnings

import pytest

import tinyarr
from tinyarr import cuda
from tinyarr.backends.cuda.libraries import cublaslt, cudnn
from tinyarr.errors import DeviceError


class CudaError(Exception):
    pass


def fake_cupy(monkeypatch, **runtime):
    """A CuPy whose runtime answers as given: a value, or an exception to raise."""

    def answer(value):
        def function():
            if isinstance(value, Exception):
                raise value
            return value

        return function

    answers = {"driverGetVersion": 13000, "runtimeGetVersion": 13000, "getDeviceCount": 1} | runtime
    module = types.SimpleNamespace(CUDARuntimeError=CudaError, **{k: answer(v) for k, v in answers.items()})
    package = types.ModuleType("cupy")
    package.cuda = types.ModuleType("cupy.cuda")
    package.cuda.runtime = module
    package.__spec__ = importlib.util.spec_from_loader("cupy", None)
    monkeypatch.setitem(sys.modules, "cupy", package)
    monkeypatch.setitem(sys.modules, "cupy.cuda", package.cuda)


@pytest.fixture(autouse=True)
def forget():
    cached = cuda.missing, cuda._state, cuda.warn_if_missing
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_cupy_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cuda.missing().startswith("CuPy is not installed: pip install")
    assert not cuda.is_available()


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"driverGetVersion": 0}, "there is no NVIDIA driver"),
        ({"driverGetVersion": OSError("libcuda.so.1")}, r"no NVIDIA driver answers \(libcuda.so.1\)"),
        ({"driverGetVersion": 12040}, r"the driver is for CUDA 12.4, CuPy for CUDA 13.0: update .*cuda12"),
        ({"getDeviceCount": 0}, "there is no NVIDIA GPU"),
        ({"getDeviceCount": CudaError("no device")}, r"no GPU can be used \(no device\)"),
    ],
)
def test_what_keeps_a_gpu_from_being_used_is_said_in_one_line(monkeypatch, runtime, said):
    fake_cupy(monkeypatch, **runtime)
    with pytest.raises(DeviceError, match=f"^cuda:0: {said}") as caught:
        cuda.require()
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    fake_cupy(monkeypatch, getDeviceCount=2)
    assert cuda.is_available()
    cuda.require(1)
    with pytest.raises(DeviceError, match="cuda:2: there are 2 GPUs: use 'cuda:0' to 'cuda:1'"):
        cuda.require(2)


def test_a_missing_library_is_named_with_the_path_that_is_taken_instead(monkeypatch):
    for module in (cublaslt, cudnn):
        monkeypatch.setattr(module, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = cuda.libraries()
    assert said.keys() == {"cuBLASLt", "cuDNN"}
    assert said["cuBLASLt"].startswith("nvmath-python is not installed: matrix products run on tinyarr's own kernel")
    assert said["cuDNN"].startswith("nvidia-cudnn-frontend is not installed: attention runs on tinyarr's own kernel")


def test_a_slower_path_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(cublaslt, "is_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="tinyarr.cuda: nvmath-python is .*: matrix products run on tinyarr's own"):
        cuda.warn_if_missing("cuBLASLt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cuda.warn_if_missing("cuBLASLt")
        monkeypatch.setattr(cudnn, "is_available", lambda: True)
        cuda.warn_if_missing("cuDNN")


def test_asking_costs_no_import_of_cupy():
    assert "cuda" in dir(tinyarr)
    code = "import sys, tinyarr; tinyarr.cuda; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
