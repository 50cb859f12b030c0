"""One record for each primitive: how it is called, what it means in NumPy, what it takes, gives and refuses.

Everything that test_primitives.py proves about a primitive it proves for every record here. Families of records are
named as in tinyarr/ops/.
"""

from tests.samples import (  # importing them fills SAMPLES
    attention,
    collective,
    convolution,
    create,
    elementwise,
    gates,
    index,
    loss,
    matmul,
    norm,
    optim,
    random,
    reduce,
    rotary,
    scan,
    shape,
    softmax,
    sort,
)
from tests.samples.record import SAMPLES, Case, Operand, Sample
