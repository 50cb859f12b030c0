"""The matrix products of a GPT-2 124M training step on the CPU, beside OpenBLAS (in NumPy) and PyTorch.

    python benchmarks/products.py [--rounds 3]

B=4 sequences of T=64 tokens make 256 rows; 768 x 256' is a matrix that lies transposed. Each system runs in a process
of its own, in turns, with all cores; of each product the median of all its runs counts. The last line is a step's worth
of all of them. Unset OPENBLAS_CORETYPE to see the kernel that OpenBLAS chooses itself; threadpoolctl, where it is
installed, tells which that is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

ROWS = 256
LAYERS = [(12, 768, 2304), (12, 768, 768), (12, 768, 3072), (12, 3072, 768), (1, 768, 50304)]  # how many, from, to

# (how many in a step, m, k, n, which operands are read transposed): outputs, gradients of inputs and of weights.
PRODUCTS = [
    product
    for count, a, b in LAYERS
    for product in ((count, ROWS, a, b, "y"), (count, ROWS, b, a, ""), (count, b, ROWS, a, "x"))
]
BEST_OF = 9


def operands(m: int, k: int, n: int, turned: str):
    import numpy as np

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(s, np.float32) for s in ((k, m) if "x" in turned else (m, k),
                                                         (n, k) if "y" in turned else (k, n)))  # fmt: skip
    return x, y, np.zeros((m, n), np.float32)


def numpy_product(m, k, n, turned) -> Callable[[], object]:
    import numpy as np

    x, y, out = operands(m, k, n, turned)
    x, y = x.T if "x" in turned else x, y.T if "y" in turned else y
    return lambda: np.matmul(x, y, out=out)


def torch_product(m, k, n, turned) -> Callable[[], object]:
    import torch

    x, y, out = map(torch.from_numpy, operands(m, k, n, turned))
    x, y = x.T if "x" in turned else x, y.T if "y" in turned else y
    return lambda: torch.matmul(x, y, out=out)


def tinyarr_product(m, k, n, turned) -> Callable[[], object]:
    import tinyarr

    x, y, out = map(tinyarr.Tensor, operands(m, k, n, turned))

    @tinyarr.compile
    def product() -> None:
        out.assign((x.T if "x" in turned else x) @ (y.T if "y" in turned else y))

    return product


SYSTEMS = {"tinyarr": tinyarr_product, "OpenBLAS": numpy_product, "PyTorch": torch_product}


def measure(system: str) -> list[list[float]]:
    """Seconds of each run of each product."""
    found = []
    for _, *product in PRODUCTS:
        run, seconds = SYSTEMS[system](*product), []
        run()
        for _ in range(BEST_OF):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        found.append(seconds)
    return found


def openblas() -> str:
    if importlib.util.find_spec("threadpoolctl") is None:
        return "unknown kernel"
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return ", ".join(str(pool.get("architecture")) for pool in threadpool_info()) or "unknown kernel"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one)))
        return
    systems = [name for name in SYSTEMS if name != "PyTorch" or importlib.util.find_spec("torch")]
    print(f"float32 products; {platform.machine()}, {os.cpu_count()} cores, OpenBLAS: {openblas()}, "
          f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}")  # fmt: skip
    runs: dict[str, list[list[float]]] = {name: [[] for _ in PRODUCTS] for name in systems}
    for _ in range(chosen.rounds):
        for name in systems:
            command = [sys.executable, __file__, "--one", name]
            done = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, stdout=subprocess.PIPE, check=True)
            for seconds, more in zip(runs[name], json.loads(done.stdout), strict=True):
                seconds += more
    print(f"{'GFLOP/s':34}" + "".join(f"{name:>10}" for name in systems))
    for i, (count, m, k, n, turned) in enumerate(PRODUCTS):
        left, right = (f"{a} x {b}" + "'" * (name in turned) for a, b, name in ((m, k, "x"), (k, n, "y")))
        rates = [2e-9 * m * k * n / statistics.median(runs[name][i]) for name in systems]
        print(f"{f'{count:2} of {left} by {right}':34}" + "".join(f"{rate:10.0f}" for rate in rates))
    totals = [sum(p[0] * statistics.median(s) for p, s in zip(PRODUCTS, runs[name], strict=True)) for name in systems]
    print(f"{'a step, ms':34}" + "".join(f"{1000 * total:10.0f}" for total in totals))


if __name__ == "__main__":
    main()
