"""What a run shows: a live line on a terminal, plain lines elsewhere."""

import io
from types import SimpleNamespace

from rich.console import Console

from models import progress


def record(step, val_loss=None):
    return dict(step=step, loss=2.0, val_loss=val_loss, tokens_per_s=1234.5)


def shown(monkeypatch, terminal, records):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    monkeypatch.setattr("rich.console.Console", lambda **options: console)
    with progress.Progress(0, 100) as line:
        for entry in records:
            line.show_validation(*entry) if isinstance(entry, tuple) else line.show(entry)
    return out.getvalue()


def test_away_from_a_terminal_there_is_a_line_each_validation_and_every_ten_seconds(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    text = shown(monkeypatch, False, [record(step, val_loss=2.5 if step in (0, 50) else None) for step in range(61)])
    lines = text.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [0, 10, 20, 30, 40, 50, 60]
    assert lines[1] == "step  10/100  loss 2.000  validation 2.500  1,234 tokens/s  0:01:30 left"


def test_a_long_validation_is_shown_as_it_goes_on(monkeypatch):
    seconds = iter(range(0, 100, 4))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    seen = [(tokens, 9000) for tokens in range(0, 9001, 1000)]
    lines = shown(monkeypatch, False, [*seen, record(0, val_loss=2.5)]).splitlines()
    assert lines[:-1] == [f"validation: {n:,}/9,000 tokens" for n in (2000, 5000, 8000)]
    assert "validation: 9,000/9,000 tokens" in shown(monkeypatch, True, seen)


def test_on_a_terminal_the_line_is_renewed_in_place_and_validations_stay(monkeypatch):
    text = shown(monkeypatch, True, [record(0, val_loss=2.5), record(1), record(2)])
    assert "\x1b[" in text and "step   2/100" in text
    assert "step   0/100  loss 2.000  validation 2.500" in text
