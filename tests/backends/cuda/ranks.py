"""Collectives and data-parallel training, checked on as many ranks as there are, each with a GPU of its own:

    python -m tinyarr launch --by tcp -n 2 -m tests.backends.cuda.ranks

Each rank knows what the others bring, so what it gets is compared with NumPy's, without a message. Whatever is compiled
runs five times: launched, captured, replayed. With --device cpu the ranks, then MPI's, compute on the CPU.
"""

import argparse
import os
import sys

import numpy as np

import tinyarr as ta
from models.gpt2 import GPT2, Config
from tinyarr import Tensor, dtypes, optim
from tinyarr.distributed import DataParallel, Zero, local_rank, world
from tinyarr.ops.collective import all_gather, all_reduce, broadcast, reduce, reduce_scatter

DTYPES = [getattr(dtypes, name) for name in (
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2"
).split()]  # fmt: skip
MOVES = {
    "broadcast": (lambda x, g: broadcast(x, g.size - 1, group=g), lambda xs, r: xs[-1]),
    "all_gather": (lambda x, g: all_gather(x, group=g), lambda xs, r: np.concatenate(xs)),
}
ORDERED = {
    "max": (lambda x, g: all_reduce(x, "max", group=g), lambda xs, r: np.max(xs, 0)),
    "min": (lambda x, g: all_reduce(x, "min", group=g), lambda xs, r: np.min(xs, 0)),
}
SUMS = {
    "sum": (lambda x, g: all_reduce(x, group=g), lambda xs, r: np.sum(xs, 0)),
    "sum of the same": (lambda x, g: all_reduce(x + x, group=g), lambda xs, r: 2 * np.sum(xs, 0)),
    "reduce": (lambda x, g: reduce(x, g.size - 1, group=g), lambda xs, r: np.sum(xs, 0) * (r == len(xs) - 1)),
    "reduce_scatter": (lambda x, g: reduce_scatter(x, group=g), lambda xs, r: np.split(np.sum(xs, 0), len(xs))[r]),
}
MEANS = {
    "mean": (lambda x, g: all_reduce(x, "mean", group=g), lambda xs, r: np.mean(xs, 0)),
    "mean, scattered": (
        lambda x, g: reduce_scatter(x, "mean", group=g), lambda xs, r: np.split(np.mean(xs, 0), len(xs))[r],
    ),
}  # fmt: skip
# By name the gradient of the sum over the ranks of what each gets times its weights: of all weights, and the rank.
GRADIENTS = {
    "sum": lambda ws, r: np.sum(ws, 0),
    "mean": lambda ws, r: np.mean(ws, 0),
    "reduce": lambda ws, r: ws[-1],
    "broadcast": lambda ws, r: np.sum(ws, 0) * (r == len(ws) - 1),
    "reduce_scatter": lambda ws, r: np.concatenate(ws),
    "mean, scattered": lambda ws, r: np.concatenate(ws) / len(ws),
    "all_gather": lambda ws, r: np.split(np.sum(ws, 0), len(ws))[r],
}
SIZES = dict(vocab_size=67, block_size=16, n_layer=2, n_head=2, n_embd=64)
STEPS, BATCH = 5, 2


def numbers(dtype, shape, seed):
    """Small whole numbers, whose sums over eight ranks any dtype holds exactly."""
    most = 1 if dtype.itemsize == 1 and dtype.is_float else 7
    least = -most if dtype.is_float or dtype.name.startswith("int") else 0
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, shape).astype(bool) if dtype is dtypes.bool else rng.integers(least, most + 1, shape)


def of_ranks(dtype, shape, group, seed):
    """What each rank brings, as NumPy computes with it."""
    wide = dtype.numpy if not dtype.is_float else np.float64
    return [numbers(dtype, shape, 100 * seed + r).astype(wide) for r in range(group.size)]


def check(found, expected, dtype, what):
    """Equal, but for means over a number of ranks that is no power of two, and half types' rounding of them."""
    found = found.astype(ta.float64).numpy() if dtype.is_float else found.numpy()
    exact = "mean" not in what or np.log2(world().size) % 1 == 0
    bound = 0 if exact else 2 * world().size * 2.0 ** -{"float64": 52, "float32": 23, "float16": 10}.get(dtype.name, 1)
    np.testing.assert_allclose(found, expected.astype(found.dtype), rtol=bound, atol=bound, err_msg=what)


def collectives_of(dtype):
    known = MOVES | ORDERED
    if dtype is not dtypes.bool:
        known |= SUMS
    return known | MEANS if dtype.is_float and dtype.itemsize > 1 else known


