"""CUDA kernels beside torch.compile's and cuBLAS's and cuDNN's through PyTorch, on one GPU, in one run.

`python benchmarks/kernels.py`: for each memory-bound kernel the bandwidth (the bytes that it must move, over its time)
as a share of what a copy of 1 GiB reaches; for each product and attention its rate. Medians of CUDA events. Sizes are
those of GPT-2 124M with B=64, T=1024: rows of 65,536 tokens.
"""

from __future__ import annotations

import functools
import statistics
import sys

import cupy
import numpy as np
import torch
import torch.nn.functional as F

import tinyarr
from tinyarr import cuda, dtypes
from tinyarr.backends.cuda.kernels import elementwise
from tinyarr.backends.cuda.libraries import cudnn
from tinyarr.backends.cuda.planning import compiler
from tinyarr.backends.cuda.planning.registry import Input, LaunchPlan, Operand, Output
from tinyarr.ops.activation import _gelu_tanh
from tinyarr.ops.attention import _attention, _attention_gradient
from tinyarr.ops.index import _take_gradient
from tinyarr.ops.loss import _cross_entropy, _cross_entropy_gradient
from tinyarr.ops.norm import _layer_norm, _limits, _rms_norm
from tinyarr.ops.primitive import apply, registry
from tinyarr.ops.rowwise import Rowwise
from tinyarr.ops.softmax import _log_softmax, _softmax

GPU, BF16 = "cuda", torch.bfloat16
REPEATS = 20
N, C, V = 65536, 768, 50304


def ours(function) -> float:
    """Milliseconds: the median of REPEATS runs."""
    return _median(function, cuda.Event, cuda.synchronize)


def theirs(function) -> float:
    return _median(function, lambda: torch.cuda.Event(enable_timing=True), torch.cuda.synchronize)


def _median(function, event, synchronize) -> float:
    for _ in range(3):
        function()
    synchronize()
    pairs = []
    for _ in range(REPEATS):
        start, end = event(), event()
        start.record()
        function()
        end.record()
        pairs.append((start, end))
    synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def draw(*shape, dtype=BF16):
    """The same random numbers as a PyTorch tensor and as ours, over one memory."""
    x = torch.randn(*shape, device=GPU, dtype=torch.float32).to(dtype)
    torch.cuda.synchronize()
    return x, tinyarr.from_dlpack(x)


def compiled(function, *inputs):
    fast = torch.compile(function)
    fast(*inputs)
    return lambda: fast(*inputs)


def printed(primitive: Rowwise) -> Rowwise:
    """The same definition, for which there is no kernel by hand."""
    name = f"printed_{primitive.name}"
    other = Rowwise(name, primitive.function, primitive.inputs, primitive.outputs, derived=True)
    other.gradient(primitive._by_hand)
    return other


def gradient_of(operation: Rowwise, g, operands, options):
    """A function that runs the gradient with respect to all operands, from that of the first result."""
    inputs = [x.detach() for x in operands]
    for x in inputs:
        x.requires_grad = True
    results = operation(*inputs, **options)
    node = (results if isinstance(results, tuple) else (results,))[0].node
    gs = (g,) + (None,) * (len(operation.outputs) - 1)
    return lambda: node.rule.backward(node.call, node.needs, gs, node.saved)


