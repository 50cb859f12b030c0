"""Programs lowered to CUDA launches without a GPU."""

from tinyarr import Device
from tinyarr.backends.cuda.program.lowering import Binding
from tinyarr.compiler.lower import lower

META = Device("meta", like="cuda:sm_90")


def bound(planned):
    """The tasks of a plan, and the scratch that they work in."""
    return Binding(lower(planned, META.backend))
