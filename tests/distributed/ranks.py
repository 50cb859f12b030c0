"""Programs on several ranks: real processes, started by mpiexec."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
SECONDS = 300.0  # after which a program that hangs is ended


def run(program: str, ranks: int, *args: str, seconds: float = SECONDS) -> str:
    """What the ranks print. Fails with all of it where one fails, which ends the others, or where they take too long.
    """
    mpiexec = Path(sys.executable).with_name("mpiexec")
    python = [sys.executable, "-m", "mpi4py", PROGRAMS / f"{program}.py", *args]
    command = [mpiexec, "-prepend-rank", "-n", str(ranks), *python]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env = {**os.environ, **one_thread, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as late:
        shown = (late.stdout or b"").decode()
        raise AssertionError(f"{program} with {ranks} ranks took longer than {seconds} s:\n{shown}") from None
    assert done.returncode == 0, f"{program} with {ranks} ranks failed:\n{done.stdout}"
    return done.stdout
