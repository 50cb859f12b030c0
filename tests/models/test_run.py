"""The folder of a run: never overwritten, never damaged, and enough to repeat the run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import tinyarr
from models import checkpoint
from models.options import Stop, TrainOptions
from models.run import Run, check_free, environment, newest, saved_options
from models.train import open_run
from tinyarr import distributed, optim, saving, tuning

ROOT = Path(__file__).parents[2]
OPTIONS = {"size": "tiny", "steps": 3, "text": None, "lr": 0.1}
CONFIG = {"model": "toy", "options": OPTIONS, "environment": environment()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Size:
    n: int = 1


class Toy(tinyarr.nn.Module):
    name, config = "toy", Size()

    def __init__(self, *values):
        self.x = tinyarr.nn.Parameter(tinyarr.Tensor(list(values), dtype=tinyarr.float32))


def state(*values, momentum=0.0):
    """A model of one tensor, its optimizer, and what says that there is one process."""
    model = Toy(*values)
    parallel = distributed.OneRank(model.parameters())
    optimizer = optim.AdamW(parallel.groups)
    optimizer.state_of(model.x)["m"].assign(momentum)
    return model, optimizer, parallel


def record(step, loss=2.0, val_loss=None):
    return dict(step=step, loss=loss, val_loss=val_loss, lr=0.1, grad_norm=1.0, tokens_per_s=10.0, mfu=None,
                memory_gib=0.1, seconds=float(step))


def twice_saved():
    """A run with checkpoints of two steps."""
    run = Run.start("run", CONFIG)
    for step in (1, 2):
        run.log(record(step - 1))
        run.save(step, *state(step, momentum=step), tinyarr.Generator(step))
    return run


def saved(folder=None, steps=2):
    """A run with `steps` records and a checkpoint of the state after them."""
    run = Run.start(folder, CONFIG)
    for step in range(steps):
        run.log(record(step))
    run.save(steps, *state(1, 2, momentum=3), tinyarr.Generator(5))
    return run


def contents(folder):
    """The bytes of a run's checkpoints, by file."""
    return {path.name: path.read_bytes() for path in folder.glob("checkpoint*")}


def test_runs_without_a_name_take_the_next_free_number():
    assert [str(Run.start(None, CONFIG).folder) for _ in range(3)] == ["runs/1", "runs/2", "runs/3"]


def test_runs_that_start_at_once_get_a_folder_each():
    start = "from models.run import Run; print(Run.start(None, {}).folder)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, env=env) for _ in range(3)]
    assert sorted(process.communicate()[0] for process in started) == [b"runs/1\n", b"runs/2\n", b"runs/3\n"]


@pytest.mark.parametrize("name", [
    "config.json", "log.jsonl", "checkpoint.safetensors", "checkpoint.1.step0.json", "tuning.json", "loss.png"])
def test_a_folder_that_holds_any_file_of_a_run_is_not_taken(folder, name):
    (folder / "mine").mkdir()
    (folder / "mine" / name).write_text("precious")
    with pytest.raises(Stop, match="--out mine already exists: go on with --resume mine, or choose another name"):
        Run.start("mine", CONFIG)
    assert (folder / "mine" / name).read_text() == "precious"


def test_a_folder_that_holds_exported_weights_is_not_taken(folder):
    (folder / "mine/hugging_face").mkdir(parents=True)
    with pytest.raises(Stop, match="--out mine already exists"):
        Run.start("mine", CONFIG)


@pytest.mark.parametrize("files", [
    {}, {"log.jsonl": ""}, {"log.jsonl": "", "config.json": json.dumps(CONFIG)},
    {"log.jsonl": "", "config.json": json.dumps(CONFIG), "tuning.json": "{}"},
    {"log.jsonl": "", "config.json": json.dumps(CONFIG), "checkpoint.1.step0.0of2.safetensors": "half"},
])
def test_what_a_run_leaves_that_has_not_trained_gives_way_to_a_new_one(folder, files):
    (folder / "mine").mkdir()
    for name, text in files.items():
        (folder / "mine" / name).write_text(text)
    Run.start("mine", CONFIG | {"model": "another"})
    assert sorted(path.name for path in (folder / "mine").iterdir()) == ["config.json", "log.jsonl"]
    assert Run.open("mine").config["model"] == "another"


def test_a_file_is_no_folder_but_an_empty_folder_is_taken(folder):
    (folder / "file").touch()
    with pytest.raises(Stop, match="--out file already exists"):
        check_free(folder.joinpath("file").relative_to(folder))
    (folder / "empty").mkdir()
    assert str(Run.start("empty", CONFIG).folder) == "empty"


