"""Ranks find each other in each of three ways, and a rank that does not come is named within the time-out."""

import json
import os
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.processes import Rank, free_port, seconds
from tests.distributed.runtime.controls import together
from tests.tiers import slow
from tinyarr.distributed.runtime import rendezvous
from tinyarr.distributed.runtime.control import Control
from tinyarr.distributed.runtime.environment import RankPlace
from tinyarr.distributed.runtime.launch import _mpiexec
from tinyarr.errors import ArgumentError, RankError

# A line is written at once: two ranks may share a pipe, and Python's unbuffered print writes it in pieces.
MEET = """
import os, time
from tinyarr.distributed.runtime import environment, rendezvous
place = environment.find()
control = rendezvous.meet(place, {timeout})
words = control.exchange("key", 10 * place.rank, range(place.size))
os.write(1, f"{{words}} {{len(control.processes)}}\\n".encode())
"""
MET = "[0, 10] 2\n"
ABSENT = "import time; time.sleep(30)"
MARGIN = 10.0  # seconds for two Pythons to start on a busy machine, and to end


def variables(rank, size, rendezvous):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "TINYARR_RENDEZVOUS": rendezvous}


def address(way, folder):
    return {"tcp": f"tcp://127.0.0.1:{free_port()}", "folder": f"folder:{folder}/a b"}[way]


def under_mpiexec(*codes):
    """All ranks as one process, that of mpiexec."""
    choose = f"import os; exec({list(codes)!r}[int(os.environ['PMI_RANK'])])"
    return Rank(choose, {}, before=[_mpiexec(), "-n", str(len(codes))])


@pytest.mark.parametrize("way", ["tcp", "folder"])
def test_ranks_meet(tmp_path, way):
    where = address(way, tmp_path)
    ranks = [Rank(MEET.format(timeout=30), variables(i, 2, where)) for i in range(2)]
    assert [rank.end() for rank in ranks] == [(0, MET, "")] * 2
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_ranks_meet_by_mpi():
    status, out, err = under_mpiexec(MEET.format(timeout=30), MEET.format(timeout=30)).end()
    assert (status, out, err) == (0, 2 * MET, "")


@pytest.mark.parametrize("way, first", [slow("tcp", 0), slow("tcp", 1), ("folder", 0), slow("folder", 1)])
def test_ranks_may_come_one_after_the_other(tmp_path, way, first):
    where = address(way, tmp_path)
    early = Rank(MEET.format(timeout=30), variables(first, 2, where))
    time.sleep(0.5)
    late = Rank(MEET.format(timeout=30), variables(1 - first, 2, where))
    assert early.end() == late.end() == (0, MET, "")


@pytest.mark.parametrize("way", [slow("tcp"), "folder"])
def test_every_rank_that_came_names_the_one_that_did_not(tmp_path, way):
    where = address(way, tmp_path)
    ranks = [Rank(MEET.format(timeout=1), variables(i, 3, where)) for i in range(2)]
    took, ends = seconds(lambda: [rank.end() for rank in ranks])
    for status, _, err in ends:
        assert status == 1
        assert "RankError: init: rank 2 of 3 did not come within 1 s" in err
    assert took < 1 + MARGIN
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    "way, waited_for", [slow("tcp", "be reached at 127.0.0.1, port"), ("folder", "a b within 1 s")]
)
def test_the_others_say_where_they_waited_for_rank_0(tmp_path, way, waited_for):
    took, (status, _, err) = seconds(Rank(MEET.format(timeout=1), variables(1, 2, address(way, tmp_path))).end)
    assert status == 1 and "RankError: init: rank 0 of 2 " in err and waited_for in err
    assert took < 1 + MARGIN


@pytest.mark.parametrize("absent, named", [(1, "1 of 2 did not come"), slow(0, "0 of 2 has not said where it is")])
def test_a_rank_under_mpi_that_does_not_call_init_is_named(absent, named):
    codes = [MEET.format(timeout=1)] * 2
    codes[absent] = "from mpi4py import MPI\n" + ABSENT
    took, (status, _, err) = seconds(under_mpiexec(*codes).end)
    assert status == 1 and f"RankError: init: rank {named} within 1 s" in err
    assert took < 1 + MARGIN


