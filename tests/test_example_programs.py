"""The programs that people port run as they stand, and come to their known results."""

import re
from pathlib import Path

import pytest

from tests.test_examples import numbers, printed_by
from tests.tiers import slow

PROGRAMS = sorted((Path(__file__).parents[1] / "examples" / "programs").glob("*.py"))


def last(pattern, printed):
    """The numbers of the last line that has a pattern."""
    return numbers([line for line in printed.splitlines() if re.search(pattern, line)][-1])


def separates_the_moons(printed):
    assert last("accuracy", printed)[-1] == 100


def sorts(printed):
    assert last("sorted", printed)[0] >= 99


def comes_near_the_entropy(printed):
    loss, entropy = last("entropy", printed)
    assert entropy < loss < 1.03 * entropy


def reaches_the_likelihood_of_pca(printed):
    bound, likelihood = last("likelihood", printed)
    assert bound == pytest.approx(likelihood, abs=0.05)


def generates_the_distribution(printed):
    _, mean, std = last("mean", printed)
    assert mean == pytest.approx(3, abs=0.5) and std == pytest.approx(0.5, abs=0.2)


def fits_a_new_sine_in_a_step(printed):
    before, after = last("after a step", printed)
    assert after < 1 < before


def follows_the_spiral(printed):
    assert last("error of the path", printed)[0] < 0.15


def solves_the_equation(printed):
    assert last("largest error", printed)[-1] < 0.01


def finds_the_minimum(printed):
    (error,) = re.findall(r"largest error (\S+)", printed)
    assert float(error) < 1e-12


def reads_the_digits(printed):
    assert last("read", printed)[0] >= 97


def adds_what_is_marked(printed):
    assert last("error on new", printed)[0] < 0.01


RESULTS = {
    "moons": separates_the_moons,
    "sorter": sorts,
    "makemore": comes_near_the_entropy,
    "vae": reaches_the_likelihood_of_pca,
    "gan": generates_the_distribution,
    "maml": fits_a_new_sine_in_a_step,
    "neural_ode": follows_the_spiral,
    "pinn": solves_the_equation,
    "newton_cg": finds_the_minimum,
    "convolution": reads_the_digits,
    "recurrent": adds_what_is_marked,
}
QUICK = ("moons", "pinn")


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in RESULTS])
def test_a_program_comes_to_its_known_result(name, tmp_path):
    RESULTS[name](printed_by(f"programs/{name}.py", folder=tmp_path))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_short_and_has_a_known_result(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80 and path.stem in RESULTS
