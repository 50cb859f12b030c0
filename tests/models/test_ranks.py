"""Training on many ranks: what one process learns, whatever dies, and however many go on."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models import checkpoint
from tests.distributed.processes import clean, is_alive, wait_for
from tests.models.test_train import CLOCK, SIGNALS, WHOLE
from tests.tiers import slow
from tinyarr import distributed

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("micro_ranks.py")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a text of many different sentences."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(f"The {n}th word of {n * n} is {n * 7919}." for n in range(200)))
    return tmp_path


def start(ranks, line, *, timeout=30):
    """`python -m models.gpt2 <line>` on so many ranks."""
    launch = [sys.executable, "-m", "tinyarr", "launch", "--by", "mpi", "-n", str(ranks), "--timeout", str(timeout)]
    environment = clean() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen([*launch, str(PROGRAM), *line.split()], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def command(ranks, line):
    """Exit status, standard output and standard error of `start`."""
    run = start(ranks, line)
    out, error = run.communicate(timeout=120)
    return run.returncode, out, error


def log(path):
    """The records of a run, less their clocks."""
    lines = (Path(path) / "log.jsonl").read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]  # a killed rank may leave half a line
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in whole]


def newest(path):
    """The state and the files of a run's newest checkpoint, less their names, which tell how often it was saved."""
    found = checkpoint.newest(Path(path))
    return found.state, [file.read_bytes() for file in found.files]


def assert_alike(one, other):
    """Two runs that add up in different orders: the numbers that they log differ in the last bits of float32."""
    pairs = zip(log(one), log(other), strict=True)
    for ours, theirs in ([{k: v for k, v in record.items() if v is not None} for record in pair] for pair in pairs):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("zero", [slow(0), slow(1), 2])
def test_two_ranks_learn_what_one_process_does(zero):
    status, _, error = command(1, f"train {WHOLE} --accumulate 2 --out one")
    assert status == 0, error
    status, out, error = command(2, f"train {WHOLE} --accumulate 2 --zero {zero} --out two")
    assert status == 0, error
    assert_alike("one", "two")
    assert "two: gpt2 tiny, 9,584 parameters, 2 ranks" in out
    assert all(line.startswith("[0] ") for line in out.splitlines() if "loss" in line)  # the first rank alone prints
    assert Path("two/loss.png").exists()
    exported = [Path(run, "hugging_face/model.safetensors").stat().st_size for run in ("one", "two")]
    assert exported[0] == exported[1]


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "dtype"), [(0, "float32"), (1, "bfloat16"), (2, "float32"), (2, "bfloat16")])
def test_the_same_number_of_ranks_gives_the_same_bits(zero, dtype):
    for out in ("a", "b"):
        status, _, error = command(4, f"train {WHOLE} --zero {zero} --dtype {dtype} --out {out}")
        assert status == 0, error
    assert log("a") == log("b")
    assert len(newest("a")[1]) == 4 and newest("a") == newest("b")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks_and_another_scheme():
    assert command(1, f"train {WHOLE} --out whole")[0] == 0
    run = start(4, f"train {WHOLE} --zero 2 --out part")
    wait_for(lambda: Path("part/log.jsonl").exists() and '"step": 1' in Path("part/log.jsonl").read_text(), 60)
    run.send_signal(signal.SIGINT)
    out, error = run.communicate(timeout=60)
    assert run.returncode == 130, error
    assert "stopped at step " in error and "launch -n 4 -m models.gpt2 train --resume part" in error
    assert len(newest("part")[1]) == 4
    step = int(re.search("stopped at step ([0-9]+)", error)[1])
    assert [record["step"] for record in log("part")] == [*range(step)]
    shutil.copytree("part", "alone")
    status, out, error = command(1, "train --resume alone")
    assert status == 0, error
    assert len(newest("alone")[1]) == 1 and len([*Path("alone").glob("checkpoint*")]) == 4
    assert_alike("whole", "alone")
    status, out, error = command(2, "train --resume part --zero 1")
    assert status == 0, error
    assert "note: ranks was 4, is 2" in out
    assert len(newest("part")[1]) == 2 and len([*Path("part").glob("checkpoint*")]) == 6
    assert_alike("whole", "part")


