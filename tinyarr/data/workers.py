"""Workers: threads or processes that work ahead, each on every n-th task, so that results come in order. Floor 5."""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any

AHEAD = 2  # results of a thread that wait to be taken; a process is held up by its full pipe
Outcome = tuple[BaseException | None, Any]  # what was raised, or the result
Outcomes = Generator[Outcome, None, None]


def in_order(make: Callable[[Any], Any], tasks: Sequence[Any], workers: int, processes: bool) -> Generator:
    """Yields `make(task)` for each task, in their order, or raises what it raised.

    Every call has a context of its own, as in a new thread: no `no_grad` of the caller's, no default device, no trace.
    Closing the generator ends processes at once, and each thread after the call that it is in.
    """
    workers = min(workers, len(tasks))
    run = _in_turn if workers == 0 else _by_processes if processes else _by_threads
    for error, result in run(make, tasks, workers):
        if error is not None:
            raise error
        yield result


def _outcome(make: Callable[[Any], Any], task: Any) -> Outcome:
    try:
        return None, contextvars.Context().run(make, task)
    except StopIteration as error:  # a generator can't raise it
        stopped = RuntimeError("StopIteration was raised where a batch was made")
        for note in getattr(error, "__notes__", ()):
            stopped.add_note(note)
        stopped.__cause__ = error
        return stopped, None
    except BaseException as error:
        return error, None


def _in_turn(make: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Outcomes:
    for task in tasks:
        yield _outcome(make, task)


def _by_threads(make: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Outcomes:
    made: list[queue.Queue[Outcome]] = [queue.Queue(AHEAD) for _ in range(workers)]
    is_closed = threading.Event()

    def serve(i: int) -> None:
        for task in tasks[i::workers]:
            made[i].put(_outcome(make, task))
            if is_closed.is_set():
                break

    for i in range(workers):
        threading.Thread(target=serve, args=(i,), daemon=True).start()
    try:
        for n in range(len(tasks)):
            yield made[n % workers].get()
    finally:
        is_closed.set()
        for results in made:  # so that none waits for room any more
            while not results.empty():
                results.get()


def _by_processes(make: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Outcomes:
    context, started = multiprocessing.get_context(), []
    try:
        for i in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(make, tasks[i::workers], sender), daemon=True)
            process.start()
            sender.close()  # so that the end of the process is the end of the pipe
            started.append((process, receiver))
        for n, task in enumerate(tasks):
            process, receiver = started[n % workers]
            try:
                yield pickle.loads(receiver.recv_bytes())
            except EOFError:
                process.join()
                ended = f"a worker ended with exit code {process.exitcode} at the batch of items {task}"
                raise ChildProcessError(f"DataLoader: {ended}: see what it printed, or use threads") from None
    finally:
        for process, receiver in started:
            process.kill()
            process.join()
            receiver.close()


def _serve(make: Callable[[Any], Any], tasks: Sequence[Any], sender: Any) -> None:
    """Runs in a worker process: sends the outcomes of its tasks, until the parent ends it or has ended itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the parent then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for task in tasks:
        error, result = _outcome(make, task)
        try:
            message = pickle.dumps((None if error is None else _portable(error), result))
        except Exception as unwritable:
            message = pickle.dumps((_portable(unwritable), None))
        sender.send_bytes(message)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note; a RuntimeError that says the same where it can't be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("\n".join(error.__notes__))
