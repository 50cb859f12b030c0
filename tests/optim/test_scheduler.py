"""Schedulers: the learning rate of each step, in all groups, and where a resumed one goes on."""

import pytest

import tinyarr
from tinyarr import optim, schedule


def optimizer():
    a, b = (tinyarr.ones(2, requires_grad=True) for _ in range(2))
    return optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=1.0)


def test_each_step_has_the_rate_of_the_schedule_in_all_groups():
    rate = schedule.cosine(2.0, 6, warmup=2)
    owner = optimizer()
    scheduler = optim.Scheduler(owner, rate)
    for step in range(8):
        assert scheduler.last_step == step
        assert [group["lr"].item() for group in owner.param_groups] == [rate(step), rate(step) / 2]
        scheduler.step()


@pytest.mark.parity
def test_a_function_of_one_s_own_is_torch_s_steps():
    import torch

    p = torch.ones(2, requires_grad=True)
    other = torch.optim.SGD([p], lr=0.1)
    theirs = torch.optim.lr_scheduler.StepLR(other, step_size=3, gamma=0.5)
    owner = optimizer()
    ours = optim.Scheduler(owner, lambda step: 0.1 * 0.5 ** (step // 3))
    for _ in range(10):
        assert owner.lr.item() == pytest.approx(theirs.get_last_lr()[0], rel=1e-15)
        other.step()
        theirs.step()
        ours.step()


def test_a_resumed_scheduler_goes_on_and_a_compiled_step_reads_its_rate():
    owner, rate = optimizer(), schedule.linear(1.0, 10)
    scheduler = optim.Scheduler(owner, rate)
    run = tinyarr.compile(owner.step)
    for step in range(3):
        before = owner.parameters[0].numpy().copy()
        for p in owner.parameters:
            p.grad = tinyarr.ones(2)
        run()
        assert (before - owner.parameters[0].numpy()).tolist() == pytest.approx([rate(step)] * 2)
        scheduler.step()
    assert len(run.graphs) == 1
    other = optimizer()
    resumed = optim.Scheduler(other, rate)
    resumed.load_state_dict(scheduler.state_dict())
    assert other.lr.item() == owner.lr.item() == rate(3) and resumed.last_step == 3


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="Scheduler: rate is float: give a function of the step"):
        optim.Scheduler(optimizer(), 0.1)


def test_a_rate_that_is_no_number_is_refused_and_leaves_the_step():
    with pytest.raises(TypeError, match=r"^Scheduler: rate\(0\) is NoneType: it must be a number$"):
        optim.Scheduler(optimizer(), lambda step: None)
    scheduler = optim.Scheduler(optimizer(), lambda step: None if step else 0.5)
    with pytest.raises(TypeError, match=r"^Scheduler: rate\(1\) is NoneType"):
        scheduler.step()
    assert scheduler.last_step == 0 and scheduler.optimizer.lr.item() == 0.5
