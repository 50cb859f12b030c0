"""The command line: every option explained, every mistake one line before any work."""

import re
from dataclasses import fields

import pytest

from models import command
from models.command import main
from models.options import GenerateOptions, Stop, TrainOptions
from tinyarr.errors import DeviceError, OutOfMemory


class Model:
    name = "toy"
    sizes = {"tiny": None, "124M": None}


def outcome(capsys, *argv):
    """Exit status, standard output and standard error of a command line."""
    try:
        main(Model, argv)
    except SystemExit as end:
        status = end.code
    else:
        status = 0
    return status, *capsys.readouterr()


def raising(error):
    def command(model_class, given):
        raise error

    return command


@pytest.mark.parametrize(("table", "command"), [(TrainOptions, "train"), (GenerateOptions, "generate")])
def test_help_explains_every_option_with_its_default_in_its_group(capsys, table, command):
    status, out, _ = outcome(capsys, command, "--help")
    text = " ".join(out.split())
    assert status == 0
    for entry in fields(table):
        default = "" if entry.default in (None, "") else f" (default: {entry.default})"
        assert re.search(rf" --{entry.name.replace('_', '-')},? ", text)
        assert f"{entry.metadata['meaning']}{default}".replace(" ", "") in text.replace(" ", "")
        assert f"\n{entry.metadata['group']}:" in out


def test_help_names_the_sizes_of_the_model(capsys):
    assert "{tiny,124M}" in outcome(capsys, "train", "--help")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: train|generate"),
        ("fly", "invalid choice: 'fly'"),
        ("train --stepz 3", "unrecognized arguments: --stepz 3"),
        ("train --step 3", "unrecognized arguments: --step 3"),
        ("train --steps", "--steps: expected one argument"),
        ("train --steps 0", "--steps: '0' is not a whole number at least 1"),
        ("train --steps 1.5", "--steps: '1.5' is not a whole number at least 1"),
        ("train --lr nan", "--lr: 'nan' is not a number at least 0"),
        ("train --lr fast", "--lr: 'fast' is not a number at least 0"),
        ("train --lr inf", "--lr: 'inf' is not a number at least 0"),
        ("train --seed -1", "--seed"),
        ("train --size huge", "--size: invalid choice: 'huge'"),
        ("train --dtype int8", "--dtype: invalid choice: 'int8'"),
        ("train --schedule steep", "--schedule: invalid choice: 'steep'"),
        ("train --drop-repeats", "--drop-repeats belongs to --text"),
        ("train --eval-tokens 0", "--eval-tokens: '0' is not a whole number at least 1"),
        ("train --text a --data b", "--text and --data exclude each other"),
        ("train --out a --resume b", "b holds no run: b/config.json is missing"),
        ("train --steps 10 --warmup 10", "--warmup 10 must be less than --steps 10"),
        ("generate --run a --weights b", "--run and --weights exclude each other"),
        ("generate --weights b", "--weights also needs --tokenizer"),
        ("generate --size tiny", "--size belongs to --weights"),
        ("generate --top-p 1.5", "--top-p: '1.5' is not a number from 0 to 1"),
        ("generate --temperature -1", "--temperature"),
    ],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    status, out, error = outcome(capsys, *line.split())
    assert status == 2 and out == ""
    assert re.fullmatch(r"python -m models\.toy[^\n]*\n", error)
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Stop("the disk is full:\nmake room", 1), 1, "the disk is full: make room"),
        (DeviceError("cuda:0: there is none"), 2, "cuda:0: there is none"),
        (FileNotFoundError(2, "No such file", "a.txt"), 2, "a.txt: No such file"),
        (OSError(28, "No space left on device", "a"), 2, "a: No space left on device: make room"),
        (OutOfMemory("cpu: 9 bytes can't be had"), 2, "cpu: 9 bytes can't be had"),
        (ModuleNotFoundError("No module named 'rich'"), 2, "No module named 'rich'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_told_in_one_line(capsys, monkeypatch, error, status, message):
    monkeypatch.setattr(command, "_train", raising(error))
    assert outcome(capsys, "train") == (status, "", f"python -m models.toy: {message}\n")


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(command, "_train", raising(ValueError("shapes")))
    with pytest.raises(ValueError, match="shapes"):
        main(Model, ["train"])


def test_what_was_not_given_takes_the_table_s_default_and_what_was_its_type(monkeypatch):
    seen = []
    monkeypatch.setattr(command, "_train", lambda model_class, given: seen.append((model_class, given)))
    main(Model, ["train", "--steps", "7", "--lr", "1e-3", "--warmup", "2", "--text", "a.txt"])
    given = {"steps": 7, "lr": 1e-3, "warmup": 2, "text": "a.txt"}
    assert seen == [(Model, given)]
    assert TrainOptions(**given).batch_size == TrainOptions().batch_size
