"""The folder of a run: never overwritten, never damaged, and enough to repeat the run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tinyarr
from models.options import Stop
from models.run import Run, check_free, environment, newest, saved_options
from tinyarr import distributed, optim, saving, tuning

ROOT = Path(__file__).parents[2]
OPTIONS = {"size": "tiny", "steps": 3, "text": None, "lr": 0.1}
CONFIG = {"model": "toy", "options": OPTIONS, "environment": environment()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Toy(tinyarr.nn.Module):
    def __init__(self, *values):
        self.x = tinyarr.nn.Parameter(tinyarr.Tensor(list(values), dtype=tinyarr.float32))


def state(*values, momentum=0.0):
    """A model of one tensor, its optimizer, and what says that there is one process."""
    model = Toy(*values)
    parallel = distributed.Alone(model.parameters())
    optimizer = optim.AdamW(parallel.groups)
    optimizer.state_of(model.x)["m"].assign(momentum)
    return model, optimizer, parallel


def record(step, loss=2.0, val_loss=None):
    return dict(step=step, loss=loss, val_loss=val_loss, lr=0.1, grad_norm=1.0, tokens_per_s=10.0, mfu=None,
                memory_gib=0.1, seconds=float(step))


def saved(folder=None, steps=2):
    """A run with `steps` records and a checkpoint of the state after them."""
    run = Run.start(folder, CONFIG)
    for step in range(steps):
        run.log(record(step))
    run.save(steps, *state(1, 2, momentum=3), tinyarr.Generator(5))
    return run


def test_runs_without_a_name_take_the_next_free_number():
    assert [str(Run.start(None, CONFIG).folder) for _ in range(3)] == ["runs/1", "runs/2", "runs/3"]


def test_runs_that_start_at_once_get_a_folder_each():
    start = "from models.run import Run; print(Run.start(None, {}).folder)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, env=env) for _ in range(3)]
    assert sorted(process.communicate()[0] for process in started) == [b"runs/1\n", b"runs/2\n", b"runs/3\n"]


@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "checkpoint.safetensors", "tuning.json", "loss.png"])
def test_a_folder_that_holds_any_file_of_a_run_is_not_taken(folder, name):
    (folder / "mine").mkdir()
    (folder / "mine" / name).write_text("precious")
    with pytest.raises(Stop, match="--out mine already exists: go on with --resume mine, or choose another name"):
        Run.start("mine", CONFIG)
    assert (folder / "mine" / name).read_text() == "precious"


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


def test_half_a_line_at_the_end_of_the_log_is_left_out():
    run = saved()
    with open("runs/1/log.jsonl", "a") as log:
        log.write('{"step": 2, "lo')
    assert Run.open("runs/1").records == run.records


def test_records_newer_than_the_checkpoint_are_forgotten(folder):
    run = saved(steps=3)
    run.back_to(1)
    assert (folder / "runs/1/log.jsonl").read_text() == json.dumps(record(0)) + "\n"
    assert Run.open("runs/1").records == run.records == [record(0)]


@pytest.mark.parametrize(("missing", "message"), [
    ("config.json", "runs/1 holds no run: runs/1/config.json is missing"),
    ("log.jsonl", "runs/1 holds no run: runs/1/log.jsonl is missing"),
    ("checkpoint.safetensors", "runs/1 has no checkpoint"),
])
def test_a_folder_that_lacks_a_file_is_named(missing, message):
    (saved().folder / missing).unlink()
    with pytest.raises(Stop, match=message):
        Run.open("runs/1")


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
def test_a_damaged_file_is_told(name):
    (saved().folder / name).write_text("{\n")
    with pytest.raises(Stop, match=r"runs/1: config\.json or log\.jsonl is damaged"):
        Run.open("runs/1")


def test_without_runs_there_is_no_newest():
    with pytest.raises(Stop, match="no run of toy under runs/ has a checkpoint: train one first"):
        newest("toy")


def test_the_newest_run_is_the_last_of_its_own_model_that_has_a_checkpoint(folder):
    for _ in range(10):
        saved()
    Run.start(None, CONFIG | {"model": "other"})
    assert str(newest("toy").folder) == "runs/10"
    (folder / "runs/10/checkpoint.safetensors").unlink()
    (folder / "runs/9/config.json").write_text(json.dumps(CONFIG | {"model": "other"}))
    assert str(newest("toy").folder) == "runs/8" and str(newest("other").folder) == "runs/9"


def test_a_checkpoint_brings_back_model_optimizer_generator_and_step():
    run, generator = saved(), tinyarr.Generator(0)
    model, optimizer, parallel = state(0, 0)
    assert run.load(model, optimizer, parallel, generator) == 2
    assert model.x.tolist() == [1, 2] and optimizer.state_of(model.x)["m"].tolist() == [3, 3]
    assert generator.state_dict() == tinyarr.Generator(5).state_dict()


def test_the_same_state_gives_the_same_bytes(folder):
    first, second = saved("a"), saved("b")
    assert first.checkpoint.read_bytes() == second.checkpoint.read_bytes()


def test_a_full_disk_is_told_with_the_command_to_go_on_and_spares_the_checkpoint(monkeypatch):
    run = saved()
    before = run.checkpoint.read_bytes()

    def full(path, tensors, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save", full)
    with pytest.raises(Stop, match=r"step 3: .*\(No space left on device: make room\).*--resume runs/1") as caught:
        run.save(3, *state(0), tinyarr.Generator(0))
    assert caught.value.status == 1
    assert run.checkpoint.read_bytes() == before


def test_a_folder_that_is_gone_is_told_without_advice_to_make_room(folder):
    run = saved()
    shutil.rmtree(run.folder)
    with pytest.raises(Stop, match=r"\(.*: No such file or directory\): there is none before it; train anew$"):
        run.save(3, *state(0), tinyarr.Generator(0))


def test_a_damaged_checkpoint_is_told_in_words():
    run = saved()
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-3])
    with pytest.raises(Stop, match=r"checkpoint\.safetensors"):
        run.load(Toy(0, 0))


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
