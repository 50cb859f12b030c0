"""The byte n-gram table: a probability distribution, Witten-Bell's formula, and the known figure."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.baseline import nats_per_byte
from models.text import load_text
from tests.tiers import at_most

texts = st.text("abc", min_size=1, max_size=30).map(str.encode)


def by_definition(train: bytes, validation: bytes, context: int) -> float:
    """The docstring's formula, a byte at a time."""

    def p(byte: int, before: bytes) -> float:
        after = Counter(
            train[end] for end in range(len(before), len(train)) if train[:end].endswith(before))
        shorter = p(byte, before[1:]) if before else 1 / 256
        return (after[byte] + len(after) * shorter) / (after.total() + len(after)) if after else shorter

    logs = [math.log(p(byte, validation[max(0, i - context) : i])) for i, byte in enumerate(validation)]
    return -sum(logs) / len(logs)


@given(texts, texts, st.integers(0, 6))
def test_the_table_agrees_with_the_formula_taken_literally(train, validation, context):
    assert math.isclose(nats_per_byte(train, validation, context), by_definition(train, validation, context),
                        rel_tol=1e-12)


@given(texts, texts)
@at_most(10)
def test_the_probabilities_of_all_bytes_after_a_context_sum_to_one(train, context):
    before = nats_per_byte(train, context) * len(context)
    totals = [nats_per_byte(train, context + bytes([byte])) * (len(context) + 1) for byte in range(256)]
    assert math.isclose(np.exp(before - np.array(totals)).sum(), 1, rel_tol=1e-9)


def test_bytes_never_counted_cost_no_more_than_a_share_of_the_uniform_guess():
    assert math.isclose(nats_per_byte(b"a", b"b", 0), -math.log(1 / 2 / 256))


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="0 bytes to count and 3 to predict"):
        nats_per_byte(b"", b"abc")
    with pytest.raises(ValueError, match="3 bytes to count and 0 to predict"):
        nats_per_byte(b"abc", b"")


def test_on_the_default_text_it_gets_about_one_and_a_half_nats_a_byte():
    split = load_text()
    train, validation = ("\n\n".join(documents).encode() for documents in (split.train, split.validation))
    assert 1.4 < nats_per_byte(train, validation) < 1.7
    assert nats_per_byte(train, validation) < nats_per_byte(train, validation, context=2)