def memory_bound():
    """(name, bytes, ours, PyTorch's compiled)"""
    big, t_big = draw(N, 4 * C)
    big_g, t_big_g = draw(N, 4 * C)
    primitive = _gelu_tanh._derive({}, (True,))[0]
    operands = {"x": t_big, "g_out": t_big_g}
    arguments = [operands[name] for name in primitive.inputs]

    def torch_gelu_gradient(g, x):
        return torch.ops.aten.gelu_backward(g, x, approximate="tanh")

    U4 = big.numel() * 2
    yield "gelu", 2 * U4, lambda: _gelu_tanh(t_big), compiled(lambda x: F.gelu(x, approximate="tanh"), big)
    yield "gelu gradient", 3 * U4, lambda: apply(primitive, *arguments), compiled(torch_gelu_gradient, big_g, big)

    x, t_x = draw(N, C)
    g, t_g = draw(N, C)
    w, t_w = draw(C)
    b, t_b = draw(C)
    U = x.numel() * 2
    yield "add", 3 * U, lambda: t_x + t_g, compiled(lambda x, g: x + g, x, g)
    yield "add a row", 2 * U, lambda: t_x + t_w, compiled(lambda x, w: x + w, x, w)
    heads = x.view(64, 1024, 12, 64).transpose(1, 2)
    t_heads = t_x.reshape((64, 1024, 12, 64)).permute_dims((0, 2, 1, 3))
    yield "copy of heads", 2 * U, lambda: tinyarr.copy(t_heads), compiled(lambda x: x.contiguous(), heads)
    yield "copy, transposed", 2 * U, lambda: tinyarr.copy(t_x.mT), compiled(lambda x: x.t().contiguous(), x)
    yield "dropout", 2 * U, lambda: tinyarr.dropout(t_x, 0.1), compiled(lambda x: F.dropout(x, 0.1), x)
    t_mean, t_rstd = torch.ops.aten.native_layer_norm(x, (C,), w, b, 1e-5)[1:]
    p = torch.softmax(x, -1)
    of_norms = {"eps": 1e-5, "limits": _limits(t_x)}
    for name, primitive, operands, options, forward, backward in (
        ("layer norm", _layer_norm, (t_x, t_w, t_b), of_norms, compiled(
            lambda x, w, b: F.layer_norm(x, (C,), w, b), x, w, b), compiled(
            lambda g, x, w, b, m, r: torch.ops.aten.native_layer_norm_backward(g, x, (C,), m, r, w, b, [True] * 3),
            g, x, w, b, t_mean, t_rstd)),
        ("rms norm", _rms_norm, (t_x, t_w), of_norms, compiled(
            lambda x, w: F.rms_norm(x, (C,), w, 1e-5), x, w), None),
        ("softmax", _softmax, (t_x,), {}, compiled(lambda x: F.softmax(x, -1), x), compiled(
            lambda g, p: torch.ops.aten._softmax_backward_data(g, p, -1, torch.bfloat16), g, p)),
        ("log-softmax", _log_softmax, (t_x,), {}, None, None),
    ):  # fmt: skip
        for kind, operation in (("", primitive), (", printed", printed(primitive))):
            yield name + kind, 2 * U, functools.partial(operation, *operands, **options), forward
            yield f"{name} gradient{kind}", 3 * U, gradient_of(operation, t_g, operands, options), backward
    yield "sum of rows", U, lambda: t_x.sum(axis=1), compiled(lambda x: x.sum(1), x)
    yield "sum of columns", U4, lambda: t_big.sum(axis=0), compiled(lambda x: x.sum(0), big)
    yield "sum of all", U4, lambda: t_big.sum(), compiled(lambda x: x.sum(), big)
    yield "max of rows", U, lambda: t_x.max(axis=1), compiled(lambda x: x.amax(1), x)

    tokens = torch.from_numpy(zipf(N)).to(GPU)
    table, t_table = draw(V, C)
    t_tokens = tinyarr.from_dlpack(tokens)
    yield "embedding", 2 * U, lambda: tinyarr.embedding(t_table, t_tokens), compiled(F.embedding, tokens, table)
    yield "embedding gradient", U + 2 * V * C * 2, lambda: apply(
        _take_gradient, t_g, t_tokens, axis=0, size=V, wrap=False), compiled(
        lambda g, i: torch.ops.aten.embedding_dense_backward(g, i, V, -1, False), g, tokens)
    for classes in (V, 50257):
        logits, t_logits = draw(8192, classes)
        targets = torch.randint(0, classes, (8192,), device=GPU)
        t_targets, weights = tinyarr.from_dlpack(targets), tinyarr.ones((8192,), device=GPU)
        size = logits.numel() * 2
        loss, lse = apply(_cross_entropy, t_logits, t_targets, ignore_index=-100)
        yield f"cross-entropy, {classes}", size, lambda a=t_logits, t=t_targets: apply(
            _cross_entropy, a, t, ignore_index=-100), compiled(
            lambda a, t: F.cross_entropy(a.float(), t, reduction="none"), logits, targets)
        yield f"its gradient, {classes}", 2 * size, lambda a=t_logits, t=t_targets, s=lse: apply(
            _cross_entropy_gradient, weights, a, t, s, ignore_index=-100), None
        del logits, t_logits
    n = V * C
    p, m, v, master = (tinyarr.rand(n, dtype=d, device=GPU) for d in ("bfloat16", "float32", "float32", "float32"))
    gradient = tinyarr.rand(n, dtype="bfloat16", device=GPU)
    lr, step = tinyarr.full((), 1e-3, dtype="float64", device=GPU), tinyarr.full((), 5, device=GPU)

    def adamw():
        apply(registry["adamw_master_update"], p, master, m, v, gradient, lr, step, 1.0, 0.9, 0.95, 1e-8, 0.1,
              dtype=dtypes.bfloat16, out=(p, master, m, v))

    yield "AdamW with masters", 30 * n, adamw, None


