"""Whatever comes to the port of a run ends its own connection alone, and the secret alone makes a rank of who comes."""

import contextlib
import json
import random
import socket
import time

import pytest

from tests.distributed.processes import wait_for
from tests.distributed.runtime.controls import exchanges, together
from tinyarr.distributed.runtime import handshake, server
from tinyarr.distributed.runtime.connection import Connection
from tinyarr.errors import RankError


def hello(**changed):
    """A line that has all that a rank's hello has but the right proof."""
    said = {"kind": "hello", "challenge": "", "rank": 1, "size": 2, "process": "stranger", "proof": ""}
    return json.dumps({k: v for k, v in (said | changed).items() if v is not ...}).encode() + b"\n"


def of_no_sense():
    """A line a field: without it, and with a value of each other type."""
    yield b"{}\n"
    for name in json.loads(hello()):
        for value in (..., None, True, 1, -1, 1.5, 1 << 70, "x", "\ud800", [], {}, [[]], {"x": []}):
            yield hello(**{name: value})


LINES = {
    "brackets": b"[" * 60_000 + b"\n",
    "as many as a line may have": b"[" * 4000 + b"\n",
    "braces": b'{"kind":' * 60_000 + b"\n",
    "a web browser's": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a handshake of TLS": bytes.fromhex("16030100c8010000c40303") + bytes(5000),
    "binary": bytes(range(256)) * 16 + b"\n",
    "UTF-16": hello().decode().encode("utf-16") + b"\n",
    "a number": b"9" * 4000 + b"\n",
    "a number too many": b'{"kind": "hello", "rank": ' + b"9" * 60_000 + b"}\n",
    "no object": b"[]\n",
    "no kind": b'{"rank": 0}\n',
    "a kind that is a list": b'{"kind": []}\n',
    "what only ranks say": b'{"kind": "value", "key": [], "value": {}, "ranks": [0]}\n',
    "farewell": b'{"kind": "farewell", "begun": {}}\n',
    "the server's": b'{"kind": "lost", "why": "no reason"}\n',
    "empty lines": b"\n" * 100,
    "without end": b"x" * 100_000,
    "a hello without end": hello()[:-1] + b" " * 100_000,
}


