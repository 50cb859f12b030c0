"""The training benchmark runs, what it compares computes the same, and what it says of kernels adds up."""

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import step_kernels
from benchmarks.train import draw_tokens, report
from models import gpt2, llama3
from tests.backends.cuda.bound import bound
from tinyarr import Device, Generator, Tensor, bfloat16, compile, int64, zeros
from tinyarr.backends.cuda.libraries import cublaslt, cudnn
from tinyarr.backends.cuda.planning.registry import LaunchPlan, LibraryCall, Operand
from tinyarr.backends.cuda.program.lowering import Launchable
from tinyarr.compiler.memory.plan import plan
from tinyarr.data import write_shard
from tinyarr.views import contiguous_strides

ROOT = Path(__file__).parents[1]
# Multiples of 128: a peer counts the rows that pad a vocabulary among its classes.
GPT2 = (gpt2.GPT2, gpt2.Config(vocab_size=128, block_size=16, n_layer=2, n_head=2, n_embd=32))
LLAMA3 = (llama3.Llama3, llama3.Config(128, 16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48))
TIED = (llama3.Llama3, llama3.Config(128, 16, n_layer=1, n_head=2, n_kv_head=1, n_embd=32, n_hidden=48, tied=True))


def benchmark(*arguments):
    command = [sys.executable, "-m", "benchmarks.train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def numbers(printed, label):
    [line] = [line for line in printed.splitlines() if line.startswith(label)]
    return [float(number.replace(",", "")) for number in re.findall(r"-?[\d,]+\.?\d*", line.removeprefix(label))]


def test_a_training_step_is_measured(tmp_path):
    out = tmp_path / "result.txt"
    run = benchmark("--size", "tiny", "--peer", "none", "--steps", "2", "--rounds", "1", "--accumulate", "2",
                    "--batch-size", "2", "--seq-len", "32", "--memory-budget", "1", "--out", str(out))
    assert (run.returncode, run.stderr) == (0, "")
    assert out.read_text() == run.stdout
    assert "Command: python -m benchmarks.train --size tiny --peer none" in run.stdout
    [rate], [step] = numbers(run.stdout, "tokens/s"), numbers(run.stdout, "step, median, ms")
    # Both are printed rounded, to 1 and to 0.1 ms.
    assert rate == pytest.approx(2 * 2 * 32 / step * 1000, rel=0.1 / step + 1 / rate)
    [first], [last] = numbers(run.stdout, "loss, first step"), numbers(run.stdout, "loss, last step")
    assert last < first == pytest.approx(np.log(257), abs=0.1)  # it starts by guessing
    assert numbers(run.stdout, "counted, GiB") < numbers(run.stdout, "memory, warm, GiB")
    assert len(numbers(run.stdout, "tinyarr   ")) == 2


@pytest.mark.parametrize(("arguments", "said"), [
    (["--size", "7B"], "gpt2 has tiny, 124M, 350M, 774M, 1558M"),
    (["--size", "tiny", "--seq-len", "65"], "tiny has 64 positions"),
    (["--steps", "0"], "--steps 0: give 1 or more"),
    (["--profile"], "give --device cuda, not cpu"),
])
def test_a_wrong_option_is_named(arguments, said):
    run = benchmark("--peer", "none", *arguments)
    assert run.returncode == 2
    assert said in run.stderr


def test_tokens_come_from_shards_or_from_one_seed(tmp_path):
    write_shard(tmp_path / "train_0.bin", np.arange(200, dtype=np.uint16))
    job = SimpleNamespace(config={"vocab_size": 200}, accumulate=3, batch_size=2, seq_len=8, data=None)
    drawn = draw_tokens(job)
    assert drawn.shape == (3, 2, 9) and np.array_equal(drawn, draw_tokens(job))
    job.data = str(tmp_path / "train_*.bin")
    read = draw_tokens(job)
    assert read.shape == (3, 2, 9) and (np.diff(read, axis=2) == 1).all()
    assert len(np.unique(read[..., 0])) == 6


@pytest.mark.parity
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("model_class", "config"), [GPT2, LLAMA3, TIED])
def test_a_peer_computes_the_same_loss_and_gradients(model_class, config, recompute):
    torch = pytest.importorskip("torch")
    from benchmarks.peers import new_model

    model = model_class(config, generator=Generator(0))
    peer = new_model(model.name, SimpleNamespace(**asdict(config)), "cpu", recompute)
    peer.load_state_dict({name: torch.from_numpy(t.numpy().copy()) for name, t in model.state_dict().items()})
    batch = np.random.default_rng(1).integers(0, config.vocab_size, (2, 17))
    loss = model.loss(Tensor(batch[:, :-1]), Tensor(batch[:, 1:]))
    theirs = peer(torch.from_numpy(batch[:, :-1]), torch.from_numpy(batch[:, 1:]))
    # Sums of some 32 x 128 float32 products, in two orders.
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    loss.backward()
    theirs.backward()
    gradients = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), gradients[name], rtol=1e-4, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--model", "llama3", "--dtype", "bfloat16", "--checkpoint"],
                                       ["--all-bf16", "--dtype", "bfloat16", "--accumulate", "2"]])
