"""Costs of one eager operation on a small tensor, beside torch, and of a call of a compiled function.

The processor time of one thread, so a busy machine matters less; the median over fresh processes, which take turns,
so that neither library is measured in what the other left behind. Of a compiled call it is all but the program itself,
which is replaced by one that gives the results of an earlier call: what it takes to see that nothing has changed, and
to find the memory that the program reads and writes.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import timeit
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

GOAL = ("x + y", 4.0)  # microseconds, on an idle machine
LAYERS = {12: None, 48: 200.0}  # of GPT-2, and the goal for the call of a step
OPERATIONS = (  # with the tape on
    "x + y", "x + row", "x * 2.0", "x @ y", "gelu(x)", "x.reshape(2, 8)", "x.sum()", "softmax(x, -1)",
    "layer_norm(x, row)",
)  # fmt: skip
READING = (  # as data loaders and generation do, of (64, 64), with nothing to record
    "data[5:13]", "z[3]", "z[:, -1]", "[i for i in at]", "stack([data[i : i + 8] for i in range(32)])", "at[3].item()",
    "data[at[0] : at[0] + 8]", "z[at]", "where(z > 0, z, 0.0)", "concat((z, z))", "zeros((3, 3))",
    "z.__setitem__(3, 1.0)", "z.__setitem__(z > 9, 1.0)",
)  # fmt: skip
CALLS, REPEATS, PROCESSES = 5_000, 15, 3
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def measure(library: str) -> dict[str, float]:
    """Microseconds an operation, the median of several repeats."""
    lib = import_module(library)
    is_torch = library == "torch"
    gelu = lib.nn.functional.gelu if is_torch else lib.gelu
    norm = (lambda x, weight: lib.layer_norm(x, weight.shape, weight)) if is_torch else lib.layer_norm
    names = {"gelu": gelu, "layer_norm": norm, "concat": lib.cat if is_torch else lib.concat}
    names |= {name: getattr(lib, name) for name in ("softmax", "stack", "where", "zeros")}
    names |= {"x": lib.rand(4, 4), "y": lib.rand(4, 4), "row": lib.rand(4)}
    names |= {"data": lib.arange(10_000), "z": lib.rand(64, 64), "at": lib.arange(32)}
    names["x"].requires_grad = True
    costs = {}
    for operation in (*OPERATIONS, *READING):
        timer = timeit.Timer(operation, globals=names, timer=time.thread_time)
        calls = CALLS if operation in OPERATIONS else CALLS // 10
        timer.timeit(calls)
        costs[operation] = statistics.median(timer.repeat(REPEATS, calls)) / calls * 1e6
    return costs


class Replayed:
    """Runs a program once, and gives the same results at each later call."""

    def __init__(self, program):
        self._program, self._results = program, None

    def run(self, *state):
        if self._results is None:
            self._results = self._program.run(*state)
        return self._results


def measure_calls() -> dict[str, float]:
    """Microseconds that a call of a compiled function takes beside its program, the median of several repeats."""
    import tinyarr
    from models.gpt2 import GPT2, Config

    def cost(function, arguments, calls):
        compiled = tinyarr.compile(function)
        compiled(*arguments)
        program = compiled._programs[0]
        program.runner = Replayed(program.runner)
        timer = timeit.Timer(lambda: compiled(*arguments), timer=time.thread_time)
        timer.timeit(calls)
        return statistics.median(timer.repeat(REPEATS, calls)) / calls * 1e6

    costs = {"x * 2": cost(lambda x: x * 2, [tinyarr.ones(4)], CALLS)}
    for layers in LAYERS:
        model = GPT2(Config(vocab_size=64, block_size=8, n_layer=layers, n_head=1, n_embd=8))
        optimizer = tinyarr.optim.AdamW(model.parameters())

        def step(tokens, targets, model=model, optimizer=optimizer):
            loss = model.loss(tokens, targets)
            loss.backward()
            tinyarr.optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        tokens = tinyarr.Tensor([[1, 2, 3, 4]])
        costs[f"GPT-2, {len([*model.parameters()])} parameters"] = cost(step, [tokens, tokens], 100)
    return costs


def in_fresh_process(library: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, library]
    root = str(Path(__file__).parents[1])
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": root}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def processor() -> str:
    """The processor's name, as Linux or else Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    load = os.getloadavg()[0]
    runs = [(in_fresh_process("tinyarr"), in_fresh_process("torch")) for _ in range(PROCESSES)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch"))
    print(f"{processor()}, {os.cpu_count()} cores, load {load:.1f}; Python {platform.python_version()}, {versions}")
    print("float32, one thread; microseconds an operation")
    for operations, what in ((OPERATIONS, "(4, 4), tape on"), (READING, "(64, 64), nothing recorded")):
        print(f"\n{what:<44}  tinyarr    torch    ratio")
        for operation in operations:
            ours, theirs = (statistics.median(run[i][operation] for run in runs) for i in (0, 1))
            goal = f"   goal {GOAL[1]:.1f}" if operation == GOAL[0] else ""
            print(f"{operation:<44} {ours:>8.2f} {theirs:>8.2f} {ours / theirs:>8.2f}{goal}")
    calls = [in_fresh_process("calls") for _ in range(PROCESSES)]
    print("\na compiled call without its program, microseconds\n")
    for name, goal in zip(calls[0], (None, *LAYERS.values()), strict=True):
        ours = statistics.median(run[name] for run in calls)
        print(f"{name:<24} {ours:>8.1f}" + (f"   goal {goal:.0f}" if goal else ""))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure_calls() if sys.argv[1] == "calls" else measure(sys.argv[1])))
    else:
        main()
