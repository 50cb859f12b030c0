"""Attention, a block of queries of one head at a time: their weights, BLOCK x S, are a thread's scratch. Floor 2."""

from __future__ import annotations

from ..source.scalar_source import TYPES, cast, constant
from .kernel import CCall, COperand, indented, kernel, loop
from .matmul import DEPTH, GROUP, WIDEST

BLOCK = 64  # queries
FOR = "#pragma omp for schedule(dynamic)"


class _Job:
    """The scratch of a thread, in elements, and products in it."""

    def __init__(self, site: CCall, compute):
        self.site, self.compute, self.type = site, compute, TYPES[compute]
        self.size = 0
        self.lines: list[str] = []
        self.packed = self.room("packed", 0)
        self.widest = 0

    def room(self, name: str, size: int) -> str:
        self.lines.append(f"{self.type} *{name} = mine + {self.size};")
        self.size += -(-size // 32) * 32
        return name

    def product(self, m: str, n: int | str, k: int | str, a: str, b: str, c: str, add="0", widest: int = 0) -> str:
        """A product of matrices given as 'pointer, row stride, column stride'; widest bounds n."""
        self.widest = max(self.widest, widest)
        name = self.site.product(self.compute)
        return f"product_alone_{name}({m}, {n}, {k}, {a}, {b}, {c}, {add}, packed);"

    def text(self, count: int, body: str) -> str:
        """The loop over jobs, each with its scratch."""
        packed = (-(-self.widest // WIDEST) * WIDEST + GROUP) * DEPTH
        place = self.size
        self.size += packed
        self.lines[0] = f"{self.type} *packed = mine + {place};"
        scratch = self.site.take_scratch(self.site.threads * self.size * self.compute.itemsize)
        mine = f"{self.type} *mine = ({self.type} *)({scratch}) + omp_get_thread_num() * {self.size};"
        return loop("job", count, "\n".join([mine, *self.lines, body]), FOR)


def _head(x: COperand, batch: str, head: str) -> str:
    """Returns the C expression of the address at which a head's matrix begins."""
    return f"{x.name} + {batch} * {x.strides[0]} + {head} * {x.strides[1]}"


def _matrix(job: _Job, x: COperand, name: str, first: str, rows: str, most: int, where: str) -> tuple[str, str]:
    """Rows of a head as 'pointer, row stride, column stride' and the statements before; half types are widened."""
    at = f"{where} + ({first}) * {x.strides[2]}"
    if x.dtype is job.compute:
        return "", f"{at}, {x.strides[2]}, {x.strides[3]}"
    job.room(name, most * x.shape[3])
    value = cast(f"({at})[i * {x.strides[2]} + j * {x.strides[3]}]", x.dtype, job.compute)
    body = loop("j", x.shape[3], f"{name}[i * {x.shape[3]} + j] = {value};")
    return loop("i", rows, body), f"{name}, {x.shape[3]}, 1"


def _transposed(matrix: str) -> str:
    pointer, row, column = matrix.rsplit(", ", 2)
    return f"{pointer}, {column}, {row}"


def _scores(job: _Job, q: str, k: str, keys: int, size: int, scale, queries: int, causal: bool) -> list[str]:
    """P = exp(q k^T scale - shift) up to `visible` keys; the caller says what shift is."""
    seen = f"MIN({keys}, first + count + {keys - queries})" if causal else str(keys)
    return [
        f"int64_t seen = {seen};",
        "seen = seen < 0 ? 0 : seen;",
        job.product("count", "seen", size, q, _transposed(k), f"weights, {keys}, 1", widest=keys),
    ]


@kernel("scaled_dot_product_attention")
def attention(site: CCall) -> str:
    (q, k, v), (out, lse) = site.inputs, site.outputs
    compute = q.dtype.compute
    (B, H, T, D), G, S, E = q.shape, k.shape[1], k.shape[2], v.shape[3]
    if not lse.size:
        return ""
    job = _Job(site, compute)
    t, f = job.type, compute.name
    scale = constant(site.params["scale"], compute)
    causal = site.params["causal"]
    blocks = -(-T // BLOCK)
    job.room("weights", BLOCK * S)
    before_q, q_rows = _matrix(job, q, "wide_q", "first", "count", BLOCK, _head(q, "b", "h"))
    before_k, k_rows = _matrix(job, k, "wide_k", "0", "visible", S, _head(k, "b", "g"))
    before_v, v_rows = _matrix(job, v, "wide_v", "0", "visible", S, _head(v, "b", "g"))
    result = f"{_head(out, 'b', 'h')} + first * {out.strides[2]}, {out.strides[2]}, {out.strides[3]}"
    narrow = out.dtype is not compute
    if narrow:
        job.room("wide_out", BLOCK * E)
    visible = f"row + {S - T + 1}" if causal else str(S)
    row = "\n".join([
        f"int64_t row = first + r, visible = {visible};",
        "visible = visible < 0 ? 0 : visible;",
        f"{t} *w = weights + r * {S}, top = -INFINITY, sum = 0;",
        loop("i", "visible", f"w[i] *= {scale};\ntop = w[i] > top ? w[i] : top;",
             "#pragma omp simd reduction(max:top)"),
        loop("i", "visible", f"w[i] = exp_{f}(w[i] - top);\nsum += w[i];", "#pragma omp simd reduction(+:sum)"),
        loop("i", "visible", "w[i] /= sum;", "#pragma omp simd"),
        loop("i", "seen - visible", "w[visible + i] = 0;"),
        f"lse[b * {lse.strides[0]} + h * {lse.strides[1]} + row * {lse.strides[2]}] = log_{f}(sum) + top;",
        # A query that sees nothing has the mean of nothing.
        "if (!visible)\n    for (int64_t i = 0; i < seen; i++)\n        w[i] = NAN;",
    ])  # fmt: skip
    target = f"wide_out, {E}, 1" if narrow else result
    body = [
        f"int64_t first = job % {blocks} * {BLOCK}, h = job / {blocks} % {H};",
        f"int64_t b = job / {blocks * H}, g = h / {H // G};",
        f"int64_t count = MIN({BLOCK}, {T} - first), visible = {S};",
        "(void)visible;",
        *filter(None, [before_q, before_k, before_v]),
        *_scores(job, q_rows, k_rows, S, D, scale, T, causal),
        loop("r", "count", row),
        job.product("count", E, "seen", f"weights, {S}, 1", v_rows, target, widest=E),
    ]
    pointer, across, along = result.rsplit(", ", 2)
    if narrow:
        store = f"({pointer})[r * {across} + i * {along}] = {cast(f'wide_out[r * {E} + i]', compute, out.dtype)};"
        body.append(loop("r", "count", loop("i", E, store)))
    # No key, or none that a query of the block sees: the sum of nothing over nothing.
    nan = cast("NAN", compute, out.dtype) if compute.name == "float32" else "NAN"
    empty = loop("r", "count", loop("i", E, f"({pointer})[r * {across} + i * {along}] = {nan};"))
    body.append(f"if (!seen) {{\n{indented(empty)}\n}}")
    return job.text(B * H * blocks, "\n".join(body))


@kernel("scaled_dot_product_attention_gradient")
def attention_gradient(site: CCall) -> str:
    """With P the weights: dv = P^T g; dS = P (g v^T - rowsum(g out)) scale; dq = dS k; dk = dS^T q (Dao et al. 2022).

    A job has all queries that share a head of k and v, and so adds up dk and dv alone.
    """
    g, q, k, v, out, lse = site.inputs
    dq, dk, dv = site.outputs
    compute = q.dtype.compute
    (B, H, T, D), G, S, E = q.shape, k.shape[1], k.shape[2], v.shape[3]
    if not (B * G):
        return ""
    job = _Job(site, compute)
    t, f = job.type, compute.name
    scale, causal = constant(site.params["scale"], compute), site.params["causal"]
    for name, size in (("weights", BLOCK * S), ("slopes", BLOCK * S), ("total_k", S * D), ("total_v", S * E)):
        job.room(name, size)
    job.room("block_q", BLOCK * D)
    before, rows = [], {}
    for x, first, many, most, where in (
        (g, "first", "count", BLOCK, _head(g, "b", "h")), (q, "first", "count", BLOCK, _head(q, "b", "h")),
        (out, "first", "count", BLOCK, _head(out, "b", "h")), (k, "0", str(S), S, _head(k, "b", "group")),
        (v, "0", str(S), S, _head(v, "b", "group")),
    ):  # fmt: skip
        copy, rows[x.name] = _matrix(job, x, f"wide_{x.name}", first, many, most, where)
        before.append((x.name, copy))

    def at(name: str, r: str, i: str) -> str:
        pointer, row, column = rows[name].rsplit(", ", 2)
        return f"({pointer})[{r} * {row} + {i} * {column}]"

    visible = f"row + {S - T + 1}" if causal else str(S)
    row = "\n".join([
        f"int64_t row = first + r, visible = {visible};",
        "visible = visible < 0 ? 0 : visible;",
        f"{t} *w = weights + r * {S}, *s = slopes + r * {S}, dot = 0;",
        f"{t} total = lse[b * {lse.strides[0]} + h * {lse.strides[1]} + row * {lse.strides[2]}];",
        loop("i", E, f"dot += {at(g.name, 'r', 'i')} * {at(out.name, 'r', 'i')};", "#pragma omp simd reduction(+:dot)"),
        loop("i", "visible", f"w[i] = exp_{f}(w[i] * {scale} - total);\ns[i] = (s[i] - dot) * w[i] * {scale};",
             "#pragma omp simd"),
        loop("i", "seen - visible", "w[visible + i] = s[visible + i] = 0;"),
    ])  # fmt: skip
    store_q = f"({_head(dq, 'b', 'h')})[(first + r) * {dq.strides[2]} + i * {dq.strides[3]}]"
    block = "\n".join([
        f"int64_t count = MIN({BLOCK}, {T} - first);",
        *[copy for name, copy in before if copy and name in (g.name, q.name, out.name)],
        *_scores(job, rows[q.name], rows[k.name], S, D, scale, T, causal),
        job.product("count", "seen", E, rows[g.name], _transposed(rows[v.name]), f"slopes, {S}, 1", widest=S),
        loop("r", "count", row),
        job.product("seen", E, "count", f"weights, 1, {S}", rows[g.name], f"total_v, {E}, 1", "1", widest=E),
        job.product("seen", D, "count", f"slopes, 1, {S}", rows[q.name], f"total_k, {D}, 1", "1", widest=D),
        loop("i", f"count * {D}", "block_q[i] = 0;"),
        job.product("count", D, "seen", f"slopes, {S}, 1", rows[k.name], f"block_q, {D}, 1", widest=D),
        loop("r", "count", loop("i", D, f"{store_q} = {cast(f'block_q[r * {D} + i]', compute, dq.dtype)};")),
    ])  # fmt: skip
    stores = []
    for x, total, n in ((dk, "total_k", D), (dv, "total_v", E)):
        place = f"({_head(x, 'b', 'group')})[r * {x.strides[2]} + i * {x.strides[3]}]"
        stores.append(loop("r", S, loop("i", n, f"{place} = {cast(f'{total}[r * {n} + i]', compute, x.dtype)};")))
    body = "\n".join([
        f"int64_t b = job / {G}, group = job % {G};",
        loop("i", S * D, "total_k[i] = 0;"),
        loop("i", S * E, "total_v[i] = 0;"),
        *[copy for name, copy in before if copy and name in (k.name, v.name)],
        f"for (int64_t h = group * {H // G}; h < (group + 1) * {H // G}; h++)",
        f"    for (int64_t first = 0; first < {T}; first += {BLOCK}) {{",
        indented(block, 8),
        "    }",
        *stores,
    ])  # fmt: skip
    return job.text(B * G, body)


