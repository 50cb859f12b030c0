"""Training: it learns, the same command gives the same bits, and nothing that interrupts it does harm."""

import fcntl
import itertools
import json
import math
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import tinyarr
from models import checkpoint, hugging_face, train
from models.command import main
from models.gpt2 import GPT2, Config
from models.options import TrainOptions
from models.progress import Progress
from models.run import Run
from tests.tiers import slow, thinned
from tinyarr import saving, tuning
from tinyarr.data import write_shard

ROOT = Path(__file__).parents[2]
CLOCK = ("tokens_per_s", "seconds", "memory_gib")
FIELDS = ["step", "loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_gib", "seconds"]
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
WHOLE = "--text text.txt --seq-len 8 --batch-size 4 --steps 9 --eval-every 4"  # validates on 22 batches
SMALL = f"{WHOLE} --eval-tokens 104"  # on four, the last in part


class Micro(GPT2):
    sizes = {
        "tiny": Config(vocab_size=257, block_size=8, n_layer=1, n_head=2, n_embd=16),
        "small": Config(vocab_size=300, block_size=8, n_layer=2, n_head=2, n_embd=16),
    }


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Under nohup, which ignores one, the tests and the processes that they start would ignore it too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a text of many different sentences."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(f"The {n}th word of {n * n} is {n * 7919}." for n in range(200)))
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the plot and the sample, which take longer than these runs."""
    monkeypatch.setattr(Run, "plot", lambda run, baseline: None)
    monkeypatch.setattr(train, "write", lambda model, tokenizer, options: None)


def command(line):
    """The exit status of `python -m models.gpt2 <line>`, with models of a few thousand parameters."""
    try:
        main(Micro, line.split())
    except SystemExit as end:
        return end.code
    return 0


def files(path):
    """What must not differ between two runs: the log less its clocks, newest checkpoint, the bytes of the export."""
    lines = (Path(path) / "log.jsonl").read_text().splitlines()
    log = [{name: value for name, value in json.loads(line).items() if name not in CLOCK} for line in lines]
    newest = checkpoint.newest(Path(path))
    return log, (newest.state, [file.read_bytes() for file in newest.files]), *(
        (Path(path) / "hugging_face" / name).read_bytes() for name in ("model.safetensors", "config.json"))


def tensors(path):
    """Those of the newest checkpoint of a run."""
    [file] = checkpoint.newest(Path(path)).files
    return saving.load(file)[0]


def at_step(monkeypatch, number, action):
    """Does something right after the record of a step is written."""
    show = Progress.show

    def show_and_act(progress, record):
        show(progress, record)
        if record["step"] == number:
            action()

    monkeypatch.setattr(Progress, "show", show_and_act)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


# What has nothing to do with compiling is shown by eager runs, which begin sooner.
eager_or_slow = pytest.mark.parametrize("mode", ["--no-compile", slow("--compile")])


def test_a_run_learns_and_leaves_log_plot_weights_and_a_sample(capsys):
    Path("text.txt").write_text("\n\n".join("abcdefgh" * n for n in range(1, 60)))
    assert command("train --text text.txt --seq-len 8 --steps 80 --eval-every 40 --lr 1e-2 --out run") == 0
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    out = capsys.readouterr().out
    assert [record["step"] for record in log] == [*range(81)] and all(list(record) == FIELDS for record in log)
    assert log[0]["val_loss"] == pytest.approx(math.log(257), abs=0.1) and log[80]["val_loss"] < 1
    assert [record["step"] for record in log if record["val_loss"] is not None] == [0, 40, 80]
    assert all(record["loss"] > 0 and record["grad_norm"] > 0 and record["mfu"] is None for record in log[:-1])
    assert f"validation loss {log[80]['val_loss']:.3f}; byte 4-grams get " in out
    assert "abc" in out.partition("a sample of what the model writes:\n")[2]
    assert sorted(path.name for path in Path("run").iterdir()) == [
        ".lock", "checkpoint.2.step40.0of1.safetensors", "checkpoint.2.step40.json",
        "checkpoint.3.step80.0of1.safetensors", "checkpoint.3.step80.json",
        "config.json", "hugging_face", "log.jsonl", "loss.png"]


@eager_or_slow
def test_the_same_command_gives_the_same_log_and_the_same_bytes(quick, mode):
    for out in ("a", "b"):
        assert command(f"train {SMALL} {mode} --accumulate 2 --out {out}") == 0
    assert files("a") == files("b")


def test_a_compiled_run_learns_what_an_eager_one_does(quick, capsys):
    for mode in ("compile", "no-compile"):
        command(f"train {SMALL} --{mode} --accumulate 3 --out {mode}")
        assert ("compiled in " in capsys.readouterr().out) is (mode == "compile")
    compiled, eager = files("compile")[0], files("no-compile")[0]
    for name in ("loss", "grad_norm"):
        assert [r[name] for r in compiled[:-1]] == pytest.approx([r[name] for r in eager[:-1]], rel=1e-4)


def test_a_compiled_run_is_traced_once_whatever_it_adds_up_and_validates(quick, monkeypatch):
    made = []
    make = train.make_programs
    monkeypatch.setattr(train, "make_programs", lambda *given: made.append(make(*given)) or made[0])
    command(f"train {WHOLE} --accumulate 3 --out run")
    # The first batch of a step finds no gradients; the last of a validation has fewer rows.
    assert [len(program.graphs) for program in made[0]] == [2, 1, 2]


@eager_or_slow
def test_the_saved_options_repeat_a_run(quick, mode):
    command(f"train {SMALL} {mode} --lr 2e-3 --seed 5 --out a")
    config = json.loads(Path("a/config.json").read_text())
    options = TrainOptions(**config["options"])
    assert (options.lr, options.seed, options.steps) == (2e-3, 5, 9)
    train.train(Micro, TrainOptions(**config["options"] | {"out": "b"}))
    assert files("a") == files("b")


# The record of step 2 is written once step 3 is launched, as no validation waits for it.
MODES, MOMENTS = ("--dtype float32", "--dtype bfloat16", "--no-compile"), ((0, 1), (2, 4), (3, 4), (8, 9))
STOPS = [(how, *moment) for how in MODES for moment in MOMENTS]


@pytest.mark.parametrize(("how", "step", "stopped"), thinned(STOPS, 5))
def test_a_run_stopped_by_ctrl_c_and_resumed_equals_one_that_was_not(quick, monkeypatch, capsys, step, stopped, how):
    command(f"train {SMALL} {how} --out whole")
    with monkeypatch.context() as patch:
        at_step(patch, step, ctrl_c)
        assert command(f"train {SMALL} {how} --out part") == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"stopped at step {stopped}, saved part/checkpoint\.\d\.step{stopped}\.json; to go on: ", message)
    assert message.endswith(" -m models.gpt2 train --resume part")
    assert command("train --resume part") == 0
    assert files("part") == files("whole")


def test_a_resumed_run_has_its_choices_before_anything_is_compiled(quick, monkeypatch, folder):
    monkeypatch.setenv("TINYARR_CACHE", str(folder / "cache"))
    monkeypatch.setattr(tuning, "_choices", {"a product": "its algorithm"})
    with monkeypatch.context() as patch:
        at_step(patch, 2, ctrl_c)
        command(f"train {SMALL} --out part")
    seen, make = [], train.make_programs

    def noting(program):
        return lambda *args: (seen.append(tuning.choices()), program(*args))[1]

    monkeypatch.setattr(train, "make_programs", lambda *args: train.Programs(*map(noting, make(*args))))
    monkeypatch.setattr(tuning, "_choices", {})
    assert command("train --resume part") == 0
    assert seen and all(choices == {"a product": "its algorithm"} for choices in seen)


def test_ctrl_c_in_a_validation_leaves_it_and_loses_nothing(quick, monkeypatch, capsys):
    command(f"train {SMALL} --out whole")
    validated = []
    walk = train.Batches.walk

    def walk_and_press(batches):
        for number, batch in enumerate(walk(batches)):
            validated.append(number)
            if len(validated) == 7:  # in the second validation
                ctrl_c()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(train.Batches, "walk", walk_and_press)
        assert command(f"train {SMALL} --out part") == 130
    assert len(validated) == 7
    assert command("train --resume part") == 0
    assert files("part") == files("whole")


@pytest.mark.parametrize("number", [slow(signal.SIGTERM), signal.SIGHUP, slow(signal.SIGUSR1)])
def test_a_signal_that_ends_jobs_saves_and_stops_like_ctrl_c(quick, monkeypatch, capsys, number):
    command(f"train {SMALL} --no-compile --out whole")
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: [signal.raise_signal(number) for _ in range(3)])
        assert command(f"train {SMALL} --no-compile --out part") == 130
    assert "stopped at step 4, saved part/" in capsys.readouterr().err
    assert command("train --resume part") == 0
    assert files("part") == files("whole")


def test_a_signal_that_was_ignored_when_the_run_began_stays_so(quick, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        at_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGHUP))
        assert command(f"train {SMALL} --no-compile --out run") == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_terminal_that_hangs_up_ends_the_run_with_a_checkpoint():
    master, terminal = pty.openpty()
    line = "train --text text.txt --steps 3000 --batch-size 1 --seq-len 4 --no-compile --out run"
    run = subprocess.Popen(
        [sys.executable, "-m", "models.gpt2", *line.split()], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(terminal)
    shown = b""
    while b"step" not in shown:
        shown += os.read(master, 1000)
    os.close(master)
    assert run.wait(60) == 130
    step = checkpoint.newest(Path("run")).state["step"]
    assert [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()] == [*range(step)]


def test_a_second_process_is_kept_off_a_run(quick, monkeypatch, capsys):
    seen = []

    def second():
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        for line in ("train --resume run", f"train {SMALL} --no-compile --out run"):
            seen.append((command(line), capsys.readouterr().err))
        assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

    at_step(monkeypatch, 5, second)
    assert command(f"train {SMALL} --no-compile --out run") == 0
    (resumed, told), (begun, refused) = seen
    assert resumed == begun == 2
    assert f"run is in use by another process (pid {os.getpid()} on " in told and "--out run already exists" in refused


def test_a_run_that_ended_before_its_first_checkpoint_goes_on_or_begins_anew(quick, monkeypatch, capsys):
    command(f"train {SMALL} --out whole")
    with monkeypatch.context() as patch:
        patch.setattr(train, "validation_loss", lambda *given: ctrl_c() or ctrl_c())
        for out in ("resumed", "anew"):
            assert command(f"train {SMALL} --out {out}") == 130
    assert command("generate --run anew") == 2
    assert "anew has no checkpoint: it ended before the first was saved; to go on: " in capsys.readouterr().err
    assert command("train --resume resumed") == command(f"train {SMALL} --out anew") == 0
    assert files("resumed") == files("anew") == files("whole")


def test_lines_of_the_log_that_are_no_records_do_not_stop_a_resume(quick, monkeypatch, capsys):
    command(f"train {SMALL} --no-compile --out whole")
    with monkeypatch.context() as patch:
        at_step(patch, 6, ctrl_c)
        command(f"train {SMALL} --no-compile --out part")
    log = Path("part/log.jsonl")
    log.write_bytes(b"\xff\n\n" + log.read_bytes() + b'{"step": 7, "lo')
    capsys.readouterr()
    assert command("train --resume part") == 0
    assert "note: of the lines in part/log.jsonl 2 are no records: they are left out" in capsys.readouterr().out
    assert files("part") == files("whole")


def test_a_damaged_checkpoint_is_passed_over_and_the_bits_stay_the_same(quick, monkeypatch, capsys):
    command(f"train {SMALL} --no-compile --out whole")
    with monkeypatch.context() as patch:
        at_step(patch, 6, ctrl_c)
        command(f"train {SMALL} --no-compile --out part")
    [damaged] = checkpoint.newest(Path("part")).files
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert command("train --resume part") == 0
    assert f"note: {damaged} is damaged (its digest is of other content)" in capsys.readouterr().err
    assert files("part") == files("whole")


def test_a_disk_that_is_full_at_step_0_is_told_and_the_run_can_go_on(quick, capsys):
    command(f"train {SMALL} --no-compile --out whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert command(f"train {SMALL} --no-compile --out part") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ("step 0: the checkpoint in part can't be written (File too large): to go on: "
            ) in capsys.readouterr().err
    assert command("train --resume part") == 0
    assert files("part") == files("whole")


def test_a_second_ctrl_c_aborts_and_leaves_the_last_checkpoint(quick, monkeypatch, capsys):
    command(f"train {SMALL} --out whole")
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: (ctrl_c(), ctrl_c()))
        assert command(f"train {SMALL} --out part") == 130
    assert capsys.readouterr().err.endswith("python -m models.gpt2: interrupted\n")
    assert command("train --resume part") == 0
    assert files("part") == files("whole")


@pytest.mark.parametrize("step", [4, slow(6), slow(9)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(quick, step):
    command(f"train {SMALL} --out whole")
    killed = f"""