def test_what_a_run_was_given_and_has_logged_can_be_read_back():
    run = saved()
    assert Run.open(run.folder) == run
    assert [record["step"] for record in run.records] == [0, 1]


@pytest.mark.parametrize("line", [
    b'{"step": 2, "lo', b'{"step": 2, "lo{"step": 2}', b"\xff\0", b"[1]", b"[" * 100_000, b"7", b'{"step": 7}',
    json.dumps(record(2) | {"step": "2"}).encode(), json.dumps(record(2) | {"loss": [1]}).encode(),
    json.dumps(record(2) | {"seconds": None}).encode(),
])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_torn_or_foreign_line_of_the_log_is_left_out(line, place):
    run = saved()
    log = Path("runs/1/log.jsonl")
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:place], line, *lines[place:]]) + b"\n" * (place < 2))
    found = Run.open("runs/1")
    assert found.records == run.records and found.strangers == 1


def test_of_records_of_one_step_the_last_counts():
    saved().log(record(0, loss=1.0))
    assert Run.open("runs/1").records == [record(0, loss=1.0), record(1)]


def test_records_newer_than_the_checkpoint_are_forgotten(folder):
    run = saved(steps=3)
    run.back_to(1)
    assert (folder / "runs/1/log.jsonl").read_text() == json.dumps(record(0)) + "\n"
    assert Run.open("runs/1").records == run.records == [record(0)]


@pytest.mark.parametrize(("missing", "message"), [
    ("config.json", "runs/1 holds no run: runs/1/config.json is missing"),
    ("log.jsonl", "runs/1 holds no run: runs/1/log.jsonl is missing"),
    ("checkpoint.1.step2.json", "runs/1 has no checkpoint, but has logged 2 steps"),
])
def test_a_folder_that_lacks_a_file_is_named(missing, message):
    (saved().folder / missing).unlink()
    with pytest.raises(Stop, match=message):
        Run.open("runs/1").load(*state(0))


@pytest.mark.parametrize("text", [
    "", "{\n", "[" * 100_000, "[]", "{}", json.dumps(CONFIG | {"options": {"steps": "3"}})])
def test_a_damaged_config_is_told(text):
    (saved().folder / "config.json").write_text(text)
    with pytest.raises(Stop, match=r"runs/1/config\.json is damaged, or no run's .*: bring it back"):
        Run.open("runs/1")


def test_options_of_another_version_are_told():
    Run.start("run", CONFIG | {"options": OPTIONS | {"from_the_future": 1}})
    with pytest.raises(Stop, match=r"options that are unknown here \(from_the_future\)"):
        saved_options("toy", {"resume": "run"})


def test_without_runs_there_is_no_newest():
    with pytest.raises(Stop, match="no run of toy under runs/ has a checkpoint: train one first"):
        newest("toy")


def test_the_newest_run_is_the_last_of_its_own_model_that_has_a_checkpoint(folder):
    for _ in range(10):
        saved()
    Run.start(None, CONFIG | {"model": "other"})
    assert str(newest("toy").folder) == "runs/10"
    for index in checkpoint.indices(folder / "runs/10"):
        index.unlink()
    (folder / "runs/9/config.json").write_text(json.dumps(CONFIG | {"model": "other"}))
    assert str(newest("toy").folder) == "runs/8" and str(newest("other").folder) == "runs/9"


def test_a_checkpoint_brings_back_model_optimizer_generator_and_step():
    run, generator = saved(), tinyarr.Generator(0)
    model, optimizer, parallel = state(0, 0)
    assert run.load(model, optimizer, parallel, generator) == 2
    assert model.x.tolist() == [1, 2] and optimizer.state_of(model.x)["m"].tolist() == [3, 3]
    assert generator.state_dict() == tinyarr.Generator(5).state_dict()


def test_the_same_state_gives_the_same_bytes(folder):
    first, second = contents(saved("a").folder), contents(saved("b").folder)
    assert first == second and {"checkpoint.1.step2.json", "checkpoint.1.step2.0of1.safetensors"} == first.keys()


def test_a_full_disk_is_told_with_the_command_to_go_on_and_spares_the_checkpoint(monkeypatch):
    run = saved()
    before = contents(run.folder)

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save", full)
    with pytest.raises(Stop, match=r"step 3: .*\(No space left on device: make room\): the checkpoint of step 2 is "
                                   "whole; to go on: .*--resume runs/1$") as caught:
        run.save(3, *state(0), tinyarr.Generator(0))
    assert caught.value.status == 1
    assert contents(run.folder) == before


