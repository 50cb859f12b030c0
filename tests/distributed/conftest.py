import pytest

from tests.distributed.runtime.controls import Run


@pytest.fixture
def start_run():
    """A run in this process; its arguments are those of Run."""
    runs = []

    def make(**options):
        runs.append(Run(**options))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


@pytest.fixture
def pair(start_run):
    """The controls of ranks in this process, two of them if no other number is given."""

    def make(**options):
        run = start_run(**options)
        return [run.join(rank) for rank in range(run.size)]

    return make
