"""The launcher: what the ranks say is told by whom, all end together, and nothing is left of them."""

import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.processes import MEETING, ROOT, clean, is_alive, seconds, wait_for
from tests.tiers import slow
from tinyarr.distributed.runtime import launch

ENDS = 5.0 + 5.0  # seconds for a death to end all, and for two Pythons to start on a busy machine

BOTH = "mpi", "tcp"

# What a rank does, the status of the run, what the other does, and what it says then.
FAILURES = {
    "exit": ("sys.exit(3)", 3, "collective()", "RankError: wait: rank 1 ({}) has ended without reaching all_reduce"),
    "exception": ("raise ValueError('wrong')", 1, "collective()", "RankError: wait: rank 1 ({}) raised ValueError"),
    "kill": ("os.kill(os.getpid(), 9)", 137, "time.sleep(60)", "tinyarr: rank 0 ends: rank 1 ({}) has ended without"),
}
SLOW_FAILURES = [slow("tcp", "exception"), slow("mpi", "kill"), slow("tcp", "kill"), *(slow(by, "exit") for by in BOTH)]

ways = pytest.mark.parametrize("by", BOTH)
one_way_or_slow = pytest.mark.parametrize("by", ["mpi", slow("tcp")])


class Launcher:
    """A launcher that runs a piece of Python, in a file, on two ranks."""

    def __init__(self, folder, by, code, *arguments, options=(), variables=()):
        script = folder / "a script.py"
        script.write_text(code)
        command = [sys.executable, "-m", "tinyarr", "launch", "-n", "2", "--by", by, *options, str(script), *arguments]
        environment = clean() | {"PYTHONPATH": str(ROOT), "TEST_FOLDER": str(folder), "TEST_TIMEOUT": "30"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment | dict(variables), text=True, **pipes)
        self._folder = folder

    def end(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def pids(self):
        """The process ids that the ranks have written, once both have."""
        texts = wait_for(lambda: all_of_two([file.read_text() for file in self._folder.glob("pid.*")]))
        return [int(text) for text in texts]


def all_of_two(texts):
    return texts if len(texts) == 2 and all(texts) else None


PIDS = """
import os, signal, sys, time
rank = int(os.environ.get("PMI_RANK", os.environ.get("RANK")))
def write_pid():
    with open(f"{os.environ['TEST_FOLDER']}/pid.{rank}", "w") as file:
        file.write(str(os.getpid()))
"""


def lines(text, rank):
    return [line.removeprefix(f"[{rank}] ") for line in text.splitlines() if line.startswith(f"[{rank}] ")]


@one_way_or_slow
def test_every_line_tells_its_rank_and_arguments_arrive_as_they_were(tmp_path, by):
    arguments = ["a b", "", "it's", '"$HOME"', "--timeout", "-n", "*", "ü\n!"]
    code = """
import sys
print(sys.argv[1:])
print("half a line", end="")
print(" and its end\\n\\nthe last has none", end="")
print("an error", file=sys.stderr)
"""
    status, out, err = Launcher(tmp_path, by, code, *arguments).end()
    assert status == 0
    for rank in range(2):
        assert lines(out, rank) == [str(arguments), "half a line and its end", "", "the last has none"]
        assert lines(err, rank) == ["an error"]
    assert len(out.splitlines()) == 8 and len(err.splitlines()) == 2


@pytest.mark.slow
@ways
def test_lines_come_as_they_are_written(tmp_path, by):
    launcher = Launcher(tmp_path, by, "import time\nprint('now')\ntime.sleep(60)")
    assert re.fullmatch(r"\[[01]\] now\n", launcher.process.stdout.readline())
    launcher.process.terminate()
    launcher.end()


def test_a_module_is_run_by_its_name():
    command = [sys.executable, "-m", "tinyarr", "launch", "-n", "2", "--by", "mpi", "-m", "calendar", "2026", "1"]
    run = subprocess.run(command, cwd=ROOT, env=clean(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "January 2026" in lines(run.stdout, 1)[0]


SHARE = str(max(len(os.sched_getaffinity(0)) // 2, 1))


@pytest.mark.parametrize(
    "chosen, options, expected",
    [
        slow({}, [], [SHARE, SHARE, None]),
        ({"OMP_NUM_THREADS": "7"}, ["--timeout", "5"], ["7", "7", "5.0"]),
        slow({"OPENBLAS_NUM_THREADS": "6"}, [], [SHARE, "6", None]),
    ],
)
def test_ranks_share_the_cores_unless_the_user_says_otherwise(tmp_path, chosen, options, expected):
    names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TINYARR_TIMEOUT"
    code = f"import os; print([os.environ.get(name) for name in {names}])"
    _, out, _ = Launcher(tmp_path, "tcp", code, options=options, variables=chosen).end()
    assert lines(out, 0) == lines(out, 1) == [str(expected)]


@pytest.mark.parametrize("by, kind", [("mpi", "exception"), *SLOW_FAILURES])
def test_a_rank_that_fails_gives_its_status_and_the_others_say_why(tmp_path, by, kind):
    fails, status, other, told = FAILURES[kind]
    # mpiexec ends the others at once where MPI was in use; but then a rank ends only with all, in MPI_Finalize.
    mpi = "from mpi4py import MPI" if by == "mpi" and kind != "exit" else ""
    code = f"{MEETING}\n{mpi}\nif place.rank == 1: {fails}\n{other}"
    took, (found, _, err) = seconds(Launcher(tmp_path, by, code).end)
    assert found == status
    assert re.search(re.escape(told).replace(r"\{\}", ".*"), "\n".join(lines(err, 0)))
    assert took < ENDS


@pytest.mark.slow
@ways
def test_a_rank_that_hears_nothing_is_ended_by_force(tmp_path, by):
    code = f"""{PIDS}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
write_pid()
if rank == 0:
    time.sleep(60)
time.sleep(1)
sys.exit(4)
"""
    launcher = Launcher(tmp_path, by, code)
    pids = launcher.pids()
    took, (status, _, _) = seconds(launcher.end)
    assert status == 4 and took < 1 + 4 + 5 + ENDS
    assert not any(map(is_alive, pids))


@pytest.mark.slow
def test_mpi_collectives_end_though_a_rank_raises(tmp_path):
    code = f"""{MEETING}
from mpi4py import MPI
if place.rank == 1: raise ValueError("wrong")
control.begin(everyone, 1, "all_reduce")
request = MPI.COMM_WORLD.Iallreduce(MPI.IN_PLACE, bytearray(8))
control.wait(request.Test, everyone, 1, range(2))
"""
    took, (status, _, err) = seconds(Launcher(tmp_path, "mpi", code).end)
    assert status == 1 and "RankError: wait: rank 1 (" in err
    assert took < ENDS


@pytest.mark.parametrize(
    "by, number",
    [("mpi", signal.SIGINT), slow("mpi", signal.SIGTERM), slow("tcp", signal.SIGINT), ("tcp", signal.SIGTERM)],
)
def test_signals_reach_the_ranks_which_decide(tmp_path, by, number):
    code = f"""{PIDS}
heard = []
signal.signal({int(number)}, lambda *_: heard.append(1))
write_pid()
while not heard: time.sleep(0.01)
print("heard one")
with open(os.environ["TEST_FOLDER"] + f"/heard.{{rank}}", "w"): pass
while len(heard) < 2: time.sleep(0.01)
print("heard two")
sys.exit(5 if rank else 0)
"""
    launcher = Launcher(tmp_path, by, code)
    launcher.pids()
    launcher.process.send_signal(number)
    wait_for(lambda: len(list(tmp_path.glob("heard.*"))) == 2)
    launcher.process.send_signal(number)
    status, out, _ = launcher.end()
    assert status == 5
    assert lines(out, 0) == lines(out, 1) == ["heard one", "heard two"]


@one_way_or_slow
def test_nothing_is_left_when_the_launcher_is_killed(tmp_path, by):
    launcher = Launcher(tmp_path, by, f"{PIDS}\nwrite_pid()\ntime.sleep(60)")
    pids = launcher.pids()
    assert all(map(is_alive, pids))
    launcher.process.kill()
    launcher.process.wait()
    took, _ = seconds(lambda: wait_for(lambda: not any(map(is_alive, pids))))
    assert took < 5.0
    launcher.end()


@pytest.mark.slow
@ways
def test_what_a_rank_has_started_ends_with_the_run(tmp_path, by):
    code = f"{PIDS}\nif os.fork() == 0: write_pid(); time.sleep(60)\ntime.sleep(0.5)"
    launcher = Launcher(tmp_path, by, code)
    pids = launcher.pids()
    assert launcher.end()[0] == 0
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow
def test_shared_memory_of_killed_ranks_is_removed_and_no_other(tmp_path):
    shared = Path("/dev/shm")
    before = set(shared.glob("*"))
    code = "from mpi4py import MPI; import os; MPI.COMM_WORLD.barrier(); os.kill(os.getpid(), 9)"
    assert Launcher(tmp_path, "mpi", code).end()[0] == 137
    left = {file for file in set(shared.glob("*")) - before if not launch._is_mapped(file)}
    assert not [file for file in left if file.name.startswith(("mpich_shm", "ucx_shm"))]


def test_shared_memory_that_is_older_or_in_use_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_SHARED", tmp_path)
    names = "mpich_shm_old", "mpich_shm_mapped", "mpich_shm_left", "another"
    for name in names:
        (tmp_path / name).write_bytes(bytes(4096))
    began = time.time() - 10
    os.utime(tmp_path / "mpich_shm_old", (began - 5, began - 5))
    with open(tmp_path / "mpich_shm_mapped", "r+b") as file, mmap.mmap(file.fileno(), 0):
        launch._clean(began)
        assert {file.name for file in tmp_path.iterdir()} == set(names) - {"mpich_shm_left"}


@pytest.mark.parametrize("by", ["tcp", slow("mpi")])
def test_ranks_have_a_secret_of_this_run_which_no_command_shows(tmp_path, by):
    code = """
import os
from pathlib import Path
commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline")]
secret = os.environ["TINYARR_SECRET"]
print(secret, any(secret.encode() in command for command in commands))
"""
    _, out, _ = Launcher(tmp_path, by, code, variables={"TINYARR_SECRET": "of an earlier run"}).end()
    assert re.fullmatch("[0-9a-f]{64} False", lines(out, 0)[0]) and lines(out, 0) == lines(out, 1)


def test_a_missing_mpiexec_is_told_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(launch.ArgumentError, match="there is no mpiexec: pip install mpi4py mpich"):
        launch._mpiexec()


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "tinyarr", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_without_a_command_that_is_known_the_help_is_printed():
    found = run()
    assert found.returncode == 2 and "launch" in found.stdout and "cache" in found.stdout
    unknown = run("fly")
    assert unknown.returncode == 2 and "invalid choice: 'fly'" in unknown.stderr


def test_a_number_of_ranks_that_makes_no_run_is_an_error():
    found = run("launch", "-n", "0", "x.py")
    assert found.returncode == 2 and "launch: -n is 0: it must be at least 1" in found.stderr
