import os

import pytest
from hypothesis import settings

REQUIRE_PARITY = os.environ.get("TINYARR_REQUIRE_PARITY") == "1"

# What a developer has set for their own runs must not change what the tests see.
for name in [name for name in os.environ if name.startswith("TINYARR_") and name != "TINYARR_REQUIRE_PARITY"]:
    del os.environ[name]

# No deadline: wall time on a busy machine says nothing about an example.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


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
