"""The cache on disk gives what this user has put there under that name, or nothing; what is amiss costs time alone."""

import os
import pwd
import stat
import sys
from pathlib import Path

import pytest

from tinyarr import cache
from tinyarr.__main__ import main

NAME = cache.name_of("choice", "key")
CONTENT = b"content"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache's folder, which is not there yet."""
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


def written(folder, name=NAME):
    """The file of an entry that was written."""
    assert cache.write(name, CONTENT) and cache.read(name) == CONTENT
    return folder / name


def test_folder_and_entries_are_for_this_user_alone_whatever_the_umask(folder):
    before = os.umask(0)
    try:
        file = written(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_an_entry_that_others_can_write_is_none_and_is_made_again(folder, mode):
    file = written(folder)
    file.chmod(mode)
    assert cache.read(NAME) is None
    written(folder)


def test_an_entry_of_another_user_is_none(folder, monkeypatch):
    written(folder)
    owner = (folder / NAME).stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert cache.read(NAME) is None and cache.files() == []


def test_an_entry_under_the_name_of_another_is_none(folder):
    other = cache.name_of("choice", "another key")
    written(folder).rename(folder / other)
    assert cache.read(other) is None


@pytest.mark.parametrize("damage", [lambda x: b"", lambda x: x[:-1], lambda x: x[:20], lambda x: b"C" + x[1:],
                                    lambda x: x + b"\0", lambda x: b"\0" * len(x)])
def test_an_entry_that_is_not_whole_is_none(folder, damage):
    file = written(folder)
    file.write_bytes(damage(file.read_bytes()))
    assert cache.read(NAME) is None
    written(folder)


IN_PLACE = {
    "a pipe": lambda file, other: os.mkfifo(file),
    "a link to a whole entry": lambda file, other: file.symlink_to(other),
    "a link to itself": lambda file, other: file.symlink_to(file),
    "a link to nothing": lambda file, other: file.symlink_to("missing"),
    "a device": lambda file, other: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_is_no_file_is_no_entry_and_gives_way_to_one(folder, kind):
    file, other = written(folder), folder / "other"
    file.rename(other)
    IN_PLACE[kind](file, other)
    before = other.read_bytes()
    assert cache.read(NAME) is None
    assert stat.S_ISREG(written(folder).lstat().st_mode) and other.read_bytes() == before


def test_a_folder_in_the_place_of_an_entry_costs_the_entry_alone(folder):
    (folder / NAME / "something").mkdir(parents=True)
    assert cache.read(NAME) is None and not cache.write(NAME, CONTENT)
    assert [file.name for file in folder.iterdir()] == [NAME]


@pytest.mark.parametrize("chosen", ["file", "file/below", "loop", "/proc/none", "x" * 5000])
def test_a_folder_that_can_be_none_costs_the_entries_alone(tmp_path, monkeypatch, chosen):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    monkeypatch.setenv("TINYARR_CACHE", chosen)
    assert not cache.write(NAME, CONTENT) and cache.read(NAME) is None


def test_a_full_disk_costs_the_entry_alone_and_leaves_nothing(folder, monkeypatch):
    written(folder).unlink()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not cache.write(NAME, CONTENT) and not list(folder.iterdir())
    monkeypatch.setattr(os, "unlink", full)
    assert not cache.write(NAME, CONTENT)


def test_a_link_to_the_folder_is_followed(folder, monkeypatch, tmp_path):
    written(folder)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "link"))
    assert cache.read(NAME) == CONTENT


def test_a_relative_folder_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for chosen in (".", "below"):
        monkeypatch.setenv("TINYARR_CACHE", chosen)
        written(tmp_path / chosen)


def test_the_folder_is_in_the_users_cache_folder_where_none_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    for chosen, folder in {"/caches": "/caches/tinyarr", "relative": "/home/user/.cache/tinyarr", "": None}.items():
        monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        assert str(cache.folder()) == (folder or "/home/user/.cache/tinyarr")


@pytest.fixture
def command(monkeypatch, capsys):
    """A call of `python -m tinyarr cache`, which returns what that prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tinyarr", "cache", *arguments])
        assert main() == 0
        return capsys.readouterr().out

    return run


def test_clear_removes_entries_and_what_a_killed_writer_left_and_no_other_file(folder, command):
    written(folder)
    (folder / f"{cache.name_of('so', 1)}.k1lled_x").touch()
    foreign = {"notes.txt", "writing-thesis", "0123.so", f"{'0' * 64}.json", f"{'0' * 64}.so.backup", "library.so"}
    for name in foreign:
        (folder / name).touch()
    (folder / cache.name_of("so", 2)).mkdir()
    (folder / cache.name_of("so", 3)).symlink_to("notes.txt")
    shown = command("--clear")
    assert "2 files" in shown and shown.endswith("cleared\n")
    left = {file.name for file in folder.iterdir()}
    assert left == foreign | {cache.name_of("so", 2), cache.name_of("so", 3)}


@pytest.mark.parametrize("chosen", ["missing", "file"])
def test_clear_of_what_is_no_folder_removes_nothing(tmp_path, monkeypatch, command, chosen):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / chosen))
    assert "0 files" in command("--clear")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_seen_is_told(tmp_path, monkeypatch, command, capsys):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "loop"))
    with pytest.raises(SystemExit):
        command()
    assert "loop can't be read or emptied" in capsys.readouterr().err


def test_without_a_home_folder_nothing_is_kept(monkeypatch, command):
    for name in ("HOME", "TINYARR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # nor has /etc/passwd this user
    assert cache.folder() is None and cache.files() == []
    assert not cache.write(NAME, CONTENT) and cache.read(NAME) is None
    assert "there is no home folder" in command("--clear")
