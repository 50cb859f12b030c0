import contextlib

import pytest

import tinyarr
from tests.compiler.devices import CUDA, own_kernels


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch):
    """The default device of a test; after a comma in which way a GPU is used, see devices.py."""
    name, _, way = request.param.partition(", ")
    if way == "guarded":
        monkeypatch.setenv("TINYARR_GUARD", "1")
    with tinyarr.use_device(name), own_kernels() if way == "own kernels" else contextlib.nullcontext():
        yield name
        if name == "cuda":
            tinyarr.cuda.synchronize()  # a bad index that nobody noticed would fail the next test
