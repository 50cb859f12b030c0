"""Collectives over MPI. Half types add up in float32; what is only moved is moved as bytes. Floor 2."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import RankError
from ...ops import collective
from ...ops.collective import Collective
from .registry import kernel


def begin(
    primitive: Collective, x: np.ndarray, out: np.ndarray, scratch: Sequence[np.ndarray], params: dict[str, Any]
) -> Callable:
    """Begins a collective; the function that it returns ends it. Nothing may touch the arrays in between."""
    group = params["group"]
    number = group.begin(primitive.name)
    if group.size == 1:
        np.copyto(out, x)
        return lambda: None
    sent, received = scratch or (x, out)
    np.copyto(sent, x, casting="unsafe")
    if x.dtype == np.bool_:
        sent, received = sent.view(np.uint8), received.view(np.uint8)
    request = _STARTS[primitive](_communicator(group), sent, received, **params)

    def finish() -> None:
        group.wait(request.Test, number)
        if params.get("op") == "mean":
            np.divide(received, group.size, out=received)
        if scratch:
            np.copyto(out, received, casting="unsafe")

    return finish


@functools.cache
def _communicator(group: Any) -> Any:
    """The MPI communicator of a group, which its members make together."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ModuleNotFoundError(f"collectives on the CPU go over MPI: {error}: pip install 'tinyarr[mpi]'") from None
    everyone, own = MPI.COMM_WORLD, group.ranks[group.rank]
    if everyone.rank != own or everyone.size <= max(group.ranks):
        raise RankError(
            f"collectives on the CPU go over MPI, where this is rank {everyone.rank} of {everyone.size} and not "
            f"{own}: start the ranks with mpiexec, or python -m tinyarr launch --by mpi"
        )
    return everyone.Create_group(everyone.group.Incl(group.ranks))


def _all_reduce(comm: Any, sent: np.ndarray, received: np.ndarray, *, op: str, **_: Any) -> Any:
    from mpi4py import MPI

    # All ranks must sum in place or none, though only some of their plans may have one place for both.
    if sent.ctypes.data != received.ctypes.data:
        np.copyto(received, sent)
    return comm.Iallreduce(MPI.IN_PLACE, received, _operation(op, sent.dtype))


def _reduce(comm: Any, sent: np.ndarray, received: np.ndarray, *, root: int, **_: Any) -> Any:
    received.fill(0)
    return comm.Ireduce(sent, received if comm.rank == root else None, root=root)


def _broadcast(comm: Any, sent: np.ndarray, received: np.ndarray, *, root: int, **_: Any) -> Any:
    np.copyto(received, sent)
    return comm.Ibcast(_bytes(received), root)


def _reduce_scatter(comm: Any, sent: np.ndarray, received: np.ndarray, *, op: str, **_: Any) -> Any:
    return comm.Ireduce_scatter_block(sent, received, _operation(op, sent.dtype))


def _all_gather(comm: Any, sent: np.ndarray, received: np.ndarray, **_: Any) -> Any:
    return comm.Iallgather(_bytes(sent), _bytes(received))


@functools.cache
def _operation(op: str, dtype: np.dtype) -> Any:
    """MPI's own operation; NumPy's max and min of floats, since MPI's lose a NaN."""
    from mpi4py import MPI

    if op in ("sum", "mean"):
        return MPI.SUM
    if dtype.kind != "f":
        return {"max": MPI.MAX, "min": MPI.MIN}[op]
    function = {"max": np.maximum, "min": np.minimum}[op]

    def combine(x: Any, y: Any, _: Any) -> None:
        result = np.frombuffer(y, dtype)
        function(np.frombuffer(x, dtype), result, out=result)

    return MPI.Op.Create(combine, commute=True)


def _bytes(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1).view(np.uint8)


def widened(call: Any) -> list[tuple[tuple[int, ...], Any]]:
    """Scratch: the operand and the result in float32, where MPI can't add them up as they are."""
    dtype = call.in_dtypes[0]
    if dtype.compute is dtype or call.primitive not in _REDUCTIONS:
        return []
    return [(shape, np.float32) for shape in (call.in_shapes[0], call.out_shapes[0])]


def _register(primitive: Collective) -> None:
    @kernel(primitive, layouts="dense", scratch=widened)
    def run(x, out, *scratch, **params):
        begin(primitive, x, out, scratch, params)()


_REDUCTIONS: dict[Collective, Callable] = {
    collective._all_reduce: _all_reduce,
    collective._reduce: _reduce,
    collective._reduce_scatter: _reduce_scatter,
}
_STARTS: dict[Collective, Callable] = {
    **_REDUCTIONS,
    collective._broadcast: _broadcast,
    collective._all_gather: _all_gather,
}
for _primitive in _STARTS:
    _register(_primitive)


@kernel(collective.wait, layouts="dense")
def wait(x, out, *, ticket):
    np.copyto(out, x)