def zipf(n: int) -> np.ndarray:
    """Token numbers as unequal as those of text."""
    ranks = np.random.default_rng(0).zipf(1.1, 4 * n)
    return ranks[ranks <= V][:n].astype(np.int64) - 1


def products():
    """(name, operations, ours, PyTorch's) for the shapes of GPT-2 124M."""
    for name, m, n, k in (
        ("qkv", N, 2304, 768), ("proj", N, 768, 768), ("fc", N, 3072, 768), ("fcproj", N, 768, 3072),
        ("head", 16384, V, 768),
    ):  # fmt: skip
        x, t_x = draw(m, k)
        w, t_w = draw(n, k)
        yield f"{name} {m}x{n}x{k}", 2 * m * n * k, lambda x=t_x, w=t_w: tinyarr.matmul(x, w.mT), (
            lambda x=x, w=w: x @ w.t())
        if name == "fc":
            g, t_g = draw(m, n)
            yield "fc, gradient of x", 2 * m * n * k, lambda g=t_g, w=t_w: tinyarr.matmul(g, w), lambda g=g, w=w: g @ w
            yield "fc, gradient of w", 2 * m * n * k, lambda g=t_g, x=t_x: tinyarr.matmul(g.mT, x), (
                lambda g=g, x=x: g.t() @ x)
    x, t_x = draw(8192, 8192, dtype=torch.float32)
    yield "float32 8192^3", 2 * 8192**3, lambda: tinyarr.matmul(t_x, t_x), lambda: x @ x


def attentions():
    """(name, operations forward, q, k, v, g) causal, in bfloat16."""
    for B, H, G, T, D in ((64, 12, 12, 1024, 64), (16, 25, 25, 1024, 64), (4, 32, 8, 4096, 64), (2, 32, 8, 8192, 128)):
        q, k, v, g = (draw(B, n, T, D) for n in (H, G, G, H))
        yield f"B{B} H{H}/{G} T{T} D{D}", 2 * B * H * T * T * D, q, k, v, g