def test_a_mistake_is_told_once_and_by_all_ranks_understood():
    status, out, error = command(2, f"train {WHOLE} --batch-size 3 --out run")
    told = [line for line in error.splitlines() if "models.gpt2:" in line]
    assert status == 2 and len(told) == 1, error
    assert "--batch-size 3 can't be shared out evenly among 2 ranks" in told[0]
    assert not Path("run").exists()


def ranks_of_run():
    """The process ids of the ranks that run here, in order."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            here = os.readlink(process / "cwd") == os.getcwd()
            command = (process / "cmdline").read_bytes().split(b"\0")
            variables = dict(v.split(b"=", 1) for v in (process / "environ").read_bytes().split(b"\0") if b"=" in v)
        except OSError:  # it has ended, or is no process
            continue
        if here and command[1:2] == [str(PROGRAM).encode()] and b"PMI_RANK" in variables:
            found[int(variables[b"PMI_RANK"])] = int(process.name)
    return [found[rank] for rank in sorted(found)]


def shared_memory(pid):
    """The files in shared memory that a process has mapped."""
    try:
        return re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text())
    except OSError:
        return []


def kill_one(ranks, line, moment, victim):
    """Kills a rank some seconds after all have started, if they still run; nothing of the run is left then.

    Returns the launcher's status, what was said, and the seconds to the end.
    """
    run = start(ranks, line)
    pids = wait_for(lambda: ranks_of_run() if len(ranks_of_run()) == ranks else run.poll() is not None and [0], 60)
    time.sleep(moment)
    shared = {name for pid in pids for name in shared_memory(pid)}
    since = time.monotonic()
    if pids != [0] and is_alive(pids[victim]):
        os.kill(pids[victim], signal.SIGKILL)
    _, error = run.communicate(timeout=60)
    assert not any(is_alive(pid) for pid in pids if pid)
    assert not any(map(os.path.exists, shared))
    return run.returncode, error, time.monotonic() - since


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_the_launcher_saves_and_stops_all_ranks(ranks, number):
    run = start(ranks, f"train {WHOLE} --steps 3000 --no-compile --out run")
    wait_for(lambda: Path("run/log.jsonl").exists() and '"step": 1' in Path("run/log.jsonl").read_text(), 60)
    run.send_signal(number)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and "stopped at step " in error, error
    assert checkpoint.newest(Path("run")).state["step"] == log("run")[-1]["step"] + 1


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_a_run_survives_any_rank_killed_at_any_moment(zero, folder):
    """25 times each: all end at once, nothing is left behind, and the run ends as if nothing had happened."""
    longer = "--text text.txt --seq-len 8 --batch-size 4 --steps 60 --eval-every 3"
    assert command(2, f"train {longer} --zero {zero} --out whole")[0] == 0
    chance = random.Random(zero)
    kills, slowest = 0, 0.0
    while kills < 25:
        has_begun = Path("part/config.json").exists()
        line = "train --resume part" if has_begun else f"train {longer} --zero {zero} --out part"
        status, error, seconds = kill_one(2, line, chance.uniform(0, 2), chance.randrange(2))
        if status:
            kills, slowest = kills + 1, max(slowest, seconds)
            assert status == 128 + signal.SIGKILL, error
            assert seconds < 5 + 2, error  # the promise, and the launcher's own end on a busy machine
        if Path("part/log.jsonl").exists() and [record["step"] for record in log("part")][-1:] == [60]:  # it was done
            assert log("part") == log("whole") and newest("part") == newest("whole")
            shutil.rmtree("part")
    if Path("part/config.json").exists():
        assert command(2, "train --resume part")[0] == 0
        assert log("part") == log("whole") and newest("part") == newest("whole")
    print(f"the slowest end took {slowest:.1f} s")


def test_one_process_is_a_world_of_its_own():
    assert distributed.world().size == 1 and distributed.rank() == 0 and distributed.local_rank() == 0
