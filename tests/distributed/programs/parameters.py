"""Parameters of every kind under each scheme: without gradient on some or all ranks, frozen, written by hand, few."""

import itertools
import re
from dataclasses import replace

import numpy as np

import tinyarr as ta
from tests.distributed.programs.training import OPTIMIZERS, Parallel, Setting, mean_of, scheme, weights_of
from tinyarr import Tensor
from tinyarr import distributed as d
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.distributed import world
from tinyarr.errors import ArgumentError

N, RANK = world().size, world().rank
SCHEMES = ("data", "zero1", "zero2")
NAMES = ("used", "by the first", "by the last", "by none", "used last")


def made(seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    found = [Tensor(rng.standard_normal((8, 16)) / 4, dtype=ta.float32) for _ in NAMES]
    for p in found:
        p.requires_grad = True
    return found


def loss_of(parameters: list[Tensor], x: Tensor, rank: int) -> Tensor:
    """The last parameters are used first, and so have their gradients last, on one rank not at all."""
    used, first, last, _, used_last = parameters
    y = x @ used_last.T
    for owner, p in ((0, first), (N - 1, last)):
        if rank == owner:
            y = ta.tanh(y) @ (p @ p.T)
    return ((y @ used) ** 2).mean()


def batch(step: int, rank: int) -> Tensor:
    return Tensor(np.random.default_rng((step, rank)).standard_normal((4, 16)), dtype=ta.float32)


def check_missing_gradients() -> None:
    """Those of some ranks count as zero elsewhere; what has none anywhere stays as it is, decay or not."""
    for rule, name, way in itertools.product(OPTIMIZERS, SCHEMES, ("eager", "NumPy", "C")):
        parameters = made(RANK)
        # Small enough that each parameter has a bucket of its own.
        parallel = scheme(name, [{"parameters": parameters, "weight_decay": 0.1}], bucket=1)
        optimizer = OPTIMIZERS[rule](parallel.groups)

        def step(x, parameters=parameters, parallel=parallel, optimizer=optimizer):
            loss_of(parameters, x, RANK).backward()
            parallel.reduce()
            norm = parallel.gradient_norm()
            optimizer.step()
            parallel.gather()
            optimizer.zero_grad()
            return norm

        step = {"eager": step, "NumPy": Compiled(step, build=Interpreter), "C": ta.compile(step)}[way]
        alone = made(0)
        own = OPTIMIZERS[rule]([{"parameters": alone, "weight_decay": 0.1}])
        for i in range(3):
            step(batch(i, RANK))
            gradients = []
            for rank in range(N):
                value = loss_of(alone, batch(i, rank), rank)
                value.backward()
                gradients.append([p.grad for p in alone])
                for p in alone:
                    p.grad = None
            for p, *of_ranks in zip(alone, *gradients):
                p.grad = mean_of(of_ranks)
            own.step()
            own.zero_grad()
        for title, p, expected, before in zip(NAMES, parameters, alone, made(0)):
            assert p.grad is None
            if N == 2 and way != "C":  # with more, sums depend on their order; C rounds otherwise
                assert np.array_equal(p.numpy(), expected.numpy()), (rule, name, title)
            assert np.array_equal(p.numpy(), before.numpy()) == (title == "by none"), (rule, name, title)
            assert len(set(world().exchange(str(p.tolist())))) == 1, "the ranks hold different bits"


def check_no_gradient_at_all() -> None:
    for name in SCHEMES:
        parameters = made(0)
        parallel = scheme(name, parameters)
        optimizer = OPTIMIZERS["adamw"](parallel.groups)
        parallel.reduce()
        optimizer.step()
        parallel.gather()
        assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(parameters, made(0)))


def check_parts_without_gradient() -> None:
    """A rank may own nothing but parts of parameters that have no gradient; all get the same norm."""
    for stage in (1, 2):
        parameters = made(0)
        parallel = d.Zero(parameters, stage=stage)  # in one bucket
        (parameters[0] * 3).sum().backward()
        parallel.reduce()
        assert parallel.gradient_norm().item() == 3 * np.sqrt(np.float32(8 * 16))


def check_frozen_parameters() -> None:
    """What the scheme does not get it neither sends nor changes."""
    for name in SCHEMES:
        model = Setting().make(RANK)
        for p in model.h[0].parameters():
            p.requires_grad = False
        kept = [np.array(p.numpy()) for p in model.h[0].parameters()]
        trained = [p for p in model.parameters() if p.requires_grad]
        parallel = scheme(name, trained)
        optimizer = OPTIMIZERS["sgd"](parallel.groups)
        before = weights_of(model)
        ((x, y),) = Setting().batches(0, RANK)
        model.loss(x, y).backward()
        parallel.reduce()
        optimizer.step()
        parallel.gather()
        assert all(np.array_equal(p.numpy(), k) for p, k in zip(model.h[0].parameters(), kept))
        assert sum(not np.array_equal(a, b) for a, b in zip(before, weights_of(model))) == len(trained)


def check_writing_by_hand() -> None:
    """After scatter() a run goes on from what was written; without it Zero would go on from what it owns."""
    for dtype in (ta.float32, ta.bfloat16):
        found = []
        for name in SCHEMES:
            parallel = Parallel(name, replace(Setting(dtype=dtype, clip=1e9), steps=2))
            parallel.run_step(0)
            with ta.no_grad():
                for p in parallel.model.parameters():
                    p.assign(p * 0.5)
            if name != "data":
                parallel.scheme.scatter()
            parallel.run_step(1)
            found.append(weights_of(parallel.model))
        if N == 2:
            for others in found[1:]:
                assert all(map(np.array_equal, found[0], others)), dtype


def raises(message: str, function) -> None:
    try:
        function()
    except ArgumentError as error:
        assert re.search(message, str(error)), error
    else:
        raise AssertionError(f"nothing was raised: {message}")


def check_errors() -> None:
    few = Tensor(np.ones(4), requires_grad=True)
    raises(f"too few to give each of {N} ranks", lambda: d.Zero([few]))
    raises("stage is 3", lambda: d.Zero(made(0), stage=3))
    raises("came twice", lambda: d.DataParallel([few, few]))
    shape = (4,) if RANK == 0 else (5,)
    different = Tensor(np.ones(shape), requires_grad=True)
    other = 1 if RANK == 0 else 0
    raises(f"replicate: rank {other} has tensors of other shapes", lambda: d.DataParallel([different]))
    raises("product", lambda: d.Mesh(data=N + 1))
    raises("members", lambda: world().subgroup([N]))
    raises("this rank is", lambda: world().subgroup([(RANK + 1) % N]))


def check_groups_of_one() -> None:
    """A scheme over this rank alone trains as no scheme does."""
    own = world().subgroup([RANK])
    found = []
    for name in (None, *SCHEMES):
        parameters = made(0)
        parallel = scheme(name, parameters, group=own) if name else None
        optimizer = OPTIMIZERS["adamw"](parallel.groups if parallel else parameters)
        loss_of(parameters, batch(0, 0), 0).backward()
        if parallel:
            parallel.reduce()
        optimizer.step()
        if parallel:
            parallel.gather()
        found.append([p.numpy().tobytes() for p in parameters])
    assert all(f == found[0] for f in found)


if __name__ == "__main__":
    check_missing_gradients()
    check_no_gradient_at_all()
    check_parts_without_gradient()
    check_frozen_parameters()
    check_writing_by_hand()
    check_errors()
    check_groups_of_one()
    print("parameters of every kind are right")