def test_a_disk_that_was_full_from_the_start_names_no_checkpoint_and_leaves_nothing(folder):
    run, limits = Run.start("run", CONFIG), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(Stop, match=r"^step 0: the checkpoint in run can't be written \(File too large\): "
                                       "to go on: .*--resume run$"):
            run.save(0, *state(*range(1000)), tinyarr.Generator(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in Path("run").iterdir()) == ["config.json", "log.jsonl"]
    assert Run.open("run").load(*state(0)) == 0


@pytest.mark.parametrize("name", ["log.jsonl", "loss.png", "hugging_face"])
def test_any_file_that_cannot_be_written_is_named_with_the_command_to_go_on(name):
    run = saved()
    (run.folder / name).unlink(missing_ok=True)
    (run.folder / name / "a folder").mkdir(parents=True) if name != "hugging_face" else (run.folder / name).touch()
    write = {"log.jsonl": lambda: run.log(record(2)), "loss.png": lambda: run.plot(None),
             "hugging_face": lambda: run.export(Toy(0))}[name]
    told = rf"^runs/1/{name} can't be written \(.*\): the checkpoint of step 2 is whole; to go on: .*--resume runs/1$"
    with pytest.raises(Stop, match=told):
        write()


def test_a_folder_that_is_gone_is_told_and_no_room_asked_for():
    run = saved()
    shutil.rmtree("runs")
    for write in (lambda: run.log(record(2)), lambda: run.save(2, *state(0), tinyarr.Generator(0))):
        with pytest.raises(Stop, match=r"runs/1 is gone, so bring it back, or train anew$"):
            write()


def go_on(steps=4):
    """What a run of three checkpoints does to its folder, from where it is. The weight is the step's number."""
    if Path("run/config.json").exists() and Run.open("run").finished:
        return
    model, optimizer, parallel = state(0.0)
    generator = tinyarr.Generator(0)
    given = {"resume": "run"} if Path("run/config.json").exists() else {"out": "run"}
    options, corpus = TrainOptions(steps=steps, **given), SimpleNamespace(fingerprint="a text")
    with open_run(options, corpus, model, optimizer, parallel, generator) as (run, first):
        assert model.x.tolist() == [first]
        for step in range(first, steps + 1):
            if step % 2 == 0:
                run.save(step, model, optimizer, parallel, generator)
            run.log(record(step, loss=None if step == steps else 2.0))
            with tinyarr.no_grad():
                model.x.assign(model.x + 1)


def dies_at(event, work):
    """True where a child that does some work comes to this of its touches of the folder `run`, where it is killed."""
    child = os.fork()
    if child == 0:
        events, within = count(), ("run", f"{os.getcwd()}/run")

        def look(name, arguments):
            touches = name in ("open", "os.mkdir", "os.rename", "os.remove", "fsync")
            if touches and str(arguments[0]).startswith(within) and next(events) == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        os.fsync = lambda descriptor: sys.audit("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


@pytest.mark.parametrize("killed_before", [None, pytest.param(44, marks=pytest.mark.slow)])
def test_a_run_goes_on_wherever_it_was_killed_or_begins_anew_where_it_has_not_trained(monkeypatch, killed_before):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for event in count():
        assert killed_before is None or dies_at(killed_before, go_on)
        if not dies_at(event, go_on):
            break
        if Path("run").exists() and not checkpoint.indices(Path("run")):
            check_free(Path("run"))
        go_on()
        run = Run.open("run")
        assert run.finished and [record["step"] for record in run.records] == [0, 1, 2, 3, 4]
        assert len(checkpoint.indices(run.folder)) == 2 and checkpoint.newest(run.folder).state["step"] == 4
        assert len([*run.folder.iterdir()]) == len([".lock", "config.json", "log.jsonl"]) + 2 * 2  # and no leftovers
        shutil.rmtree("run")
    assert event > 30


def test_files_that_are_no_checkpoints_stay_where_they_are():
    Path("run").mkdir()
    names = "checkpoint.best.safetensors", "checkpoint.json", "checkpoint.1.txt", ".mine"
    mine = [Path("run", name) for name in names]
    for path in mine:
        path.write_text("precious")
    run = twice_saved()
    run.save(3, *state(0), tinyarr.Generator(0))
    run.back_to(3)
    assert all(path.read_text() == "precious" for path in mine)


def test_whatever_led_to_a_checkpoint_is_on_disk_before_it_and_it_before_the_one_that_goes(monkeypatch):
    run, happened = twice_saved(), []
    monkeypatch.setattr(tuning, "_choices", {"a product": "its algorithm"})
    replace, unlink = os.replace, Path.unlink

    def fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        happened.append("unfinished" if path.name.startswith(".") else path.name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda path, to: happened.append(Path(to).name) or replace(path, to))
    monkeypatch.setattr(Path, "unlink", lambda path, **kw: happened.append(f"less {path.name}") or unlink(path, **kw))
    run.save(3, *state(0), tinyarr.Generator(0))
    assert happened == [
        "log.jsonl", "unfinished", "tuning.json", "run", "unfinished", "checkpoint.3.step3.0of1.safetensors", "run",
        "unfinished", "checkpoint.3.step3.json", "run", "less checkpoint.1.step1.json",
        "less checkpoint.1.step1.0of1.safetensors"]
    happened.clear()
    run.log(record(3, loss=None))
    assert happened == ["log.jsonl"]
    Run.start("other", CONFIG)
    assert happened[2:] == [
        "unfinished", "log.jsonl", "other", "unfinished", "config.json", "other", Path.cwd().name]


@pytest.mark.parametrize("name", [".tinyarr-0123456789abcdef.unfinished", ".checkpoint.safetensors.4711"])
@pytest.mark.parametrize("place", ["run", "run/hugging_face"])
def test_what_a_killed_writer_has_left_is_removed_when_the_run_goes_on(name, place):
    run = twice_saved()
    Path(place).mkdir(exist_ok=True)
    left = Path(place, name)
    left.touch()
    run.back_to(2)
    assert not left.exists() and run.load(*state(0)) == 2


def test_a_run_keeps_the_choices_made_by_timing_and_brings_them_back(folder, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(folder / "cache"))
    monkeypatch.setattr(tuning, "_choices", {})
    assert not saved("without").choices.exists()
    tuning.record("a product", "its algorithm")
    run = saved("run")
    for file in (folder / "cache").iterdir():
        file.unlink()
    monkeypatch.setattr(tuning, "_choices", {"a product": "another"})
    Run.open("run").load(Toy(0, 0))
    assert tuning.choices() == {"a product": "its algorithm"}
    run.choices.write_text("{")
    with pytest.raises(Stop, match=r"run/tuning\.json is damaged .*bring it back, or remove it"):
        run.load(Toy(0, 0))


def test_ranks_ask_each_other_the_same_whatever_choices_they_have_made(monkeypatch):
    counts = []
    for folder, choices in (("without", {}), ("with", {"a product": "its algorithm"})):
        asked = []
        monkeypatch.setattr(tuning, "_choices", choices)
        monkeypatch.setattr(distributed.Group, "exchange", lambda group, value, asked=asked: asked.append(0) or [value])
        saved(folder)
        counts.append(len(asked))
    assert counts[0] == counts[1] > 1


def test_a_run_is_finished_once_the_validation_after_all_steps_is_logged():
    run = saved(steps=3)
    assert not run.finished
    run.log(record(3, loss=None, val_loss=1.0))
    assert run.finished and Run.open("runs/1").finished


def test_a_resumed_run_takes_its_own_options():
    saved()
    assert saved_options("toy", {"resume": "runs/1"}) == OPTIONS | {"resume": "runs/1"}
    assert saved_options("toy", {"resume": "runs/1", "lr": 0.1})["lr"] == 0.1


@pytest.mark.parametrize(("model", "given", "message"), [
    ("toy", {"size": "124M"}, "--size 124M contradicts runs/1, which has tiny"),
    ("toy", {"text": "other.txt"}, r"--text other\.txt contradicts runs/1, which has None"),
    ("other", {}, "the run trains toy, not other"),
])
def test_a_resumed_run_refuses_other_options(model, given, message):
    saved()
    with pytest.raises(Stop, match=message):
        saved_options(model, {"resume": "runs/1"} | given)


def test_the_plot_is_a_picture_with_and_without_a_baseline(folder):
    run = saved()
    run.plot(None)
    plain = Image.open("runs/1/loss.png").size
    run.log(record(2, val_loss=1.7))
    run.plot(1.5)
    assert Image.open("runs/1/loss.png").size == plain >= (800, 500)


def test_the_environment_names_versions_and_threads(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert environment()["threads"] == 3
    assert environment().keys() >= {"numpy", "python", "machine"}
