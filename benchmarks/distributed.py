"""What data parallelism sends and holds on the CPU, scheme by scheme, and how long its steps take.

    python -m benchmarks.distributed --ranks 1 2 4

A step is that of the training command, on ranks that MPI connects. Of each scheme (the training command's --zero) and
number of ranks it shows, beside what theory says:

sent: bytes that a rank hands on in a step if collectives are rings: of an all-reduce of N bytes 2 (n-1)/n N, of a
    reduce-scatter or all-gather (n-1)/n N. N is what MPI is given in the calls of one step, counted there.
state: bytes that outlive a step: parameters, gradients, moments, and ZeRO's copy of what a rank updates.
arena: bytes in which the programs of a step work.
step: milliseconds, the median; ranks share this machine's cores, each with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RING = {"Iallreduce": 2, "Ireduce_scatter_block": 1, "Iallgather": 1}  # times (n-1)/n of the whole


class Counted:
    """A communicator that adds up the bytes of what its collectives reduce or make, whole."""

    total = 0.0

    def __init__(self, communicator: Any):
        self._communicator = communicator

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._communicator, name)
        if name not in RING:
            return found
        ranks = self._communicator.size

        def counting(sent, received, *more):
            whole = max(x.nbytes for x in (sent, received) if isinstance(x, np.ndarray))
            Counted.total += RING[name] * (ranks - 1) / ranks * whole
            return found(sent, received, *more)

        return counting


def measure(job: argparse.Namespace) -> dict[str, float] | None:
    """What this rank finds; None but on the first."""
    import tinyarr
    from models.gpt2 import GPT2
    from models.options import TrainOptions
    from models.steps import make_programs
    from tinyarr import distributed, optim
    from tinyarr.backends.numpy import collective

    connect = collective._communicator
    collective._communicator = lambda group: Counted(connect(group))
    group = distributed.world()
    model = GPT2(GPT2.sizes[job.size], generator=tinyarr.Generator(0))
    parallel = distributed.share_out(model.parameter_groups(0.1), zero=job.zero)
    optimizer = optim.AdamW(parallel.groups, lr=1e-4)
    programs = make_programs(model, optimizer, parallel, TrainOptions(accumulate=job.accumulate))
    rng = np.random.default_rng(group.rank)
    shape = job.batch_size // group.size, job.seq_len
    batch = [tinyarr.Tensor(rng.integers(0, model.config.vocab_size, shape)) for _ in range(2)]
    seconds = []
    for _ in range(job.steps + 2):
        Counted.total, start = 0.0, time.perf_counter()
        losses = [programs.add_gradient(*batch) for _ in range(job.accumulate - 1)]
        programs.step(*batch, losses, 0.0)
        seconds.append(time.perf_counter() - start)
    plans = [plan for program in (programs.add_gradient, programs.step) for plan in program.memory]
    return None if group.rank else {
        "parameters": sum(p.nbytes for p in model.parameters()),
        "sent": Counted.total,
        "state": max(plan.state for plan in plans),
        "arena": max(plan.arena for plan in plans),
        "step": 1000 * statistics.median(seconds[2:]),
    }


def theory(scheme: int, ranks: int, parameters: float, batches: int) -> tuple[float, float]:
    """Bytes sent in a step, and bytes of state, in float32 with AdamW. Gradients outlive a program where k > 1."""
    once = (ranks - 1) / ranks * parameters
    if ranks == 1 or scheme == 0:
        return 2 * once, parameters * (3 + (batches > 1))
    own = 3 * parameters / ranks  # the copy and two moments
    gradients = 0.0 if batches == 1 else parameters if scheme == 1 else parameters / ranks
    return once * (2 if scheme == 1 else batches + 1), parameters + own + gradients


def run(job: argparse.Namespace, scheme: int, ranks: int) -> dict[str, float]:
    """`measure` on so many ranks."""
    here = ["-m", "benchmarks.distributed", "--one", str(scheme), *sys.argv[1:]]
    command = [sys.executable, "-m", "tinyarr", "launch", "--by", "mpi", "-n", str(ranks), *here]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{ranks} ranks ended with {done.returncode}")
    return json.loads(next(line for line in done.stdout.splitlines() if "{" in line).partition(" ")[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch-size", type=int, default=16, help="sequences of all ranks")
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", type=int, dest="zero", help=argparse.SUPPRESS)
    job = parser.parse_args()
    if job.zero is not None:
        found = measure(job)
        if found:
            print(json.dumps(found), flush=True)
        return
    from benchmarks.overhead import processor

    print(f"gpt2 {job.size}, float32, B={job.batch_size} T={job.seq_len} x {job.accumulate}; MB, in brackets theory")
    print(f"{processor()}, {os.cpu_count()} cores\n")
    print("ranks  --zero             sent            state    arena   step, ms")
    for ranks in job.ranks:
        for scheme in (0,) if ranks == 1 else (0, 1, 2):
            found = run(job, scheme, ranks)
            sent, state = theory(scheme, ranks, found["parameters"], job.accumulate)
            cells = [f"{found[key] / 1e6:8.2f} ({said / 1e6:6.2f})" for key, said in (("sent", sent), ("state", state))]
            print(f"{ranks:5}  {scheme:6}  {cells[0]}  {cells[1]} {found['arena'] / 1e6:8.2f} {found['step']:10.1f}")


if __name__ == "__main__":
    main()