def check_collectives(group, dtype, device):
    """Each one in eager mode, in a program, and in its gradient."""
    shape = (3 * group.size, 5)
    for number, (name, (function, meaning)) in enumerate(collectives_of(dtype).items()):
        given = of_ranks(dtype, shape, group, number)
        expected = meaning(given, group.rank)
        compiled = ta.compile(lambda x, function=function: (function(x, group), x.astype(ta.float32) * 2))
        x = Tensor(given[group.rank], dtype=dtype, device=device)
        check(function(x, group), expected, dtype, f"{name} of {dtype.name}")
        bits = set()
        for _ in range(STEPS):
            found, other = compiled(x)
            check(found, expected, dtype, f"compiled {name} of {dtype.name}")
            np.testing.assert_array_equal(other.numpy(), 2 * given[group.rank].astype(np.float32))
            bits.add(found.astype(ta.float64).numpy().tobytes())
        assert len(bits) == 1
        if name in GRADIENTS and dtype.is_float and dtype.itemsize > 1:
            weights = of_ranks(dtype, expected.shape, group, 50 + number)
            w = Tensor(weights[group.rank], dtype=dtype, device=device)
            gradient = ta.grad(lambda x, w, function=function: (function(x, group) * w).sum())
            expected = GRADIENTS[name](weights, group.rank)
            for run in (gradient, ta.compile(gradient)):
                for _ in range(STEPS):
                    check(run(x, w), expected, dtype, f"gradient of {name} of {dtype.name}")


def check_tickets(group, device):
    """Several on their way at once, and two programs whose tickets have the same numbers, in turns."""
    def function(x, y):
        a, b = all_reduce(x @ y, group=group), all_reduce(x * 2, "max", group=group)
        c = ta.tanh(x) @ y
        return a, all_gather(b, group=group), c, all_reduce(c, "mean", group=group)

    def other(x, y):
        return all_reduce(x + y, group=group), ta.tanh(x - y) @ y

    given = [of_ranks(ta.float32, (64, 64), group, seed) for seed in (1, 2)]
    x, y = (Tensor(g[group.rank], dtype=ta.float32, device=device) for g in given)
    runs = [(ta.compile(f), [z.numpy() for z in f(x, y)]) for f in (function, other)]
    for _ in range(STEPS):
        for run, expected in runs:
            for found, e in zip(run(x, y), expected):
                np.testing.assert_allclose(found.numpy(), e, rtol=1e-5, atol=1e-5)


def train(make, optimizer, rank, size, device, dtype=ta.float32, compiled=True):
    """The losses of some steps and the weights then; each rank has its part of the batches."""
    ta.manual_seed(0)
    model = GPT2(Config(**SIZES), dtype=dtype, device=device)
    parallel = None if make is None else make(model.parameter_groups(0.1))
    opt = optimizer(model.parameter_groups(0.1) if parallel is None else parallel.groups)

    def step(tokens, targets):
        loss = model.loss(tokens, targets)
        loss.backward()
        if parallel is not None:
            parallel.reduce()
        opt.step()
        opt.zero_grad()
        if parallel is not None:
            parallel.gather()
            (loss,) = parallel.mean(loss.detach())
        return loss.detach()

    run, rng, losses = ta.compile(step) if compiled else step, np.random.default_rng(0), []
    for _ in range(STEPS):
        tokens = rng.integers(0, SIZES["vocab_size"], (world().size * BATCH, SIZES["block_size"] + 1))
        part = tokens[rank * len(tokens) // size : (rank + 1) * len(tokens) // size]
        losses.append(run(Tensor(part[:, :-1], device=device), Tensor(part[:, 1:], device=device)).item())
    return losses, [p.detach().astype(ta.float64).numpy() for p in model.parameters()]


SCHEMES = {
    "DataParallel": lambda group: lambda groups: DataParallel(groups, group, bucket=2**14),
    "ZeRO-1": lambda group: lambda groups: Zero(groups, group, stage=1, bucket=2**14),
    "ZeRO-2": lambda group: lambda groups: Zero(groups, group, stage=2, bucket=2**14),
}


def check_training(group, device):
    """Each scheme against one rank that has all batches; and against each other."""
    def sgd(groups):
        return optim.SGD(groups, lr=0.1, momentum=0.9)

    alone = train(None, sgd, 0, 1, device)
    for name, scheme in SCHEMES.items():
        losses, weights = train(scheme(group), sgd, group.rank, group.size, device)
        # The gradients of the parts add up in another order than those of the whole, and differences grow a step.
        np.testing.assert_allclose(losses, alone[0], rtol=1e-5, err_msg=name)
        for found, expected in zip(weights, alone[1]):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=name)
    found = {name: train(s(group), optim.AdamW, group.rank, group.size, device) for name, s in SCHEMES.items()}
    again = train(SCHEMES["ZeRO-2"](group), optim.AdamW, group.rank, group.size, device)
    assert again[0] == found["ZeRO-2"][0], "not the same bits again"
    if group.size <= 2:  # two numbers add up in one way
        for name, (losses, weights) in found.items():
            assert losses == again[0], name
            assert all(np.array_equal(a, b) for a, b in zip(weights, again[1])), name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    kind = parser.parse_args().device
    group = world()
    device = f"cuda:{local_rank()}" if kind == "cuda" else "cpu"
    with ta.use_device(device):
        for dtype in DTYPES:
            check_collectives(group, dtype, device)
        if group.rank == 0:
            print(f"{group.size} ranks: collectives and gradients are right in {len(DTYPES)} dtypes", flush=True)
        if group.size > 2:
            half = group.subgroup(range(group.rank % 2, group.size, 2))
            check_collectives(half, ta.float32, device)
        check_tickets(group, device)
        check_training(group, device)
    if group.rank == 0:
        print("training is right under " + ", ".join(SCHEMES), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    sys.exit(main())
