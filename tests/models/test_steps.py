"""Steps of training that follow each other: what the host's seconds are counted as."""

from types import SimpleNamespace

import pytest

from models import steps


@pytest.mark.parametrize(("launching", "computing", "expected"), [
    (5, 0, [5, 5, 5, 5]),  # on the CPU launching is computing
    (1, 5, [5, 6, 5, 6]),  # on a GPU the next is launched meanwhile, if no validation comes
    (5, 1, [5, 6, 5, 6]),  # or, where the host is slower, the step is done by then
])
def test_the_seconds_of_steps_are_all_that_the_host_spends_on_them(monkeypatch, launching, computing, expected):
    clock = done = 100.0

    class Value:
        """A result of a step: there once the GPU has done all that was launched before."""

        def __init__(self):
            self.at = done

        def copy_to_host_async(self):
            self.at = done

        def item(self):
            nonlocal clock
            clock = max(clock, self.at)
            return 1.0

    def step(*_):
        nonlocal clock, done
        clock += launching
        done = max(clock, done) + computing
        return Value(), Value(), Value()

    programs = SimpleNamespace(step=step, seconds=0.0)
    monkeypatch.setattr(steps.time, "perf_counter", lambda: clock)
    found = []
    running = steps.Steps(programs, SimpleNamespace(), iter([()] * 4), 1, lambda *given: found.append(given[-1]))
    for step in range(4):
        if step == 2:
            running.read()
            clock += 50  # a validation
        running.launch(step, 0.1, None)
    running.read()
    assert found == expected
