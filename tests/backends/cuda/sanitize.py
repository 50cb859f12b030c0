"""Runs every kernel under NVIDIA's compute-sanitizer: `python -m tests.backends.cuda.sanitize`, on a machine with a
GPU.

Three tools: memcheck (accesses out of bounds), racecheck (shared memory without a barrier), initcheck (reads of what
was never written). Each tensor gets a cudaMalloc of its own, since the tools see no overrun inside a pool. A program's
arena is one: what goes wrong there its guards find (TINYARR_GUARD). The libraries' kernels are left out: products and
attention run on ours. Before that, an overrun and a race planted on purpose must both be reported.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

REPORTED = 9  # the status with which the tools end where they have found something
OVERRUN = 'extern "C" __global__ void planted(float *out) { out[threadIdx.x + 1] = 1; }'
RACE = """extern "C" __global__ void planted(float *out)
{
    __shared__ float together[64];
    together[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = together[63 - threadIdx.x];
}"""
# memcheck: NCCL asks for kernels that it has not been built with, and goes on. racecheck would show what it makes of
# hazards alone, and that is at times nothing where there are some.
REPORT = {"memcheck": ["--report-api-errors", "no"], "racecheck": ["--racecheck-report", "all"]}


def main() -> int:
    """Runs the tools; 0 where they report what was planted and nothing else."""
    wrong, running = 0, []
    for tool, part, expected in (
        ("memcheck", "overrun", REPORTED), ("racecheck", "race", REPORTED),
        ("memcheck", "all", 0), ("racecheck", "all", 0), ("initcheck", "all", 0),
    ):  # fmt: skip
        command = ["compute-sanitizer", "--tool", tool, *REPORT.get(tool, []), "--error-exitcode", str(REPORTED),
                   sys.executable, "-m", "tests.backends.cuda.sanitize", part]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append((tool, part, expected, process))
    for tool, part, expected, process in running:
        printed, _ = process.communicate()
        right = process.returncode == expected
        wrong += not right
        last = [line for line in printed.splitlines() if "SUMMARY" in line][-1:]
        print(f"{tool:9} {part:8} {'as it should' if right else 'WRONG'}: {' '.join(last)}", flush=True)
        if not right:
            print(printed[:3000], "...", printed[-3000:], sep="\n", flush=True)
    return wrong


def separate_memory() -> None:
    """Every tensor in a cudaMalloc of its own; the libraries' paths are closed."""
    import cupy

    from tinyarr import Device
    from tinyarr.backends.cuda.libraries import cublaslt, cudnn

    class Separate:
        def malloc(self, nbytes: int):
            return cupy.cuda.MemoryPointer(cupy.cuda.Memory(max(nbytes, 1)), 0)

        def total_bytes(self) -> int:
            return 0

        def free_all_blocks(self) -> None:
            """Nothing is kept."""

    Device("cuda").backend.memory._pool = Separate()
    cublaslt.is_available = cudnn.is_available = lambda: False


def launch_planted(text: str) -> None:
    from tinyarr import Device, empty
    from tinyarr.backends.cuda.planning.registry import Launch, LaunchPlan, Output, Source

    backend, out = Device("cuda").backend, empty((64,), device="cuda")
    launch = Launch(Source(text=text), "planted", (1, 1, 1), (64, 1, 1), (Output(0),))
    backend.loader.bind(LaunchPlan([launch]))([], [out.array.data.address])
    backend.synchronize()


def run_everything() -> None:
    """Each sample once or twice in each class of dtypes, large ones, attention and slots in all forms; training."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    import tinyarr
    from models.gpt2 import GPT2, Config
    from tests.backends.cuda import test_prologues
    from tests.backends.cuda.place import on
    from tests.compiler.trace import test_programs_with_state
    from tests.samples import SAMPLES
    from tests.test_primitives import operands, values_of
    from tinyarr import Tensor, dtypes

    few = settings(max_examples=2, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
                   suppress_health_check=list(HealthCheck))  # fmt: skip

    def run_cases(sample, kinds):
        @few
        @given(st.data())
        def check(data):
            case = data.draw(sample.cases)
            for dtype in kinds:
                with tinyarr.use_device("cpu"):
                    lying = operands(data.draw, case, dtype)
                sample.function(*(on("cuda", x) for x in lying), **case.params)

        check()

    rng = np.random.default_rng(0)
    with tinyarr.use_device("cuda"):
        for sample in SAMPLES.values():
            kinds = [d for d in (dtypes.float32, dtypes.bfloat16, dtypes.int64) if d in sample.takes]
            kinds = kinds or list(sample.takes[:1]) or [None]

            run_cases(sample, kinds)
            if sample.large is not None and dtypes.float32 in sample.takes:
                for dtype in (dtypes.float32, dtypes.bfloat16):
                    case = sample.large
                    kinds = [o.dtype or dtype for o in case.operands]
                    large = [Tensor(values_of(o, d)(rng, o.shape), dtype=d) for o, d in zip(case.operands, kinds)]
                    sample.function(*large, **case.params)
        for D in (64, 128):
            for causal in (False, True):
                q = tinyarr.randn(2, 4, 70, D, dtype=dtypes.bfloat16, requires_grad=True)
                k = tinyarr.randn(2, 2, 133, D, dtype=dtypes.bfloat16, requires_grad=True)
                out = tinyarr.scaled_dot_product_attention(q, k, k, is_causal=causal, enable_gqa=True)
                out.sum().backward()
        x = tinyarr.randn(3000, 65, requires_grad=True)
        for axis in (None, 0, 1):
            x.sum(axis=axis).sum().backward()
        tinyarr.randn(300_000).sum()
        for name in test_prologues.ROWS:
            for shape in test_prologues.SHAPES[:2]:
                test_prologues.test_filled_slots_give_the_bits_of_separate_kernels(name, shape, dtypes.bfloat16)
        model = GPT2(Config(vocab_size=257, block_size=64, n_layer=1, n_head=2, n_embd=128, dropout=0.1),
                     dtype=dtypes.bfloat16, device="cuda")  # fmt: skip
        optimizer = tinyarr.optim.AdamW(model.parameter_groups(0.1))

        def step(tokens):
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            tinyarr.optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        first, second = (Tensor(rng.integers(0, 257, (2, 65))) for _ in range(2))
        eager, compiled, in_less = step, tinyarr.compile(step), tinyarr.compile(step, memory_budget=0)
        for run in (eager, compiled, in_less):
            for tokens in (first, first, first, second, second, second):  # launched, captured, replayed; copied first
                run(tokens)
        for function in test_programs_with_state.SPECIAL:
            test_programs_with_state.check(function, 0)
    tinyarr.cuda.synchronize()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(1 if main() else 0)
    separate_memory()
    os.environ["TINYARR_GUARD"] = "1"
    {"overrun": lambda: launch_planted(OVERRUN), "race": lambda: launch_planted(RACE), "all": run_everything}[
        sys.argv[1]
    ]()
