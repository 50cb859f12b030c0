"""Ranks whose programs hold different collectives find out before they run them."""

import pytest

import tinyarr as ta
from tests.backends.cuda.recorded import Control
from tinyarr import Device
from tinyarr.compiler.check_collectives import agree
from tinyarr.distributed import all_gather, all_reduce, broadcast
from tinyarr.errors import TraceError
from tinyarr.groups import Group

META = Device("meta", like="cuda:sm_90")


class Told(Control):
    """The other ranks give what they are said to, else the same as this one."""

    def __init__(self, *others):
        super().__init__({})
        self.others, self.given = list(others), []

    def exchange(self, key, value, ranks, begun=None):
        self.given.append(value)
        return [value, *[self.others.pop(0) if self.others else value] * (len(ranks) - 1)]


def graph_of(function):
    compiled = ta.compile(function)
    compiled(ta.zeros((4,), device=META))
    return compiled.graphs[0]


def test_what_ranks_compute_alone_may_differ():
    controls = Told(), Told()
    one, other = (Group((0, 1), 0, control, {}) for control in controls)
    graph_of(lambda x: all_reduce(x, group=one))
    graph_of(lambda x: all_reduce(ta.exp(x) * 2, group=other) + x)
    assert controls[0].given == controls[1].given and len(controls[0].given) == 1


def test_the_error_names_ranks_and_the_first_collective_that_differs():
    group = Group((0, 1), 0, Told(), {})
    graph = graph_of(lambda x: all_gather(broadcast(all_reduce(x, group=group), group=group), group=group))
    group._control = Told("other", ["a", "b"], "reduce(...)")
    with pytest.raises(TraceError, match=r"rank 1 would run other collectives than rank 0.*number 1 is") as raised:
        agree(graph, "step")
    assert "rank 0: all_reduce(float32[4], group=Group(0,1), op=sum)" in str(raised.value)
    assert "test_check_collectives.py" in str(raised.value) and "rank 1: reduce(...)" in str(raised.value)


def test_a_group_compares_what_all_of_its_ranks_take_part_in():
    control = Told()
    world = Group((0, 1, 2, 3), 0, control, {})
    pair, other = world.subgroup([0, 1]), world.subgroup([0, 2])
    graph_of(lambda x: all_reduce(x, group=world) + all_reduce(x, group=other) + all_reduce(x, group=pair))
    assert len(control.given) == len(set(control.given)) == 3