def is_ended(sock):
    """Waits for the server to end a connection, for the time-out of the socket."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass
    return True


def send(sock, line):
    with contextlib.suppress(ConnectionError):  # the server need not read on
        sock.sendall(line)


@pytest.mark.parametrize("kind", LINES)
def test_what_is_no_hello_ends_that_connection_alone(start_run, kind):
    run = start_run()
    a = run.join(0)
    with run.connect() as stranger:
        send(stranger, LINES[kind])
        assert is_ended(stranger)
    b = run.join(1)
    assert exchanges(a, b)
    with run.connect() as stranger:
        send(stranger, LINES[kind])
        assert is_ended(stranger)
    assert exchanges(a, b)


def test_a_hello_of_no_sense_ends_that_connection_alone_though_there_is_no_secret(start_run):
    run = start_run(secret="")
    a = run.join(0)
    for line in of_no_sense():
        with run.connect() as stranger:
            stranger.sendall(line)
            assert is_ended(stranger), line
    assert exchanges(a, run.join(1))


@pytest.mark.parametrize("rank", [-1, 2, 1 << 70])
def test_a_rank_that_there_is_not_is_told_so(start_run, rank):
    run = start_run()
    a, b, stranger = run.join(0), run.join(1), run.joined(rank)
    assert f"came as rank {rank} of 2, but the run has 2" in stranger.first(time.monotonic() + 10)["why"]
    assert exchanges(a, b)
    stranger.end()


@pytest.mark.parametrize("rank, size", [(1, 3), (0, 2)])
def test_a_rank_of_another_run_is_refused(start_run, rank, size):
    run = start_run()
    a, b = run.join(0), run.join(1)
    together(a.meet, b.meet)
    with pytest.raises(RankError, match=f"came as rank {rank} of {size}"):
        run.join(rank, size=size).meet()
    assert exchanges(a, b)


@pytest.mark.parametrize("secret", ["", "secre", "secret ", "é", "\udcff"])
@pytest.mark.parametrize("rank", [0, 1])
def test_without_the_secret_nobody_takes_the_place_of_a_rank(start_run, rank, secret):
    run = start_run()
    for _ in range(2):  # before the rank has come, and after
        with pytest.raises(EOFError):
            run.joined(rank, secret)
        if not run.controls:
            a, b = run.join(0), run.join(1)
    assert exchanges(a, b)


def test_a_proof_that_was_overheard_serves_no_second_time(start_run):
    run, said = start_run(), []

    class Overheard(Connection):
        def send(self, kind, **values):
            said.append((kind, values))
            return super().send(kind, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake, "Connection", Overheard)
        run.joined(1).end()
    ((kind, values),) = said
    run = start_run()
    again = Connection(run.connect())
    again.first(time.monotonic() + 10)
    again.send(kind, **values)
    assert is_ended(again.socket) and run.secret not in str(values)
    assert exchanges(run.join(0), run.join(1))


@pytest.mark.parametrize("line", [
    b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[" * 60_000, b'{"kind": "met", "processes": []}\n',
    b'{"kind": "challenge", "challenge": [[]]}\n', b'{"kind": "challenge", "challenge": "x"}\n',
    b'{"kind": "challenge", "challenge": "x"}\n{"kind": "welcome", "proof": "x"}\n',
    b'{"kind": "challenge", "challenge": "x"}\n{"kind": "lost", "why": "no reason"}\n',
])
def test_who_does_not_know_the_secret_is_not_taken_for_rank_0(line):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
        other.sendall(line)
        other.shutdown(socket.SHUT_WR)
        with pytest.raises((EOFError, ValueError)):
            handshake.join(sock, "secret", 1, 2, time.monotonic() + 10)
        other.close()
    assert sock.fileno() < 0


def test_who_sends_bytes_ever_so_slowly_has_a_rank_wait_no_longer_than_it_would(monkeypatch):
    monkeypatch.setattr(handshake, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()

        def drip():
            with contextlib.suppress(OSError):
                while True:
                    other.sendall(b" ")
                    time.sleep(0.05)

        begin = time.monotonic()
        error, _ = together(lambda: handshake.join(sock, "secret", 1, 2, begin + 10), drip)
        assert isinstance(error, EOFError) and time.monotonic() - begin < 5
        other.close()


def test_who_says_nothing_or_half_a_line_is_sent_away_in_seconds(start_run, monkeypatch):
    monkeypatch.setattr(handshake, "PATIENCE", 0.3)
    run = start_run(timeout=1.0)  # and so a beat each quarter of a second
    silent, half = run.connect(), run.connect()
    half.sendall(hello()[:20])
    begin = time.monotonic()
    assert is_ended(silent) and is_ended(half) and time.monotonic() - begin < 5
    silent.close()
    half.close()


def test_of_many_strangers_the_first_are_sent_away_and_ranks_come_in(start_run):
    run = start_run(size=3)
    a = run.join(0)
    strangers = [run.connect() for _ in range(3 * server._STRANGERS)]
    b = run.join(1)
    most = server._STRANGERS + 2
    assert wait_for(lambda: len(run.server._strangers) <= most)
    assert all(is_ended(stranger) for stranger in strangers[:-most])
    assert len(run.server._selector.get_map()) <= most + 3
    c = run.join(2)
    assert exchanges(a, b, c)
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("line", [
    b"[" * 60_000, b"{}", b'{"kind": "value", "key": []}', b'{"kind": "raised"}', b'{"kind": "farewell", "begun": [1]}',
    b'{"kind": "state", "begun": [], "waiting": null}', b'{"kind": "state", "begun": {"0,1": 1}, "waiting": null}',
    b'{"kind": "state", "begun": {}, "waiting": {"group": "0,1", "number": 1, "ranks": [7]}}',
    b'{"kind": "state", "begun": {}, "waiting": {"group": "", "number": {}, "ranks": [], "operation": "", "beats": 0}}',
])
def test_a_rank_that_sends_nonsense_is_named_and_ends_the_run(start_run, line):
    run = start_run()
    a, b = run.join(0), run.join(1)
    together(a.meet, b.meet)
    a._told.set()
    b._told.set()
    b._connection.socket.sendall(line + b"\n")
    error = together(lambda: a.exchange("x", 1, (0, 1)))[0]
    assert isinstance(error, RankError) and "rank 1 (" in str(error) and "what cannot be understood" in str(error)


def test_an_error_with_half_a_surrogate_pair_reaches_the_others(start_run):
    run = start_run()
    a, b = run.join(0), run.join(1)
    together(a.meet, b.meet)
    a._told.set()
    b._told.set()
    b._raised(ValueError("\udcff"))
    wait_for(lambda: a._lost)
    a._say_why()


def noise(r):
    """Bytes as a stranger may send them: random, or a hello of which some are not what they were."""
    if r.random() < 0.3:
        return r.randbytes(r.choice([1, 10, 1000, 10_000]))
    line = bytearray(hello(rank=r.choice([0, 1, 2]), proof=r.choice(["", "0" * 64])))
    for _ in range(r.choice([0, 1, 3, 30])):
        place = r.randrange(len(line))
        line[place : place + r.choice([0, 1, 5])] = r.choice([b"", b"\n", b'"', b"[" * 50, r.randbytes(1)])
    return bytes(line) * r.choice([1, 1, 2, 500])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_lives_on_whatever_is_sent(start_run, seed):
    r = random.Random(seed)
    run = start_run()
    a = run.join(0)
    open_ones = []
    for i in range(3000 if seed else 150):
        sock = run.connect()
        for _ in range(r.choice([1, 1, 3])):
            send(sock, noise(r))
        if r.random() < 0.5:
            sock.close()
        else:
            open_ones.append(sock)
        if i == 100:
            b = run.join(1)
        if i > 100 and i % 100 == 0:
            assert exchanges(a, b)
    assert exchanges(a, b)
    for sock in open_ones:
        sock.close()
