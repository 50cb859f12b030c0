"""Choices made by timing are made once: what a run loaded stands, and no process decides anew what one has decided."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyarr import cache, tuning
from tinyarr.errors import FileError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "cache"))
    another_process(monkeypatch)
    return tmp_path


def another_process(monkeypatch):
    """From here on nothing is known but what is on disk."""
    monkeypatch.setattr(tuning, "_choices", {})
    monkeypatch.setattr(tuning, "_eager", {})


def clear_cache():
    for file in cache.files():
        file.unlink()


def test_what_nobody_chose_is_none():
    assert tuning.lookup("key") is None and tuning.choices() == {}


def test_a_choice_is_found_again_here_and_by_another_process(monkeypatch):
    assert tuning.record("key", "value") == tuning.lookup("key") == "value"
    another_process(monkeypatch)
    assert tuning.choices() == {}
    assert tuning.lookup("key") == "value" and tuning.lookup("other") is None
    assert tuning.choices() == {"key": "value"}


def test_choices_is_a_copy():
    tuning.choices()["key"] = "value"
    assert tuning.lookup("key") is None


def test_saved_choices_are_loaded_without_the_cache(folder, monkeypatch):
    tuning.record("a", "1")
    tuning.record("ü", "2")
    tuning.save(folder / "tuning.json")
    clear_cache()
    another_process(monkeypatch)
    assert tuning.lookup("a") is None
    tuning.load(folder / "tuning.json")
    assert tuning.choices() == {"a": "1", "ü": "2"}
    assert tuning.lookup("ü") == "2"


def test_a_loaded_choice_stands_before_the_cache_and_before_this_process(folder, monkeypatch):
    tuning.record("key", "loaded")
    tuning.save(folder / "tuning.json")
    clear_cache()
    another_process(monkeypatch)
    tuning.record("key", "own")  # in the cache too
    tuning.load(folder / "tuning.json")
    assert tuning.lookup("key") == tuning.record("key", "late") == "loaded"
    another_process(monkeypatch)
    tuning.load(folder / "tuning.json")
    assert tuning.lookup("key") == "loaded"
    another_process(monkeypatch)
    assert tuning.lookup("key") == "own"


def test_a_choice_made_first_stands(monkeypatch):
    tuning.record("key", "first")
    assert tuning.record("key", "second") == "first"
    another_process(monkeypatch)
    assert tuning.record("key", "third") == tuning.lookup("key") == "first"


def test_a_process_keeps_its_choice_whatever_others_write(monkeypatch):
    tuning.record("key", "own")
    cache.write(cache.name_of("choice", "key"), b"another's")
    assert tuning.lookup("key") == "own"


def test_two_processes_share_a_choice():
    def process(code):
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", f"from tinyarr import tuning; {code}"]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()

    process("tuning.record('key', 'value')")
    assert process("print(tuning.lookup('key'), tuning.choices())") == "value {'key': 'value'}"
    clear_cache()
    assert process("print(tuning.lookup('key'))") == "None"


def test_eager_mode_has_only_what_was_loaded_for_it(folder):
    tuning.record("key", "value")
    tuning.save(folder / "tuning.json")
    tuning.load(folder / "tuning.json")
    assert tuning.lookup("key", eager=True) is None
    tuning.load(folder / "tuning.json", eager=True)
    assert tuning.lookup("key", eager=True) == "value" and tuning.lookup("other", eager=True) is None


@pytest.mark.parametrize("content", [b"", b'{"key": "val', b"\xff", b"[]", b'{"key": 1}', b"[" * 100_000])
def test_a_damaged_record_is_told_and_changes_nothing(folder, content):
    tuning.record("key", "value")
    (folder / "tuning.json").write_bytes(content)
    with pytest.raises(FileError, match=r"tuning\.load: .*tuning\.json is damaged \(.*remove it"):
        tuning.load(folder / "tuning.json", eager=True)
    assert tuning.choices() == {"key": "value"} and tuning.lookup("key", eager=True) is None


def test_a_missing_record_is_an_os_error(folder):
    with pytest.raises(FileNotFoundError):
        tuning.load(folder / "tuning.json")


def test_a_record_that_cannot_be_written_leaves_the_old_one_alone(folder, monkeypatch):
    tuning.record("key", "value")
    tuning.save(folder / "tuning.json")
    before = (folder / "tuning.json").read_bytes()
    tuning.record("other", "value")

    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        tuning.save(folder / "tuning.json")
    assert (folder / "tuning.json").read_bytes() == before
    assert [path.name for path in folder.glob("*tuning*")] == ["tuning.json"]


def test_a_damaged_or_missing_cache_costs_the_choice_alone(folder, monkeypatch):
    tuning.record("key", "value")
    (file,) = cache.files()
    file.write_bytes(file.read_bytes()[1:])
    another_process(monkeypatch)
    assert tuning.lookup("key") is None
    monkeypatch.setenv("TINYARR_CACHE", str(file / "no" / "folder"))
    assert tuning.record("key", "again") == tuning.lookup("key") == "again"


def test_ranks_take_what_the_first_of_them_has_made_or_found(folder, monkeypatch):
    firsts = {}

    class Ranks:
        def first(self, key, value):
            return firsts.get(key) if value is None else firsts.setdefault(key, value)

    monkeypatch.setattr(tuning.groups, "everyone", Ranks())
    tuning.record("found", "by this one")
    firsts["found"] = firsts["made"] = "by another"
    another_process(monkeypatch)
    assert tuning.lookup("found") == tuning.lookup("made") == "by another"
    assert tuning.lookup("new") is None
    assert tuning.record("new", "here") == firsts["new"] == "here"
