"""Programs as C: every primitive as a C function, and a whole program as one library. Floor 2."""

from . import attention, convolution, elementwise, index, matmul, reduce, rows, scan, sort

FAMILIES = (attention, convolution, elementwise, index, matmul, reduce, rows, scan, sort)
