"""A compiled training step beside PyTorch's: its time, the time to the end of the first one, and its memory.

    python -m benchmarks.train --model gpt2 --size 124M --device cuda --peer torch

A step is forward, backward, clipping of the gradient's norm and AdamW, on the same tokens for all systems. Each system
runs in processes of its own, in turns: in each round one whose caches of compiled code are empty (cold), and one that
finds there what the first left (warm).

step: seconds of the wall clock around some steps, one on the CPU and ten on CUDA, that end by waiting for the device;
    nothing inside reads a result. Steps of all processes count, but for the first three of each.
first step: seconds from the start of the process, Python and imports included, until it is computed.
memory: on the CPU the process' largest resident set. On CUDA what cudaMemGetInfo calls used after the last step, less
    what it said when the process had made its context and nothing else: all systems take memory from pools that keep
    what they have, so that is the peak. Other programs must leave the card alone meanwhile.
counted: the plan's arena, scratch and state, and what PyTorch's allocator counts as allocated at its peak.
MFU: (6 N + 6 L C T) FLOP a token, N the parameters of the products and causal attention at half, over the card's dense
    bfloat16 peak; for known cards.

With --collectives the gradients go over NCCL (on the CPU MPI) among one rank, in the buckets of DataParallel: what
that adds to a step of tinyarr is what data parallelism costs beside the time on the wire.

With --profile a table of the kernels of tinyarr's step follows, measured in its last process (benchmarks/NOTES.md).

The peer is benchmarks/peers.py under torch.compile (torch-eager: without it), with fused AdamW and, on CUDA, float32
products in TF32. In bfloat16 tinyarr has bfloat16 parameters and float32 masters and AdamW state; PyTorch has float32
parameters under autocast, or with --all-bf16 neither masters nor any float32 state.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CACHES = ("TINYARR_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH")
TOUCHED = 32  # bytes a parameter: itself, gradient, two moments in float32, and as much beside
WARM_UP = 2  # steps after the first that aren't timed
PROFILED = 5  # steps whose kernels are timed one by one
DEFAULTS = {  # batch size, sequence length, timed steps, and how many of them between two waits
    "cpu": dict(batch_size=4, seq_len=64, steps=10, block=1, dtype="float32"),
    "cuda": dict(batch_size=64, seq_len=1024, steps=50, block=10, dtype="bfloat16"),
}
OPTIMIZER = dict(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0)


def model_classes() -> dict[str, Any]:
    from models.gpt2 import GPT2
    from models.llama3 import Llama3

    return {"gpt2": GPT2, "llama3": Llama3}


class Tinyarr:
    """A training step: one program, or where gradients accumulate one called for each batch and another to update."""

    def __init__(self, job: Any):
        import tinyarr

        self.job, self.tinyarr = job, tinyarr

    def memory_info(self) -> tuple[int, int]:
        from cupy.cuda import runtime

        return runtime.memGetInfo()

    def build(self, tokens: np.ndarray) -> None:
        tinyarr, job = self.tinyarr, self.job
        model_class = model_classes()[job.model]
        model = model_class(
            model_class.sizes[job.size], dtype=getattr(tinyarr, job.dtype), device=job.device)
        groups = model.parameter_groups(job.weight_decay)
        parallel = tinyarr.distributed.DataParallel(groups) if job.collectives else None
        optimizer = tinyarr.optim.AdamW(groups, lr=job.lr, betas=job.betas)
        self.batches = [[tinyarr.Tensor(x, device=job.device) for x in (batch[:, :-1], batch[:, 1:])]
                        for batch in tokens]
        accumulate = len(tokens)

        def add_gradient(tokens, targets):
            loss = model.loss(tokens, targets)
            (loss / accumulate if accumulate > 1 else loss).backward()
            return loss

        def update():
            if parallel is not None:
                parallel.reduce()
            tinyarr.optim.clip_grad_norm(optimizer.parameters, job.clip)
            optimizer.step()
            optimizer.zero_grad()

        def whole_step(tokens, targets):
            loss = add_gradient(tokens, targets)
            update()
            return loss

        functions = (add_gradient, update) if accumulate > 1 else (whole_step,)
        self.programs = [tinyarr.compile(f, memory_budget=job.memory_budget) for f in functions]

    def step(self) -> Any:
        add_gradient, *update = self.programs
        for tokens, targets in self.batches:
            loss = add_gradient(tokens, targets)
        for program in update:
            program()
        return loss

    def wait(self) -> None:
        if self.job.device == "cuda":
            self.tinyarr.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        plans = [plan for program in self.programs for plan in program.memory]
        versions = {"Python": platform.python_version(), "NumPy": np.__version__, "tinyarr": self.tinyarr.__version__}
        found = {
            # Programs of a device share an arena; the update reaches all that outlives a step.
            "counted": max(p.arena + p.scratch for p in plans) + max(p.state for p in plans),
        }
        if self.job.device == "cuda":
            import cupy

            runtime = cupy.cuda.runtime
            versions |= {"CuPy": cupy.__version__, "CUDA": runtime.runtimeGetVersion(),
                         "driver for CUDA": runtime.driverGetVersion()}
            found["card"] = self.tinyarr.cuda.get_device_name()
        return found | {"versions": versions}

    def kernels(self, replayed: float) -> str:
        """The table of a step's kernels. replayed: the seconds that a step takes when they aren't timed."""
        from benchmarks import step_kernels

        programs = [runner for program in self.programs for runner in program.programs]
        with contextlib.ExitStack() as stack:
            timings = [stack.enter_context(runner.timed()) for runner in programs]
            for _ in range(PROFILED):
                self.step()
        launches = [
            launch for runner, calls in zip(programs, timings, strict=True)
            for launch in step_kernels.medians(runner.kernels, calls, PROFILED)]
        rates = step_kernels.measure_rates(getattr(self.tinyarr, self.job.dtype))
        return step_kernels.table(step_kernels.grouped(launches, rates), rates, self.job.dtype, replayed)


def torch_step(job: Any, compiled: bool) -> Any:
    from benchmarks.peers import Torch

    return Torch(job, compiled)


SYSTEMS = {
    "tinyarr": Tinyarr,
    "torch": lambda job: torch_step(job, True),
    "torch-eager": lambda job: torch_step(job, False),
}


def measure(name: str, folder: Path, started: float) -> dict[str, Any]:
    """What one process of a system finds, which began at `started`; the folder has the job and its tokens."""
    job = SimpleNamespace(**json.loads((folder / "job.json").read_text()))
    job.config = SimpleNamespace(**job.config)
    system = SYSTEMS[name](job)

    def used() -> int:
        if job.device == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
        free, total = system.memory_info()
        return total - free

    context = used() if job.device == "cuda" else 0
    system.build(np.load(folder / "tokens.npy"))
    loss = system.step()
    system.wait()
    found: dict[str, Any] = {"first": time.time() - started, "losses": [loss.item()]}
    for _ in range(WARM_UP):
        system.step()
    system.wait()
    block = min(job.block, job.steps)
    seconds = []
    for _ in range(job.steps // block):
        start = time.perf_counter()
        for _ in range(block):
            loss = system.step()
        system.wait()
        seconds.append((time.perf_counter() - start) / block)
    found |= {"steps": seconds, "context": context, "memory": used() - context}
    found["losses"].append(loss.item())
    if job.profile and name == "tinyarr":
        found["kernels"] = system.kernels(statistics.median(seconds))
    return found | system.facts()


def run(name: str, folder: Path, caches: str, job: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process that keeps compiled code in a folder."""
    if job.device == "cpu":
        # A virtual machine may have given unused memory back: whoever touches it first waits, here a process before.
        touch = f"import numpy; numpy.ones({TOUCHED * job.parameters}, 'u1')"
        subprocess.run([sys.executable, "-c", touch], check=True)
    folders = {variable: f"{caches}/{variable}" for variable in CACHES}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **folders, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-m", "benchmarks.train", "--one", name, str(folder), str(time.time())]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(pairs: list[list[dict[str, Any]]], job: argparse.Namespace) -> dict[str, float | None]:
    """The numbers of one system, from a cold and a warm process a round."""
    from models.train import mfu

    every = [found for pair in pairs for found in pair]
    blocks = [seconds for found in every for seconds in found["steps"]]
    step = statistics.median(blocks)
    rate = job.accumulate * job.batch_size * job.seq_len / step
    share = mfu(rate * job.flops_per_token, job.card) if job.card and job.dtype == "bfloat16" else None
    cold, warm = zip(*pairs, strict=True)

    def median(processes, key, unit=1.0):
        values = [found[key] for found in processes if key in found]
        return statistics.median(values) / unit if values else None

    return {
        "tokens/s": rate,
        "step, median, ms": 1000 * step,
        "step, best, ms": 1000 * min(blocks),
        "MFU, %": share and 100 * share,
        "first step, cold, s": median(cold, "first"),
        "first step, warm, s": median(warm, "first"),
        "memory, cold, GiB": median(cold, "memory", 2**30),
        "memory, warm, GiB": median(warm, "memory", 2**30),
        "counted, GiB": median(every, "counted", 2**30),
        "empty context, GiB": median(every, "context", 2**30) or None,
        "loss, first step": statistics.median(found["losses"][0] for found in every),
        "loss, last step": statistics.median(found["losses"][1] for found in every),
    }


