"""The gradient tests catch wrong gradient rules."""

import pytest

from tests.mutate_gradients import measure


@pytest.mark.slow
def test_every_flipped_sign_and_nearly_every_other_mutant_is_caught():
    survivors, counts = measure()
    told = "\n".join(map(str, survivors))
    assert counts["sign"][0] == counts["sign"][1], told
    assert sum(total for _, total in counts.values()) > 250
    for kind, (caught, total) in counts.items():
        assert caught >= 0.95 * total, f"{kind}:\n{told}"
