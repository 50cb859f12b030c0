"""Programs as C: every primitive as a C function, and a whole program as one library."""

from . import attention, elementwise, index, linear_cross_entropy, matmul, reduce, rows, scan, sort

FAMILIES = (attention, elementwise, index, linear_cross_entropy, matmul, reduce, rows, scan, sort)
