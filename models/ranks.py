"""Agreements of a run's ranks on the host: who speaks, on which device each is, and that all go on, or end. Floor 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

import tinyarr
from tinyarr import distributed
from tinyarr.errors import DeviceError

from .options import Stop, in_words


def agree(work: Callable[[], Any]) -> Any:
    """Returns what `work` gives on this rank, once all have done it.

    A Stop, OSError or DeviceError on one is raised as Stop on all.
    """
    done, failed = _done(work)
    for rank, failure in enumerate(distributed.world().exchange(failed)):
        if failure is not None:
            words, status = failure
            raise Stop(f"rank {rank}: {words}" if rank else words, status)
    return done


def on_first_rank(work: Callable[[], Any]) -> Any:
    """Returns what `work` gives on rank 0, which alone does it, as far as JSON can write it. Errors as agree."""
    group = distributed.world()
    done, failed = _done(work) if group.rank == 0 else (None, None)
    done, failed = group.exchange([done, failed])[0]
    if failed is not None:
        raise Stop(*failed)
    return done


def say(text: str, file: TextIO | None = None) -> None:
    """Prints to a file, by default standard output, on the first rank."""
    if distributed.world().rank == 0:
        print(text, file=file)


def own_device(name: str) -> tinyarr.Device:
    """The device of this rank: where only `cuda` was said, a GPU for each rank of a machine."""
    alone = distributed.world().size == 1
    device = tinyarr.Device(name if alone or name != "cuda" else f"cuda:{distributed.local_rank()}")
    tinyarr.memory_stats(device)  # a missing device is named before any work
    return device


def _done(work: Callable[[], Any]) -> tuple[Any, tuple[str, int] | None]:
    try:
        return work(), None
    except Stop as stop:
        return None, (str(stop), stop.status)
    except (OSError, DeviceError) as error:
        return None, (in_words(error), 2)