def report(results: dict[str, list[list[dict[str, Any]]]], job: argparse.Namespace) -> str:
    """Everything found, as a table with a column a system, and ratios of tinyarr's numbers to each peer's."""
    first = {name: pairs[0][0] for name, pairs in results.items()}
    versions = {what: version for found in reversed(first.values()) for what, version in found["versions"].items()}
    job.card = first["tinyarr"].get("card")
    tokens = f"B={job.batch_size} T={job.seq_len}" + f" x {job.accumulate}" * (job.accumulate > 1)
    lines = [
        f"{job.model} {job.size}, {job.parameters:,} parameters, {tokens}, {job.dtype}; {datetime.date.today()}",
        job.card or processor(),
        f"Command: python -m benchmarks.train {shlex.join(job.arguments)}",
        ", ".join(f"{what} {version}" for what, version in versions.items()),
        "",
        " ".join([f"{'':20}", *(f"{name:>12}" for name in results), *(f"{'/ ' + peer:>14}" for peer in job.peer)]),
    ]
    columns = [summary(pairs, job) for pairs in results.values()]
    for label in columns[0]:
        ours, *theirs = values = [column[label] for column in columns]
        if any(value is not None for value in values):
            digits = 0 if label == "tokens/s" else 1 if label.endswith(("ms", "s", "%")) else 2
            cells = [f"{'' if value is None else f'{value:,.{digits}f}':>12}" for value in values]
            compared = not label.startswith(("loss", "empty"))
            ratios = [f"{ours / peer:14.2f}" if compared and ours and peer else "" for peer in theirs]
            lines.append(" ".join([f"{label:20}", *cells, *ratios]).rstrip())
    lines += ["", "step, median of each process, ms (cold and warm, round after round):"]
    for name, pairs in results.items():
        medians = (statistics.median(found["steps"]) for pair in pairs for found in pair)
        lines.append(" ".join([f"{name:20}", *(f"{1000 * median:.1f}" for median in medians)]))
    if job.profile:
        lines += ["", results["tinyarr"][-1][-1]["kernels"]]
    return "\n".join(lines)