def test_peers_take_their_turns(arguments):
    pytest.importorskip("torch")
    run = benchmark("--size", "tiny", "--peer", "torch", "torch-eager", "--steps", "2", "--rounds", "1", *arguments)
    assert run.returncode == 0, run.stderr
    for label in ("tokens/s", "first step, cold, s", "memory, warm, GiB"):
        assert len(numbers(run.stdout, label)) == 5
    ours, *theirs = numbers(run.stdout, "loss, first step")
    # PyTorch's models count the 127 rows that pad 257 to 384 as classes, Llama's has none.
    assert theirs == pytest.approx([ours] * 2, abs=np.log(384 / 257) + 0.1)


@pytest.mark.parametrize(("card", "share"), [("NVIDIA H100 80GB HBM3", 50.0), ("Some other GPU", None)])
def test_a_report_compares_medians_and_knows_some_cards(card, share):
    def process(step, first, memory):
        return {"steps": [step, 2 * step, step], "first": first, "losses": [10.9, 10.5], "context": 2**29,
                "memory": memory * 2**30, "counted": memory * 2**30, "versions": {"Python": "3"}, "card": card,
                "kernels": f"kernels after {first}"}

    job = SimpleNamespace(
        model="gpt2", size="124M", parameters=124_475_904, batch_size=64, seq_len=1024, accumulate=1, dtype="bfloat16",
        flops_per_token=989e12 / 2 * 0.1 / 65536, peer=["torch"], arguments=["--device", "cuda"], profile=True)
    results = {"tinyarr": [[process(0.1, 8, 27), process(0.1, 2, 25)]] * 3,
               "torch": [[process(0.125, 32, 30), process(0.125, 16, 30)]] * 3}
    printed = report(results, job)
    assert card in printed
    assert numbers(printed, "tokens/s") == [655_360, 524_288, 1.25]
    assert numbers(printed, "step, median, ms") == [100, 125, 0.8]
    assert numbers(printed, "first step, cold, s") == [8, 32, 0.25]
    assert numbers(printed, "memory, warm, GiB") == [25, 30, 0.83]
    assert numbers(printed, "empty context, GiB") == [0.5, 0.5]
    assert ("MFU" in printed) == (share is not None)
    assert share is None or numbers(printed, "MFU, %")[0] == share
    assert printed.endswith("\n\nkernels after 2")


def task(title, reads, makes, specs=()):
    """A task of the CUDA backend: operands of bfloat16, (shape, strides) where they are not dense."""
    def operand(x):
        shape, strides = x if isinstance(x[0], tuple) else (x, contiguous_strides(x))
        return Operand(shape, strides, bfloat16)

    plan = LaunchPlan([LibraryCall("", spec, ()) for spec in specs])
    return Launchable(title, "", plan, (), (), (), *(tuple(map(operand, side)) for side in (reads, makes)))


def product(m, n, k, batch=1):
    return cublaslt.Product(m, n, k, bfloat16, bfloat16, False, False, k, n, n, batch)


