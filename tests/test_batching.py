"""vmap: the results of a mapped function are those of the function for one example after the other, put together."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.samples import SAMPLES
from tests.test_primitives import assert_exact, in_tuple, operands, recorded
from tests.tiers import at_most
from tinyarr import Tensor, dtypes, vmap
from tinyarr.errors import ArgumentError, ShapeError, TraceError

each_sample = pytest.mark.parametrize("name", SAMPLES)
COUNTED = ("nonzero",)  # the shape of its result is known only from the elements
WRITTEN = {"scatter": 0, "index_add": 0}  # by name the operand that the sample writes into: it must be mapped


@pytest.mark.property
@each_sample
def test_a_primitive_that_is_mapped_is_the_primitive_of_each_example(name):
    """For each choice of operands that are mapped, and of their axes; the others are the same for all examples."""
    sample = SAMPLES[name]

    @at_most(16, first=1)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        n = len(case.operands)
        if not n:  # creation and draws
            return
        mapped = data.draw(st.sets(st.integers(0, n - 1), min_size=1)) | ({WRITTEN[name]} if name in WRITTEN else set())
        size = data.draw(st.integers(1, 3))
        first = operands(data.draw, case, dtype)
        examples = [first]
        for _ in range(size - 1):
            drawn = operands(data.draw, case, dtype)
            examples.append([drawn[i] if i in mapped else x for i, x in enumerate(first)])
        axes = [data.draw(st.integers(0, x.ndim)) if i in mapped else None for i, x in enumerate(first)]
        given = [
            x if axis is None else ta.stack([example[i] for example in examples], axis=axis)
            for i, (x, axis) in enumerate(zip(first, axes))
        ]
        seed = data.draw(st.integers(0, 9))
        ta.manual_seed(seed)
        found = in_tuple(vmap(lambda *x: sample.function(*x, **case.params), axes, randomness="same")(*given))
        for i, example in enumerate(examples):
            ta.manual_seed(seed)
            with recorded() as ran:
                sample.function(*example, **case.params)
            calls = [call for call, _ in ran if call.primitive.name == name]
            assert_exact(name, case, dtype, calls, example, tuple(x[i] for x in found))

    if name not in COUNTED:
        check()
