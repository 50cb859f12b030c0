"""Where compiled functions run in tests: on the CPU, and, marked `cuda`, in several ways on a GPU.

The fixture `device` (conftest.py) is the default device of a test: "cpu" and CUDA, or what parametrizes it indirectly.
"""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

import tinyarr as ta
from tests.backends.cuda.place import on
from tests.tiers import at_most
from tinyarr import Tensor, default_device, use_device
from tinyarr.compiler import Interpreter
from tinyarr.ops.primitive import registry
from tinyarr.tensor import result_tensor

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
OWN_KERNELS = pytest.param("cuda, own kernels", marks=pytest.mark.cuda)  # no library's
GUARDED = pytest.param("cuda, guarded", marks=pytest.mark.cuda)  # with TINYARR_GUARD=1


def exact():
    """What runs a graph with the bits of eager mode: the device's program, but on the CPU, where C rounds otherwise."""
    return Interpreter if default_device().kind == "cpu" else None


def examples(on_cpu: int, on_gpu: int, first: int | None = None) -> settings:
    """How many programs are tried, `first` as in at_most; on a GPU always the same: their kernels compile slowly."""
    few = settings(phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    if default_device().kind == "cpu":
        return at_most(on_cpu, few, first)
    return settings(few, max_examples=on_gpu, derandomize=True)


def calls(inputs: list[Tensor]) -> list[list[Tensor]]:
    """What to call a function with, one after the other: tensors on the CPU, which are given, or copies on the GPU.

    There a program's launches run one by one, are captured where addresses are those of the call before, and are
    replayed; of inputs that lie elsewhere than before it makes copies. Each of these comes at least once.
    """
    with use_device("cpu"):
        others = [again(x) for x in inputs]
    if default_device().kind == "cpu":
        return [inputs, inputs, others]
    here, there = ([on("cuda", x) for x in given] for given in (inputs, others))
    return [here, here, there, there, there, here]


def again(x: Tensor) -> Tensor:
    """Other elements of x's kind in memory of the same form: its own, last first."""
    flat = np.ascontiguousarray(x.array.storage.memory).reshape(-1)
    other = Tensor(flat.view(np.uint8)).array
    moved = type(x.array)(other.storage, x.dtype, x.shape, x.array.strides, x.array.offset)
    result = result_tensor(moved)
    if x.size and 0 not in x.array.strides:
        result.assign(ta.flip(x))
    return result


@contextlib.contextmanager
def own_kernels():
    """Products and attention by tinyarr's kernels: a library chooses algorithms by strides too, which plans change."""
    from tinyarr import cuda
    from tinyarr.backends.cuda.libraries import cublaslt, cudnn

    def forget():
        for primitive in registry.values():
            primitive._calls.clear()

    cuda.libraries()  # remembers what there is
    with pytest.MonkeyPatch.context() as patch:
        for library in (cublaslt, cudnn):
            patch.setattr(library, "is_available", lambda: False)
        try:
            forget()
            yield
        finally:
            forget()
