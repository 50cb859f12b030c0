import functools
import os

import numpy as np
import pytest
from hypothesis import settings

from tinyarr.backends.numpy import NumpyBackend
from tinyarr.backends.numpy.pool import Pool

REQUIRE_PARITY = os.environ.get("TINYARR_REQUIRE_PARITY") == "1"
ALL_EXAMPLES = os.environ.get("TINYARR_ALL_EXAMPLES") == "1"  # see tiers.py

# What a developer has set for their own runs must not change what the tests see.
OF_TESTS = ("TINYARR_REQUIRE_PARITY", "TINYARR_ALL_EXAMPLES")
for name in [name for name in os.environ if name.startswith("TINYARR_") and name not in OF_TESTS]:
    del os.environ[name]

# No deadline: wall time on a busy machine says nothing about an example.
DRAWN = 100 if ALL_EXAMPLES else 25
settings.register_profile("dev", deadline=None, max_examples=DRAWN)
settings.register_profile("ci", deadline=None, max_examples=DRAWN, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def poisoned(allocate):
    """Fresh memory holds 0xFF bytes, NaN for floats, so that a kernel that leaves an element unwritten is caught."""

    @functools.wraps(allocate)
    def wrapper(*args):
        result = allocate(*args)
        memory = getattr(result, "storage", result).memory
        memory.reshape(-1).view(np.uint8).fill(0xFF)
        return result

    return wrapper


# Here and not in a fixture: what runs while tests are collected is kept for later calls.
NumpyBackend.empty = poisoned(NumpyBackend.empty)
Pool.allocate = poisoned(Pool.allocate)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")


def pytest_addoption(parser):
    name = "the device on which test_primitives.py runs the sample records (-p MODULE imports what registers it)"
    parser.addoption("--backend", default="cpu", help=name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if item.get_closest_marker("parity") and not hasattr(report, "wasxfail"):
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if collector.path.is_file() and "mark.parity" in collector.path.read_text(encoding="utf-8"):
        fail_if_skipped(report)
    return report


def fail_if_skipped(report):
    if REQUIRE_PARITY and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"TINYARR_REQUIRE_PARITY=1, but a parity test was skipped: {report.longrepr[2]}"
