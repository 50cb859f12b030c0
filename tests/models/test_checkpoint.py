"""Checkpoints: two are kept, each is whole or noticed, and none is ever written over."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import tinyarr
from models import checkpoint
from models.options import Stop
from models.run import Run
from tests.models.test_run import CONFIG, OPTIONS, Toy, contents, folder, state, twice_saved  # noqa: F401
from tinyarr import distributed, optim, saving
from tinyarr.distributed.data_parallel import Part


def test_two_checkpoints_are_kept():
    run = twice_saved()
    names = ["checkpoint.1.step1.json", "checkpoint.2.step2.json", "checkpoint.3.step3.json"]
    assert [path.name for path in checkpoint.indices(run.folder)] == names[1::-1]
    run.save(3, *state(3), tinyarr.Generator(0))
    assert [path.name for path in checkpoint.indices(run.folder)] == names[:0:-1]
    assert len(contents(run.folder)) == 4


def test_a_flipped_bit_anywhere_is_noticed_and_the_checkpoint_before_taken(capsys):
    run = twice_saved()
    for name, whole in contents(run.folder).items():
        if ".step2." not in name:
            continue
        for place in range(0, len(whole), 1 if name.endswith(".json") else 5):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            (run.folder / name).write_bytes(flipped)
            model, optimizer, parallel = state(0)
            try:
                assert run.load(model, optimizer, parallel) == 1
            except Stop as stop:
                assert "says step" in str(stop) and "its name step 2: one of them was changed" in str(stop)
            else:
                assert model.x.tolist() == [1] and optimizer.state_of(model.x)["m"].tolist() == [1]
                assert f"note: run/{name} is damaged" in capsys.readouterr().err
        (run.folder / name).write_bytes(whole)
    assert run.load(*state(0)) == 2


@pytest.mark.parametrize("name", ["checkpoint.2.step2.json", "checkpoint.2.step2.0of1.safetensors"])
def test_of_a_checkpoint_that_is_cut_short_or_lacks_a_file_the_one_before_is_taken(name, capsys):
    path = twice_saved().folder / name
    path.write_bytes(path.read_bytes()[:-3])
    assert Run.open("run").load(*state(0)) == 1
    path.unlink()
    assert Run.open("run").load(*state(0)) == 1
    assert "the checkpoint before it is taken" in capsys.readouterr().err


def test_the_checkpoint_that_was_taken_is_kept_and_not_the_damaged_one_after_it():
    twice_saved()
    Path("run/checkpoint.2.step2.0of1.safetensors").write_bytes(b"")
    run = Run.open("run")
    run.load(*state(0))
    run.save(2, *state(2), tinyarr.Generator(0))
    names = ["checkpoint.3.step2.json", "checkpoint.1.step1.json"]
    assert [path.name for path in checkpoint.indices(run.folder)] == names


def test_where_no_checkpoint_is_whole_the_last_fault_is_told():
    for path in twice_saved().folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Stop, match=r"run/checkpoint\.1\.step1\.0of1\.safetensors is damaged \(its digest is of other "
                                   r"content\), and there is no other: bring it back, or train anew"):
        Run.open("run").load(*state(0))


def test_a_changed_step_is_told_and_nothing_loaded():
    index = twice_saved().saved.index
    index.write_text(index.read_text().replace('"step": 2', '"step": 1'))
    model, *rest = state(7)
    with pytest.raises(Stop, match="says step 1, its name step 2: one of them was changed, so bring it back, or "):
        Run.open("run").load(model, *rest)
    assert model.x.tolist() == [7]
    index.rename(index.with_name("checkpoint.2.step1.json"))  # both are changed: the digest tells
    assert Run.open("run").load(*state(0)) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}'])
def test_a_checkpoint_without_digests_that_says_nothing_is_told(text):
    run = Run.start("run", CONFIG)
    saving.save("run/checkpoint.safetensors", {}, {"state": text})
    with pytest.raises(Stop, match=r"run/checkpoint\.safetensors is damaged .* and there is no other"):
        run.load(*state(0))


def test_a_step_that_the_run_does_not_have_is_told():
    twice_saved()
    config = json.dumps(CONFIG | {"options": OPTIONS | {"steps": 1}})
    Path("run/config.json").write_text(config)
    with pytest.raises(Stop, match="says that step 2 is next, but the run has 1 steps: one of them was changed"):
        Run.open("run").load(*state(0))


@pytest.mark.parametrize(("values", "dtype", "message"), [
    ([0, 0], tinyarr.float32, "model.x has 1 elements of float32, the model's 2 of float32: bring back the config"),
    ([0], tinyarr.bfloat16, "model.x has 1 elements of float32, the model's 1 of bfloat16: bring back the config"),
])
def test_a_checkpoint_of_another_size_or_dtype_is_told(values, dtype, message):
    run, model = twice_saved(), Toy(*values)
    model.x = tinyarr.nn.Parameter(model.x.detach().astype(dtype))
    with pytest.raises(Stop, match=message):
        run.load(model)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_checkpoint_without_digests_is_read_and_gives_way_to_those_that_have_them(parts):
    run = Run.start("run", CONFIG)
    model, optimizer, parallel = state(1, 2, momentum=3)
    metadata = {"state": json.dumps({"step": 1, "generator": tinyarr.Generator(0).state_dict()})}
    own = [dict(checkpoint._own(checkpoint.held(model, optimizer, parallel), rank, parts)) for rank in range(parts)]
    if parts == 1:
        saving.save("run/checkpoint.safetensors", own[0], metadata)
    else:
        names = [f"checkpoint.1.{rank}of2.safetensors" for rank in range(2)]
        for name, tensors in zip(names, own):
            saving.save(f"run/{name}", tensors)
        saving.save("run/checkpoint.safetensors", {}, metadata | {"files": json.dumps(names)})
    old = contents(run.folder)
    model, optimizer, parallel = state(0, 0)
    assert run.load(model, optimizer, parallel) == 1
    assert model.x.tolist() == [1, 2] and optimizer.state_of(model.x)["m"].tolist() == [3, 3]
    run.save(1, model, optimizer, parallel, tinyarr.Generator(0))
    assert contents(run.folder).items() > old.items() and run.load(*state(0, 0)) == 1
    run.save(2, model, optimizer, parallel, tinyarr.Generator(0))
    assert len(contents(run.folder)) == 4 and not contents(run.folder).keys() & old.keys()


class Ranks:
    """Ranks that are threads of this process; one that raises ends the others where they wait for it."""

    def __init__(self, monkeypatch, size=2):
        self.size, self.own, self.barrier, self.values = size, threading.local(), threading.Barrier(size), [None] * size
        monkeypatch.setattr(distributed, "world", lambda: self.own.group)

    def run(self, work):
        """What work(rank) gives or raises on each."""
        self.barrier.reset()
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(lambda rank: self._run(work, rank), range(self.size)))

    def _run(self, work, rank):
        self.own.group = SimpleNamespace(rank=rank, size=self.size, exchange=lambda value: self._exchange(rank, value))
        try:
            return work(rank)
        except Exception as error:
            self.barrier.abort()
            return error

    def _exchange(self, rank, value):
        self.values[rank] = json.dumps(value)
        self.barrier.wait(10)
        values = [json.loads(each) for each in self.values]
        self.barrier.wait(10)
        return values


def shared_out(rank, shares, value):
    """A model of four elements, and an optimizer whose state the two ranks share out or all have."""
    model = Toy(*[value] * 4)
    low, high = (2 * rank, 2 * rank + 2) if shares else (0, 4)
    own = tinyarr.nn.Parameter(model.x.detach()[low:high] * 1) if shares else model.x
    parallel = SimpleNamespace(parts=[Part(model.x, low, high, own)], scatter=lambda: None)
    optimizer = optim.AdamW([own])
    optimizer.state_of(own)["m"].assign(value)
    return model, optimizer, parallel


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("then", [False, True])
def test_a_rank_that_dies_while_it_saves_in_another_cut_spares_the_checkpoint(monkeypatch, first, then, victim):
    ranks, save = Ranks(monkeypatch), saving.save

    def begin(rank):
        Run.start("run", CONFIG).save(1, *shared_out(rank, first, 1), tinyarr.Generator(0))

    def go_on(rank):
        run, (model, optimizer, parallel) = Run.open("run"), shared_out(rank, then, 0)
        assert run.load(model, optimizer, parallel) == 1
        assert model.x.tolist() == [1] * 4
        assert set(optimizer.state_of(parallel.parts[0].tensor)["m"].tolist()) == {1}
        run.save(1, model, optimizer, parallel, tinyarr.Generator(0))

    def die(path, tensors):
        while f".{victim}of2." in path.name:
            time.sleep(0.001)
            if len(contents(path.parent)) > len(before):  # the other rank has written its part
                raise RuntimeError("killed")
        save(path, tensors)

    assert ranks.run(begin) == [None, None]
    before = contents(Path("run"))
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", die)
        assert str(ranks.run(go_on)[victim]) == "killed"
    assert contents(Path("run")).items() > before.items()
    assert ranks.run(go_on) == [None, None]
    assert len(contents(Path("run"))) == 2 * 3


def test_a_part_of_another_save_under_the_same_name_is_noticed(monkeypatch):
    ranks = Ranks(monkeypatch)

    def begin(rank):
        run = Run.start("run", CONFIG)
        for value in (1, 2):
            run.save(value, *shared_out(rank, True, value), tinyarr.Generator(0))

    assert ranks.run(begin) == [None, None]
    late, name = shared_out(1, True, 7), "checkpoint.2.step2.1of2.safetensors"
    saving.save(Path("run", name), dict(checkpoint._own(checkpoint.held(*late), 1, 2)))
    assert ranks.run(lambda rank: Run.open("run").load(*shared_out(rank, False, 0))) == [1, 1]