def processor() -> str:
    """The processor, and what the speed of NumPy's and PyTorch's products depends on."""
    from benchmarks.overhead import processor

    variables = ("OPENBLAS_CORETYPE", "OMP_NUM_THREADS")
    chosen = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in variables)
    return f"{processor()}, {os.cpu_count()} cores ({chosen})"


def options() -> argparse.Namespace:
    """The command line, checked and completed."""
    import tinyarr

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2", choices=model_classes())
    parser.add_argument("--size", default=None, help="of the model; else 124M or 1B")
    parser.add_argument("--device", default="cpu", choices=DEFAULTS)
    parser.add_argument("--peer", nargs="+", default=["torch"], choices=["torch", "torch-eager", "none"])
    parser.add_argument("--batch-size", type=int, help="sequences; else 4, or 64 on CUDA")
    parser.add_argument("--seq-len", type=int, help="tokens of each; else 64, or 1024 on CUDA")
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one update")
    parser.add_argument("--steps", type=int, help="timed in each process; else 10, or 50 on CUDA")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="else float32, or bfloat16 on CUDA")
    parser.add_argument("--all-bf16", action="store_true", help="PyTorch's parameters and AdamW state in bfloat16")
    parser.add_argument("--checkpoint", action="store_true", help="PyTorch computes each block again in backward")
    parser.add_argument("--collectives", action="store_true", help="tinyarr's gradients go over NCCL, of one rank")
    parser.add_argument("--memory-budget", type=float, help="GiB, of tinyarr.compile")
    parser.add_argument("--data", help="token shards in llm.c's format, as a quoted pattern; else random tokens")
    parser.add_argument("--profile", action="store_true", help="on CUDA: time each kernel of tinyarr's step, too")
    parser.add_argument("--out", type=Path, help="a file to write the result to, too")
    chosen = parser.parse_args()
    for name, value in DEFAULTS[chosen.device].items():
        if getattr(chosen, name, None) is None:
            setattr(chosen, name, value)
    model_class = model_classes()[chosen.model]
    sizes = model_class.sizes
    chosen.size = chosen.size or ("124M" if chosen.model == "gpt2" else "1B")
    if chosen.size not in sizes:
        parser.error(f"--size {chosen.size}: {chosen.model} has {', '.join(sizes)}")
    config = sizes[chosen.size]
    if chosen.seq_len > config.block_size:
        parser.error(f"--seq-len {chosen.seq_len}: {chosen.size} has {config.block_size} positions: give fewer")
    for name in ("batch_size", "seq_len", "accumulate", "steps", "rounds"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(chosen, name)}: give 1 or more")
    chosen.peer = [peer for peer in chosen.peer if peer != "none"]
    if chosen.peer and importlib.util.find_spec("torch") is None:
        parser.error("--peer torch: PyTorch is not installed: install it, or give --peer none")
    if chosen.profile and chosen.device != "cuda":
        parser.error(f"--profile: it times CUDA's kernels: give --device cuda, not {chosen.device}")
    if chosen.device == "cuda":
        missing = tinyarr.cuda.missing()
        if missing is not None:
            parser.error(f"--device cuda: {missing}")
    if chosen.memory_budget is not None:
        chosen.memory_budget = int(chosen.memory_budget * 2**30)
    model = model_class(config, device=tinyarr.Device("meta"))  # its shapes
    chosen.parameters = sum(p.size for p in model.parameters())
    chosen.flops_per_token = model.flops_per_token(chosen.seq_len)
    chosen.arguments, chosen.config = sys.argv[1:], asdict(config)
    return chosen