def test_operations_and_bytes_of_a_task_are_counted():
    chunks = task("linear_cross_entropy", [(96, 10), (20, 10)], [(96, 10)], [product(32, 20, 10)] * 3)
    assert step_kernels.flop(chunks) == 2 * 96 * 20 * 10
    assert step_kernels.flop(task("matmul", [(5, 2, 3), (5, 3, 4)], [(5, 2, 4)], [product(2, 4, 3, 5)])) == 240
    rows = task("add", [((4, 8), (8, 1)), ((4, 8), (0, 1)), ((4, 8), (0, 0))], [(4, 8)])
    assert step_kernels.flop(rows) == 0
    assert step_kernels.moved(rows) == 2 * (32 + 8 + 1 + 32)
    q, k = (2, 6, 16, 8), (2, 3, 16, 8)  # two queries a key
    for title, operands, products in (("", [q, k, k], 2), ("_gradient", [q, q, k, k, q, (2, 6, 16)], 5)):
        for causal in (False, True):
            spec = cudnn.AttentionSpec((), (), bfloat16, causal, 1.0, bool(title))
            both = task("scaled_dot_product_attention" + title, operands, [q], [spec] * 2)  # half of the batch each
            assert step_kernels.flop(both) == products * 2 * (2 * 6 * 16 * 16 * 8) / (1 + causal)


def test_the_operations_of_a_planned_step_are_those_of_its_model(monkeypatch):
    monkeypatch.setattr(cublaslt, "is_available", lambda: True)  # products are planned for it; none runs
    device, config = Device("meta", like="cuda:sm_90"), gpt2.Config(256, 32, n_layer=2, n_head=2, n_embd=128)
    model = gpt2.GPT2(config, dtype=bfloat16, device=device)
    step = compile(lambda x, y: model.loss(x, y).backward())
    tokens = zeros((4, 32), dtype=int64, device=device)
    step(tokens, tokens)
    tasks = bound(plan(step.graphs[0])).tasks
    L, C, T = config.n_layer, config.n_embd, 32
    weights = sum(p.size for name, p in model.named_parameters() if p.ndim == 2 and "wpe" not in name)
    # Attention's gradient multiplies five times where its forward pass does twice, half of each is causal.
    assert sum(map(step_kernels.flop, tasks)) == tokens.size * (6 * weights + 7 * L * C * T)


def test_kernels_are_grouped_and_compared_with_what_the_card_does():
    rates = step_kernels.Rates(product=1e15, copy=1e12)
    n = 10_000
    square = task("matmul", [(n, n)] * 2, [(n, n)], [product(n, n, n)])  # 2 ms; its bytes 0.6
    deep = task("matmul", [(8, n * n), (n * n, 8)], [(8, 8)], [product(8, 8, n * n)])  # 0.0128 ms; its bytes 3.2
    add, total = task("add", [(n, n)], [(n, n)]), task("sum", [(5,)], [(1,)])
    rows = step_kernels.grouped([(square, 0.003), (total, 1e-5), (deep, 0.016), (square, 0.005), (add, 1e-4)], rates)
    assert [(r.number, r.text.split()[0]) for r in rows] == [(1, "matmul"), (2, "matmul"), (1, "add"), (1, "sum")]
    assert [r.floor for r in rows] == pytest.approx([3.2e-3 + 128e-12, 4e-3, 0.4e-3, 12e-12])
    printed = step_kernels.table(rows, rates, "bfloat16", replayed=0.025)
    assert "25.0 ms replayed; 24.1 ms in kernels launched one by one" in printed
    shown, others, whole = (line.split() for line in printed.splitlines()[-3:])
    assert shown == ["2", "8.00", "33.2%", "1.20", "0.15", "4.00", "500", "4.00", "50%",
                     "matmul", "(10000,10000)", "(10000,10000)", "->", "bfloat16(10000,10000)"]
    assert others == ["2", "0.11", "0.5%", "0.40", "3.64", "0.40", "364%", "others"]
    assert (whole[:2], whole[-1]) == (["5", "24.11"], "all")


def test_a_median_is_of_the_same_call_in_each_step():
    kernels = [task("add", [(1,)], [(1,)]), task("sum", [(1,)], [(1,)])]
    steps = [([1, 10], [100, 1000]), ([3, 30], [300, 3000]), ([2, 90], [200, 2000])]  # two calls in each of three
    calls = [seconds for step in steps for seconds in step]
    assert step_kernels.medians(kernels, calls, 3) == [
        (kernels[0], 2), (kernels[1], 30), (kernels[0], 200), (kernels[1], 2000)]
    assert step_kernels.medians(kernels, [], 3) == []
