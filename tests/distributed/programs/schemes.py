"""Each scheme against one process on the same global batches.

With two ranks every bit is the same: no sum of two depends on its order, and their mean is exact but for one rounding.
Only the norm of Zero is added up in another order than that of one process; so the one process clips by it, and the
norms are compared by themselves. With more ranks MPI chooses the order: then the ranks err, from what float64 gives,
no more than twice as much as one process does that adds up lane after lane.
"""

import sys
from dataclasses import replace

import numpy as np

import tinyarr as ta
from tests.distributed.programs.training import Run, Setting, train_alone, train_together
from tinyarr.compiler import Interpreter
from tinyarr.distributed import world

SCHEMES = ("data", "zero1", "zero2")
SEEDS = range(5)


def settings(model: str, dtype: str) -> list[Setting]:
    one = Setting(model, getattr(ta, dtype))
    twice = replace(one, accumulate=2)
    if world().size == 2:
        found = [one, replace(twice, compiled=True), replace(twice, optimizer="sgd")]
    else:
        found = [twice, replace(one, compiled=True)]
    return [*found, replace(twice, grad_dtype=ta.float32)] if dtype == "bfloat16" else found


def few_settings() -> list[tuple[Setting, tuple[str, ...]]]:
    """Those of the fast test."""
    one = Setting("gpt2", accumulate=2, steps=4)
    return [
        (one, ("data", "zero1")),
        (replace(one, model="llama3", dtype=ta.bfloat16), ("zero2",)),
        (replace(one, accumulate=1, compiled=True), ("zero2",)),
    ]


def check_bits(setting: Setting, schemes: tuple[str, ...] = SCHEMES) -> None:
    for name in schemes:
        run = train_together(name, setting)
        assert run == train_together(name, setting), ("two runs differ", name, setting)
        alone = train_alone(setting, name, None if name == "data" else run.norms)
        check_norms(run, alone)
        assert (run if name == "data" else replace(run, norms=alone.norms)) == alone, (name, setting)
        if setting.compiled:  # by NumPy, it gives the bits of eager mode
            by_numpy = train_together(name, replace(setting, build=Interpreter))
            assert by_numpy == train_together(name, replace(setting, compiled=False)), (name, setting)


def check_norms(run: Run, alone: Run) -> None:
    """At most twice as far from the exact norm as that of one process, or a few roundings."""
    found, own, exact = map(np.array, (run.norms, alone.norms, alone.exact))
    floor = 4 * np.finfo(np.float32).eps * exact
    assert (np.abs(found - exact) <= 2 * np.abs(own - exact).max() + floor).all(), (found, own, exact)


def check_errors(setting: Setting) -> None:
    """In the middle of some runs: where a gradient is nothing but rounding, AdamW goes a whole step by its sign."""
    exact = [train_alone(replace(setting, seed=s, wide=True, compiled=False)) for s in SEEDS]
    naive = [distances(train_alone(replace(setting, seed=s)), exact[s]) for s in SEEDS]
    floor = [float(ta.finfo(setting.dtype).eps) * sizes(e) for e in exact]
    allowed = 2 * np.median(naive, axis=0) + 4 * np.median(floor, axis=0)
    for name in SCHEMES:
        runs = [train_together(name, replace(setting, seed=s)) for s in SEEDS]
        found = np.median([distances(run, e) for run, e in zip(runs, exact)], axis=0)
        assert (found <= allowed).all(), (name, setting, found, allowed)
        assert runs[0] == train_together(name, replace(setting, seed=0)), ("two runs differ", name, setting)


def distances(run: Run, exact: Run) -> np.ndarray:
    """Between the losses, the norms and the weights."""
    pairs = zip(numbers(run), numbers(exact))
    return np.array([np.linalg.norm(x - y) for x, y in pairs])


def sizes(run: Run) -> np.ndarray:
    return np.array([np.linalg.norm(x) for x in numbers(run)])


def numbers(run: Run) -> list[np.ndarray]:
    return [np.array(run.losses), np.array(run.norms), run.vector()]


if __name__ == "__main__":
    if sys.argv[1:] == ["few"]:
        for setting, schemes in few_settings():
            check_bits(setting, schemes)
    else:
        for setting in settings(*sys.argv[1:]):
            (check_bits if world().size == 2 else check_errors)(setting)
    print("every scheme trains as one process does")