import os, signal, sys, pytest
sys.path[:0] = [{str(ROOT)!r}]
from tests.models.test_train import Micro, at_step, main
at_step(pytest.MonkeyPatch(), {step}, lambda: os.kill(os.getpid(), signal.SIGKILL))
main(Micro, {(f"train {SMALL} --out part").split()})
"""
    ended = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert command("train --resume part") == (2 if step == 9 else 0)
    assert files("part")[:2] == files("whole")[:2]


@eager_or_slow
def test_a_real_ctrl_c_ends_the_program_with_status_130_and_what_it_says_goes_on(folder, mode):
    options = f"--steps 3000 --batch-size 1 --seq-len 4 {mode}"
    arguments = [sys.executable, "-m", "models.gpt2", "train", *options.split()]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    run = subprocess.Popen([*arguments, "--text", "text.txt"], env=env, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (line := run.stdout.readline()).startswith("step"):
        assert line, run.communicate()[1]
    run.send_signal(signal.SIGINT)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 130
    again = error.rpartition("to go on: ")[2].split()
    again = subprocess.Popen(again, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert again.stdout.readline().startswith("runs/1: gpt2 tiny")
    again.kill()
    assert again.communicate()[1] == ""


@pytest.mark.parametrize(("line", "message"), [
    ("train --resume run", "run is finished: it has all its 9 steps"),
    ("train --resume run --size small", "--size small contradicts run, which has tiny"),
    ("train --resume run --no-compile", "--no-compile contradicts run, which has True"),
    ("train --resume run --out other", "--out and --resume exclude each other"),
    (f"train {SMALL} --out run", "--out run already exists: go on with --resume run, or choose another name"),
    ("train --device cuda:99", "cuda:99: "),
    ("train --device tpu", "'tpu' is not a device"),
    ("train --text none.txt", "none.txt: no such file"),
    ("train --text text.txt --seq-len 5000", "expected at least seq_len + 1 = 5001"),
    ("train --data none*.bin", "no file matches 'none*.bin'"),
    ("train --data text.txt", "header magic"),
    ("train --data big.bin", "big.bin: token "),
    ("train --tokenizer none.bpe", "none.bpe: no such file"),
])
def test_a_mistake_is_told_in_one_line_and_changes_nothing(quick, capsys, line, message):
    command(f"train {SMALL} --out run")
    write_shard("big.bin", np.full(5000, 40_000, np.uint16))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command(line) == 2
    out, error = capsys.readouterr()
    assert out == "" and message in error and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_other_data_or_another_number_of_threads_is_noticed_on_resume(quick, monkeypatch, capsys):
    at_step(monkeypatch, 2, ctrl_c)
    command(f"train {SMALL} --out run")
    text = Path("text.txt").read_text()
    Path("text.txt").write_text(text.replace("word", "work"))
    assert command("train --resume run") == 2
    assert "run was trained on other data than is there now" in capsys.readouterr().err
    Path("text.txt").write_text(text)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "77")
    assert command("train --resume run") == 0
    assert "is 77: the last bits may differ" in capsys.readouterr().out


def change_programs(monkeypatch, change):
    """Runs train with the programs that change(programs, model, optimizer) makes of its own."""
    make = train.make_programs
    monkeypatch.setattr(train, "make_programs", lambda model, optimizer, *given: change(
        make(model, optimizer, *given), model, optimizer))


def are_finite(state):
    return all(np.isfinite(tensor.numpy()).all() for tensor in state.values())


@eager_or_slow
def test_a_loss_that_is_not_finite_ends_the_run_and_spares_weights_and_checkpoint(quick, monkeypatch, capsys, mode):
    optimizers = []
    change_programs(monkeypatch, lambda programs, model, optimizer: optimizers.append(optimizer) or programs)
    assert command(f"train {SMALL} {mode} --lr 1e38 --warmup 0 --clip 0 --schedule constant --out run") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 1: loss is nan" in error or "step 1: loss is inf" in error
    assert "start again with a lower --lr" in error
    assert optimizers[0].state_dict()["step"].item() == 1
    assert are_finite(tensors("run"))


BAD_STEPS = [*itertools.product(["--compile", "--no-compile"], [0, 2, 3, 8], ["loss", "grad_norm"])]


@pytest.mark.parametrize(("mode", "step", "bad"), thinned(BAD_STEPS, 5))
def test_an_update_of_a_bad_step_is_left_out_though_it_is_noticed_later(quick, monkeypatch, capsys, mode, step, bad):
    made, batches = [], []

    def change(programs, model, optimizer):
        def add_gradient(tokens, targets):
            loss = programs.add_gradient(tokens, targets)
            batches.append(tokens)
            if len(batches) - 1 != step:
                return loss
            if bad == "loss":
                return loss * math.inf
            with tinyarr.no_grad():
                optimizer.parameters[0].grad.assign(math.nan)
            return loss

        made.append((model, optimizer))
        return programs._replace(add_gradient=add_gradient)

    change_programs(monkeypatch, change)
    assert command(f"train {SMALL} {mode} --accumulate 2 --out run") == 1
    assert f"step {step}: {bad} is {'inf' if bad == 'loss' else 'nan'}: start again" in capsys.readouterr().err
    ((model, optimizer),) = made
    assert are_finite(model.state_dict()) and are_finite(optimizer.state_dict())
    assert optimizer.state_dict()["step"].item() == len(batches) - 1
    assert [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()] == [*range(step)]
    assert checkpoint.newest(Path("run")).state["step"] == step // 4 * 4


def test_a_step_is_read_when_the_next_is_launched_or_at_once_where_it_matters(quick, monkeypatch):
    happened = []

    def change(programs, model, optimizer):
        def step(*given):
            figures = programs.step(*given)
            happened.append(f"launched {optimizer.state_dict()['step'].item() - 1}")
            return figures

        return programs._replace(step=step)

    change_programs(monkeypatch, change)
    show, save = Progress.show, Run.save
    monkeypatch.setattr(
        Progress, "show", lambda *given: happened.append(f"read {given[1]['step']}") or show(*given))
    monkeypatch.setattr(Run, "save", lambda *given: happened.append("saved") or save(*given))
    command("train --text text.txt --seq-len 8 --batch-size 4 --steps 6 --eval-every 4 --out run")
    assert happened == [
        "saved", "launched 0", "read 0", "launched 1", "launched 2", "read 1", "launched 3", "read 2", "read 3",
        "saved", "launched 4", "read 4", "launched 5", "read 5", "saved", "read 6"]


def test_whenever_a_checkpoint_is_saved_the_log_has_every_step_before_it(quick, monkeypatch):
    logged, save = {}, Run.save

    def look_and_save(run, step, *given):
        logged[step] = [json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
        save(run, step, *given)

    monkeypatch.setattr(Run, "save", look_and_save)
    at_step(monkeypatch, 6, ctrl_c)
    command(f"train {SMALL} --out run")
    assert logged == {step: [*range(step)] for step in (0, 4, 8)}


def test_a_batch_is_made_before_the_one_before_it_is_used_and_none_beyond_the_last(quick, monkeypatch):
    happened, batch = [], train.Batches.batch

    def making(batches, number, **ranks):
        happened.append(f"made {number}")
        return batch(batches, number, **ranks)

    monkeypatch.setattr(train.Batches, "batch", making)

    def change(programs, model, optimizer):
        happened.clear()  # of the one that was read to check the data
        def using(program):
            return lambda *given: happened.append("used") or program(*given)

        return programs._replace(add_gradient=using(programs.add_gradient), step=using(programs.step))

    change_programs(monkeypatch, change)
    command("train --text text.txt --seq-len 8 --batch-size 4 --steps 2 --accumulate 2 --out run")
    assert happened == ["made 0", "made 1", "used", "made 2", "used", "made 3", "used", "used"]


def test_a_full_disk_ends_the_run_in_one_line(quick, monkeypatch, capsys):
    save = saving.save

    def full(path, *rest):
        if path.name.startswith("checkpoint.3.step8"):
            raise OSError(28, "No space left on device")
        save(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", full)
        assert command(f"train {SMALL} --out part") == 1
    assert ("step 8: the checkpoint in part can't be written (No space left on device: make room): "
            "the checkpoint of step 4 is whole; to go on: ") in capsys.readouterr().err
    assert command("train --resume part") == 0
    command(f"train {SMALL} --out whole")
    assert files("part") == files("whole")


@eager_or_slow
def test_accumulating_gradients_equals_a_larger_batch(quick, mode):
    command(f"train --text text.txt {mode} --seq-len 8 --steps 4 --batch-size 4 --out large")
    command(f"train --text text.txt {mode} --seq-len 8 --steps 4 --batch-size 2 --accumulate 2 --out small")
    large, small = files("large")[0], files("small")[0]
    for name in ("loss", "grad_norm"):
        assert [r[name] for r in small[:-1]] == pytest.approx([r[name] for r in large[:-1]], rel=1e-5)


@eager_or_slow
def test_clipping_is_off_at_0_and_the_norm_is_logged_before_it(quick, mode):
    for clip in ("0", "1e-3"):
        command(f"train {SMALL} {mode} --clip {clip} --out {clip}")
    (free, *_), (clipped, *_) = files("0"), files("1e-3")
    assert free[0] == clipped[0] and free[0]["grad_norm"] > 1e-3
    assert free[1] != clipped[1]


@pytest.mark.parametrize(("schedule", "rates"), [
    ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("linear", [0.5, 1, 1, 0.91, 0.82, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28, 0.19]),
    ("cosine", [0.5, 1, 1, *(0.1 + 0.45 * (1 + math.cos(math.pi * n / 10)) for n in range(1, 10))]),
    ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
])
def test_the_learning_rate_follows_its_schedule(schedule, rates):
    rate = train.SCHEDULES[schedule](2.0, 12, 2)
    assert [rate(step) / 2 for step in range(12)] == pytest.approx(rates)


@eager_or_slow
def test_shards_need_no_tokenizer_and_then_there_is_no_sample(capsys, mode):
    write_shard("train.bin", np.arange(600, dtype=np.uint16) % 256)
    write_shard("val.bin", np.arange(100, dtype=np.uint16) % 256)
    options = f"--seq-len 8 --steps 2 --batch-size 2 {mode}"
    assert command(f"train --data *.bin {options} --size small --out plain") == 0
    assert "sample" not in capsys.readouterr().out
    assert json.loads(Path("plain/config.json").read_text())["config"]["vocab_size"] == 300
    assert command("generate --run plain") == 2
    assert "say with --tokenizer which tokenizer made them" in capsys.readouterr().err
    assert command(f"train --data *.bin {options} --tokenizer bytes --out bytes") == 0
    assert "a sample of what the model writes" in capsys.readouterr().out


@eager_or_slow
def test_generate_takes_the_newest_run_and_repeats_itself(quick, capsys, mode):
    command(f"train {SMALL} {mode}")
    command(f"train {SMALL} {mode} --size small --seed 7")
    texts = []
    for line in ("generate --prompt The", "generate --prompt The --run runs/2", "generate --prompt The --run runs/1"):
        capsys.readouterr()
        assert command(f"{line} --tokens 30") == 0
        texts.append(capsys.readouterr())
    assert texts[0] == texts[1] and texts[0].out != texts[2].out and texts[0].out.startswith("The")
    assert [text.err for text in texts[1:]] == ["runs/2: gpt2 small\n", "runs/1: gpt2 tiny\n"]


def test_a_run_says_how_many_tokens_it_has_and_takes_as_many_to_validate_as_it_is_told(quick, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(Progress, "show_validation", lambda progress, seen, tokens: shown.append((seen, tokens)))
    command("train --text text.txt --seq-len 8 --batch-size 4 --steps 1 --eval-tokens 50 --no-compile")
    assert re.search(r"\n([\d,]+) tokens to train on, 681 to validate on, of which the first 50 are taken\n",
                     capsys.readouterr().out)
    assert shown == [(0, 50), (32, 50), (50, 50)] * 2


def test_a_paragraph_that_comes_again_is_learned_again_unless_that_is_left_out(quick, capsys):
    Path("again.txt").write_text(Path("text.txt").read_text() + "\n\n" + Path("text.txt").read_text())
    sizes = []
    for options in ("--text text.txt", "--text again.txt --drop-repeats", "--text again.txt"):
        command(f"train {options} --seq-len 8 --batch-size 4 --steps 1 --no-compile")
        sizes.append(re.search(r"([\d,]+) tokens to train on", capsys.readouterr().out)[1].replace(",", ""))
    assert sizes[0] == sizes[1] and int(sizes[2]) > 1.9 * int(sizes[0])


def test_mfu_is_a_share_of_a_known_card_s_peak():
    assert train.mfu(494.5e12, "NVIDIA H100 80GB HBM3") == 0.5
    assert train.mfu(1e12, "cpu") is None


@eager_or_slow
def test_weights_reach_transformers_names(quick, mode):
    command(f"train {SMALL} {mode} --out run")
    exported, _ = saving.load("run/hugging_face/model.safetensors")
    assert exported["transformer.wte.weight"].shape == (257, 16)
    model = GPT2(Micro.sizes["tiny"], generator=tinyarr.Generator(1))
    hugging_face.load(Path("run/hugging_face"), model)
    trained = tensors("run")
    assert np.array_equal(model.h[0].mlp.c_fc.weight.numpy(), trained["model.h.0.mlp.c_fc.weight"].numpy())