@pytest.mark.slow
def test_a_rank_that_never_starts_mpi_ends_the_others():
    took, (status, _, err) = seconds(under_mpiexec(ABSENT, MEET.format(timeout=2)).end)
    assert status == 1 and "Timeout (0:00:02)!" in err and "_mpi_world" in err
    assert took < 2 + MARGIN


def test_mpi_of_another_kind_than_the_launcher_is_found_out():
    status, _, err = Rank(MEET.format(timeout=5), variables(1, 2, "mpi")).end()
    assert status == 1
    assert "ArgumentError: init: mpi4py says rank 0 of 1, the launcher rank 1 of 2: use the mpiexec of" in err


def test_what_an_earlier_run_left_in_the_folder_misleads_nobody(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    stale = {"hosts": ["127.0.0.1"], "port": free_port(), "secret": "old", "words": {"1": "old"}}
    (folder / "meeting").write_text(json.dumps(stale))
    (folder / "rank.1").write_text("old")
    (folder / "rank.7").write_text("of a larger run")
    where = f"folder:{folder}"
    late = Rank(MEET.format(timeout=30), variables(1, 2, where))
    time.sleep(0.7)
    early = Rank(MEET.format(timeout=30), variables(0, 2, where))
    assert early.end() == late.end() == (0, MET, "")


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = Rank(MEET.format(timeout=5), variables(0, 2, f"tcp://127.0.0.1:{port}")).end()
    assert status == 1 and f"init: rank 0 cannot listen on port {port}" in err and "choose another address" in err


@pytest.fixture
def listeners(monkeypatch):
    """The addresses at which rank 0 listens."""
    found, listen = [], rendezvous._listen

    def recorded(host, port):
        listener = listen(host, port)
        found.append(listener.getsockname()[0])
        return listener

    monkeypatch.setattr(rendezvous, "_listen", recorded)
    return found


def meet_here(*places):
    """The controls of ranks that meet in this process, or their errors."""
    found = together(*(lambda place=place: rendezvous.meet(place, 10.0) for place in places))
    for control in found:
        if isinstance(control, Control):
            control._told.set()
            control.close()
    return found


def has_ipv6_loopback():
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host, local_size, expected", [
    ("no-such-host.invalid", 2, "127.0.0.1"), ("LOCALHOST", None, "127.0.0.1"), ("127.0.0.1", 1, "127.0.0.1"),
    ("127.0.0.2", None, "127.0.0.2"), ("0.0.0.0", None, "0.0.0.0"), ("::1", None, "::1"), ("::", None, "::"),
])
def test_rank_0_listens_to_the_network_only_where_a_rank_may_be_elsewhere(
    listeners, monkeypatch, host, local_size, expected
):
    if ":" in host and not has_ipv6_loopback():
        pytest.skip("this machine has no address ::1")
    monkeypatch.setenv("TINYARR_SECRET", "secret")
    address = f"{host}:{free_port()}"
    found = meet_here(*(RankPlace(rank, 2, rank, local_size, "tcp", address) for rank in range(2)))
    assert all(isinstance(control, Control) for control in found), found
    assert listeners == [expected]


@pytest.mark.parametrize("local_size, expected", [(2, "127.0.0.1"), (1, "0.0.0.0"), (None, "0.0.0.0")])
def test_a_run_that_meets_in_a_folder_listens_where_it_must(tmp_path, listeners, local_size, expected):
    found = meet_here(*(RankPlace(rank, 2, rank, local_size, "folder", str(tmp_path)) for rank in range(2)))
    assert all(isinstance(control, Control) for control in found), found
    assert listeners == [expected]


