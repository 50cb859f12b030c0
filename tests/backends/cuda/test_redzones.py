"""TINYARR_GUARD=1: nothing in a program's arena shares memory, and what goes beyond its own is found."""

from dataclasses import replace

import numpy as np
import pytest

import tinyarr as ta
from tests.backends.cuda.bound import bound
from tests.backends.cuda.sanitize import OVERRUN
from tests.backends.cuda.test_lowering import KINDS, MODELS, graphs
from tinyarr import Device
from tinyarr.backends.cuda.planning.registry import Launch, LaunchPlan, Output, Source
from tinyarr.backends.cuda.program import redzones
from tinyarr.backends.cuda.program.redzones import Gap, GuardedBlock
from tinyarr.compiler.compiled import GUARD
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.uses import nbytes
from tinyarr.errors import DeviceError


@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)
@pytest.mark.parametrize("name", MODELS)
def test_behind_all_that_a_training_step_works_in_lies_a_guard(name, dtype):
    for graph in graphs(name, dtype):
        planned = plan(graph, GUARD)
        lowered = bound(planned)
        taken = [(planned.place(v).offset, nbytes(v)) for v in planned.lives]
        for task in lowered.tasks:
            scratch = zip((place.offset for place in task.scratch), task.plan.scratch, strict=True)
            copies = zip(task.outputs, task.makes, strict=True)
            copies = [(y.offset, nbytes(x)) for y, x in copies if y.buffer == "arena" and y.offset >= planned.arena]
            taken += [*scratch, *copies]
        ends = {at + size for at, size in taken if size}
        free = redzones.gaps(redzones.blocks(lowered.tasks), planned.arena + lowered.scratch)
        assert {gap.start for gap in free} == ends
        assert all(gap.end - gap.start >= GUARD for gap in free)


def test_gaps_are_what_no_block_takes_and_name_their_neighbours():
    taken = [
        GuardedBlock(0, 4, "a"),
        GuardedBlock(8, 12, "b"),
        GuardedBlock(8, 12, "b in place"),
        GuardedBlock(9, 10, "a part of b"),
    ]
    behind_a, behind_b = redzones.gaps(taken, 20)
    assert behind_a == Gap(4, 8, ("a",), ("b", "b in place")) and behind_b == Gap(12, 20, ("b", "b in place"), ())
    untouched = np.full(4, redzones.FILLED, np.uint8)
    redzones.raise_for(behind_a, untouched)
    untouched[1] = 0
    with pytest.raises(DeviceError, match=r"(?s)bytes 1 to 1 of the 4 behind what was made by\n  a\n.*\n  b\n"):
        redzones.raise_for(behind_a, untouched)


def softmax_of_products(x):
    return ta.softmax(ta.tanh(x) @ x) @ x


@pytest.fixture
def program(monkeypatch):
    """Runs softmax_of_products, guarded; it has run once, without complaint."""
    monkeypatch.setenv("TINYARR_GUARD", "1")
    run, x = ta.compile(softmax_of_products), ta.ones((8, 8), device="cuda")
    assert run(x).tolist() == softmax_of_products(x).tolist()
    (made,) = run.programs
    made._before = ()  # so that launches run one by one once more before they are captured
    return lambda: run(x), made._launches


def shift(launches, number, offset):
    task, steps = launches[number]
    (place,) = task.outputs
    launches[number] = replace(task, outputs=(place._replace(offset=place.offset + offset),)), steps


@pytest.mark.cuda
@pytest.mark.parametrize(("offset", "side"), [(16, "behind"), (-16, "before")])
def test_a_result_that_is_written_elsewhere_is_found_launched_captured_and_replayed(program, offset, side):
    run, launches = program
    places = [task.outputs[0] for task, _ in launches]
    # Not the one at the arena's start, before which there is other memory.
    number = next(i for i, place in enumerate(places) if place.buffer == "arena" and place.offset >= -offset)
    shift(launches, number, offset)
    for _ in range(3):
        with pytest.raises(DeviceError, match=rf"(?s){side} what was made by\n  {launches[number][0].title} "):
            run()


@pytest.mark.cuda
def test_an_element_too_many_is_found(program):
    run, launches = program
    planted = Launch(Source(text=OVERRUN), "planted", (1, 1, 1), (64, 1, 1), (Output(0),))
    task, steps = launches[0]
    launches[0] = task, [*steps, *Device("cuda").backend.loader.steps(LaunchPlan([planted]))]
    for _ in range(3):
        with pytest.raises(DeviceError, match=r"bytes 0 to 3 of the 512 behind what was made by\n  tanh float32"):
            run()


@pytest.mark.cuda
def test_what_is_read_before_it_is_written_is_no_number(program):
    run, launches = program
    del launches[0]
    for _ in range(3):
        assert np.isnan(run().numpy()).all()
