"""The plan of memory, printed and drawn, before anything is allocated too."""

import pytest

import tinyarr as ta
from models.gpt2 import GPT2, Config
from tinyarr import Device, Tensor


def traced(device):
    model = GPT2(Config(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32), device=device)
    optimizer = ta.optim.AdamW(model.parameters(), lr=1e-3)

    @ta.compile
    def step(tokens):
        loss = model.loss(tokens, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step(ta.zeros((2, 16), dtype=ta.int64, device=device))
    return step.memory[0]


def test_the_plan_on_meta_is_the_plan_of_the_run():
    planned, run = traced(Device("meta", like="cpu")), traced("cpu")
    assert (planned.arena, planned.state, planned.lives) == (run.arena, run.state, run.lives)
    assert planned.scratch == run.scratch > 0
    assert run.arena >= sum(life.nbytes for life in run.alive(run.fullest))


def test_the_plan_is_what_the_program_takes():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    run = ta.compile(lambda x: (x @ x) @ (x @ x))
    run(x)
    memory, program = run.memory[0], run.programs[0]
    assert program.arena == memory.arena + memory.scratch


def test_the_table_names_what_is_held_where_it_was_made():
    @ta.compile
    def run(x):
        y = x @ x
        return (y * ta.exp(y)).sum()

    run(Tensor([[1.0, 2.0], [3.0, 4.0]]))
    shown = str(run.memory[0])
    assert "float32[2, 2]" in shown and "matmul" in shown and "test_memory.py:" in shown


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    traced("cpu").draw(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 10_000