@pytest.mark.parametrize("host, who", [("localhost", "every user of this"), ("0.0.0.0", "whoever can reach 0.0.0.0")])
def test_ranks_that_meet_over_tcp_without_a_secret_are_warned_once(monkeypatch, host, who):
    monkeypatch.delenv("TINYARR_SECRET", raising=False)
    address = f"{host}:{free_port()}"
    with pytest.warns(UserWarning, match=f"TINYARR_SECRET is not set, so {who}") as warned:
        found = meet_here(*(RankPlace(rank, 2, rank, None, "tcp", address) for rank in range(2)))
    assert len(warned) == 1 and all(isinstance(control, Control) for control in found)


@pytest.mark.slow
def test_ranks_whose_secrets_differ_are_told_on_either_side():
    where = address("tcp", None)
    ranks = [Rank(MEET.format(timeout=2), variables(i, 2, where) | {"TINYARR_SECRET": f"{i}"}) for i in range(2)]
    (status, _, err), (other, _, told) = [rank.end() for rank in ranks]
    assert status == other == 1
    assert "rank 1 of 2 did not come" in err and "some came with another TINYARR_SECRET" in err
    assert "has not shown within 2 s to be rank 0 of 2: see whether all ranks have the same TINYARR_SECRET" in told


def test_a_host_that_can_be_none_is_told_as_one_that_is_not_there():
    with pytest.raises(RankError, match=r"rank 0 of 2 cannot be reached at a\.\.b, port 80"):
        rendezvous.meet(RankPlace(1, 2, 1, None, "tcp", "a..b:80"), 0.1)


FOREIGN = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to nothing": lambda file: os.symlink("missing", file),
    "a link to what has no end": lambda file: os.symlink("/dev/zero", file),
    "nothing": lambda file: open(file, "w").close(),
    "binary": lambda file: Path(file).write_bytes(bytes(range(256))),
    "brackets": lambda file: Path(file).write_text("[" * 100_000),
    "a list": lambda file: Path(file).write_text("[1]"),
    "words that are none": lambda file: Path(file).write_text('{"words": [1]}'),
    "no words": lambda file: Path(file).write_text('{"words": {}, "hosts": 1}'),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_in_the_folder_keep_no_rank_from_coming(tmp_path, kind):
    for name in ("rank.2", "rank.x", "rank.", *(["meeting", "rank.1"] if kind != "a folder" else [])):
        FOREIGN[kind](tmp_path / name)
    found = meet_here(*(RankPlace(rank, 2, rank, 2, "folder", str(tmp_path)) for rank in range(2)))
    assert all(isinstance(control, Control) for control in found), found
    assert {file.name for file in tmp_path.iterdir()} == {"rank.2", "rank.x", "rank."}


def test_no_other_user_can_read_what_ranks_write_to_the_folder(tmp_path):
    before, folder, modes = os.umask(0), tmp_path / "new", {}

    def look(file, text):
        write(file, text)
        modes[file.name] = stat.S_IMODE(file.stat().st_mode)

    write = rendezvous._write
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rendezvous, "_write", look)
            meet_here(*(RankPlace(rank, 2, rank, 2, "folder", str(folder)) for rank in range(2)))
    finally:
        os.umask(before)
    assert modes == {"meeting": 0o600, "rank.1": 0o600} and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("rank, where", [(0, "file"), (1, "file"), (0, "file/below"), (1, "taken")])
def test_a_folder_that_does_not_serve_is_told(tmp_path, rank, where):
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "rank.1").mkdir(parents=True)
    with pytest.raises(ArgumentError, match=r"init: the ranks cannot meet in .*: give TINYARR_RENDEZVOUS a folder"):
        rendezvous.meet(RankPlace(rank, 2, rank, 2, "folder", str(tmp_path / where)), 5.0)


@pytest.mark.parity
def test_ranks_meet_under_torchrun(tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(MEET.format(timeout=30))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    status, out, _ = Rank(None, {}, before=[*torchrun, str(script)]).end()
    assert (status, out) == (0, 2 * MET)