def draw_tokens(job: argparse.Namespace) -> np.ndarray:
    """Token ids (accumulate, B, T + 1), int64: those of the shards, or random ones."""
    vocabulary = job.config["vocab_size"]
    if job.data is None:
        return np.random.default_rng(0).integers(0, vocabulary, (job.accumulate, job.batch_size, job.seq_len + 1))
    from tinyarr.data import Batches, read_shards

    batches = Batches(read_shards(job.data), job.batch_size, job.seq_len, vocab_size=vocabulary)
    read = [batches.batch(number) for number in range(job.accumulate)]
    return np.stack([np.concatenate([tokens, targets[:, -1:]], axis=1) for tokens, targets in read])


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        name, folder, started = sys.argv[2:]
        print(json.dumps(measure(name, Path(folder), float(started))))
        return
    job = options()
    results: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in ("tinyarr", *job.peer)}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "tokens.npy", draw_tokens(job))
        (Path(folder) / "job.json").write_text(json.dumps({**vars(job), **OPTIMIZER}, default=str))
        for _ in range(job.rounds):
            for name, pairs in results.items():
                with tempfile.TemporaryDirectory() as caches:
                    pairs.append([run(name, Path(folder), caches, job) for _ in ("cold", "warm")])
    text = report(results, job)
    print(text)
    if job.out is not None:
        job.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
