"""Fresh memory on the GPU is poisoned like the CPU's: what a kernel leaves unwritten, scratch too, is caught."""

import functools

import pytest

from tinyarr import Device, cuda

if cuda.is_available():
    from cupy.cuda import runtime

    from tinyarr.backends.cuda.device.memory import DeviceMemory

    def poisoned(allocate):
        @functools.wraps(allocate)
        def wrapper(self, nbytes):
            storage = allocate(self, nbytes)
            if nbytes:
                backend = Device("cuda").backend
                with backend.lock:  # or another thread's capture takes it in
                    runtime.memsetAsync(storage.memory.ptr, 0xFF, nbytes, backend.stream.ptr)
            return storage

        return wrapper

    DeviceMemory.allocate = poisoned(DeviceMemory.allocate)


@pytest.fixture(autouse=True)
def no_report_is_left(request):
    """A test that ends with a bad index unnoticed would fail the next one."""
    yield
    if request.node.get_closest_marker("cuda"):
        cuda.synchronize()