def uncontracted() -> tuple[float, float]:
    """Milliseconds of GELU's gradient with multiply-adds as the expression says, and contracted."""
    x = Operand((N, 4 * C), (4 * C, 1), dtypes.bfloat16)
    primitive = _gelu_tanh._derive({}, (True,))[0]
    typed = primitive.typed((x.shape,) * 2, (x.dtype,) * 2, {})
    times = []
    for flag in ("-fmad=false", "-fmad=true"):
        compiler.FLAGS = tuple(f for f in compiler.FLAGS if "fmad" not in f) + (flag,)
        steps = elementwise.plan("gelu_gradient" + flag[6:], typed, x.shape, [(x, Input(0)), (x, Input(1))],
                                 [(x, Output(0))])  # fmt: skip
        backend = tinyarr.Device(GPU).backend
        run = backend.loader.bind(LaunchPlan(steps))
        a, b, c = (tinyarr.randn(N, 4 * C, dtype="bfloat16", device=GPU) for _ in range(3))
        addresses = [t.array.data.address for t in (a, b, c)]
        times.append(ours(lambda: run(addresses[:2], addresses[2:])))
    compiler.FLAGS = tuple(f for f in compiler.FLAGS if "fmad" not in f) + ("-fmad=false",)
    return times[0], times[1]


def main() -> None:
    torch.manual_seed(0)
    versions = f"PyTorch {torch.__version__}, CuPy {cupy.__version__}, Python {sys.version.split()[0]}"
    print(f"{torch.cuda.get_device_name()}, {versions}")
    source = torch.empty(2**29, dtype=torch.int8, device=GPU)
    target = torch.empty_like(source)
    copied = 2 * 2**29 / theirs(lambda: target.copy_(source)) / 1e6
    print(f"a copy of 0.5 GiB moves {copied:,.0f} GB/s, read and written\n")
    print(f"{'memory-bound, bfloat16':28}{'ours ms':>10}{'of copy':>9}{'compiled ms':>13}{'of copy':>9}")
    for name, nbytes, run, reference in memory_bound():
        t = ours(run)
        line = f"{name:28}{t:10.3f}{nbytes / t / 1e6 / copied:9.0%}"
        if reference is not None:
            r = theirs(reference)
            line += f"{r:13.3f}{nbytes / r / 1e6 / copied:9.0%}"
        print(line, flush=True)
    contracted = uncontracted()
    print(f"\ngelu gradient: {contracted[0]:.3f} ms; with multiply-adds contracted {contracted[1]:.3f} ms\n")
    print(f"{'products, bfloat16':28}{'ours':>10}{'PyTorch':>10} TFLOP/s")
    for name, operations, run, reference in products():
        print(f"{name:28}{operations / ours(run) / 1e9:10.0f}{operations / theirs(reference) / 1e9:10.0f}", flush=True)
    print(f"\n{'attention, causal':28}{'cuDNN fwd':>10}{'ours':>8}{'share':>7}{'cuDNN bwd':>11}{'ours':>8}{'share':>7}"
          f"{'torch fwd':>11}{'bwd':>8} ms")
    library = cudnn.plan
    for name, _, q, k, v, g in attentions():
        times = []
        for plan in (library, lambda *a, **o: None):
            cudnn.plan = plan
            _attention._calls.clear()
            _attention_gradient._calls.clear()
            scale = q[1].shape[-1] ** -0.5
            out, lse = apply(_attention, q[1], k[1], v[1], causal=True, scale=scale)
            times.append(ours(lambda: apply(_attention, q[1], k[1], v[1], causal=True, scale=scale)))
            times.append(ours(lambda: apply(
                _attention_gradient, g[1], q[1], k[1], v[1], out, lse, causal=True, scale=scale)))  # fmt: skip
        cudnn.plan = library
        leaves = [x[0].detach().requires_grad_() for x in (q, k, v)]

        def forward():
            return F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=q[0].shape != k[0].shape)

        result = forward()
        torch_times = theirs(forward), theirs(lambda: torch.autograd.grad(result, leaves, g[0], retain_graph=True))
        lf, lb, of, ob = times
        print(f"{name:28}{lf:10.3f}{of:8.3f}{lf / of:7.0%}{lb:11.3f}{ob:8.3f}{lb / ob:7.0%}"
              f"{torch_times[0]:11.3f}{torch_times[1]:8.3f}", flush=True)


if __name__ == "__main__":
    main()
