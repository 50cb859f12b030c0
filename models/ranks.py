"""What the ranks of a run settle among each other on the host, so that they go on, or end, together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyarr import distributed

from .options import Stop


def agree(work: Callable[[], Any]) -> Any:
    """What `work` gives on this rank, once all have done it. A Stop or OSError on one is raised as Stop on all."""
    done, failed = _done(work)
    for rank, failure in enumerate(distributed.world().exchange(failed)):
        if failure is not None:
            words, status = failure
            raise Stop(f"rank {rank}: {words}" if rank else words, status)
    return done


def on_first_rank(work: Callable[[], Any]) -> Any:
    """What `work` gives on rank 0, which alone does it, as far as JSON can write it. Errors as agree."""
    group = distributed.world()
    done, failed = _done(work) if group.rank == 0 else (None, None)
    done, failed = group.exchange([done, failed])[0]
    if failed is not None:
        raise Stop(*failed)
    return done


def _done(work: Callable[[], Any]) -> tuple[Any, tuple[str, int] | None]:
    try:
        return work(), None
    except Stop as stop:
        return None, (str(stop), stop.status)
    except OSError as error:
        return None, (error.strerror or str(error), 2)
