"""One run of a function on traced values: its graph, what it returns and changes, and what it depended on. Floor 2."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import random
from ...forking import undone_in_children
from ...ops.primitive import executor
from ...program import Graph
from ..capture.captured import AnyName, Capture, GradientOf, Leaf, Part
from ..capture.constants import constants_of
from .differentiate import History, apart_from_history, differentiate
from .executor import Trace, TracedStorage, WatchedArray, kept_too_long
from .gradients_used import GradientsUsed
from .graph import build
from .observed import Observed
from .opaque import RunAsItIs, StandIn
from .outputs import TraceOutput
from .pullback import Make
from .side_effects import Replay, Snapshot, standing_in
from .symbolic_numbers import NeedsValue, NumberArgument, SymbolicInt, symbolic
from .templates import RETURNED, NotMadeAnew, Templates

_PACKAGE = str(Path(__file__).parents[2])


class Traced:
    """Result of a trace: a graph, and all on which it depends.

    names: those in the code that ran, and a GradientOf for each gradient that it asked for; reached: the same, or any
    name where it takes attributes by other names too. looked_at: the paths of tensors of which more than that they are
    there was asked. more_code: ran although the walk did not come to it.
    constants: what it read beside a given state. leaves: the paths to which numbers in the graph refer. needed: why
    numbers are needed as they are, by path; then there is nothing else.
    """

    graph: Graph
    returned: Any
    changes: Replay
    output: TraceOutput
    history: History | None = None
    names: frozenset[str]
    reached: frozenset[str]
    looked_at: set[str]
    more_code: dict[types.CodeType, dict[str, Any]]
    constants: dict[Any, Part]
    leaves: list[str]
    needed: dict[str, str]
    trace: Trace


def trace_call(
    function: Callable, capture: Capture, args: tuple, kwargs: dict[str, Any], name: str, make: Make
) -> Traced:
    """Runs the function on traced values. Raises TraceError for what would not be as if it had run at each call.

    name: of the function, in errors. make: see Make.
    """
    for x in capture.tensors.values():
        if isinstance(x.array.storage, TracedStorage):
            raise kept_too_long(x.array.storage)
    found, trace = Traced(), Trace()
    found.trace, found.needed = trace, trace.needed
    numbers = {path: symbolic(trace, NumberArgument(path), x) for path, x in capture.numbers.items()}
    opaque = {path: StandIn(trace, path, capture.objects[path]) for path in capture.opaque}
    paths = {key: path if path in capture.again.objects else None for key, path in capture.paths.items()}
    templates = Templates(paths | {id(x): path for path, x in opaque.items()}, capture.storages)
    found.output = TraceOutput(trace, templates)
    observed, gradients = Observed(_PACKAGE), GradientsUsed(trace, capture)
    with contextlib.ExitStack() as meanwhile, undone_in_children(meanwhile.close), random.drawn_by(trace):
        args, kwargs = meanwhile.enter_context(standing_in({**numbers, **opaque}, capture, args, kwargs))
        outside = meanwhile.enter_context(apart_from_history(capture))
        snapshot = Snapshot(capture)
        meanwhile.callback(snapshot.restore)
        # A tensor that the function asks for nothing, not even its shape, is in no signature: it may change freely.
        watched = {path: WatchedArray(x.array) for path, x in capture.tensors.items()}
        token = executor.set(trace)
        try:
            for path, array in watched.items():
                capture.tensors[path].array = array
            with gradients, found.output, observed:
                result = function(*args, **kwargs)
            for path, array in watched.items():
                if capture.tensors[path].array is array:
                    capture.tensors[path].array = array.watched
            if observed.refused is not None:
                raise observed.refused
            found.changes = snapshot.changes(templates, gradients.written - gradients.read)
            found.returned = templates.template(result, RETURNED)
            templates.share()
            leaves = [Leaf(path, x) for path, x in (*capture.tensors.items(), *capture.generators.items())]
            found.leaves = [leaf.path for leaf in leaves]
            with gradients, found.output, observed:  # hooks run on the way back
                found.history = differentiate(trace, capture, leaves, outside, templates.tensors, name, make)
            residuals = [] if found.history is None else found.history.residuals
            found.graph = build(trace, leaves, templates.tensors + residuals)
            found.looked_at = {path for path, array in watched.items() if array.was_looked_at} | templates.looked_at
            found.constants = constants_of(capture, function, observed.ran)
            names, is_plain = observed.names()
            found.names = names | set(map(GradientOf.tensor, gradients.read))
            found.reached = found.names if is_plain else AnyName(found.names)
            found.more_code = observed.code_beyond(capture.code)
            if observed.asks_for("id"):
                trace.as_it_is = "it asks for id(), which is another for the objects of each call"
            # A symbolic number passes for a float with isinstance, not with type().
            if observed.asks_for("type") and numbers:
                trace.needed |= dict.fromkeys(numbers, "type() was asked for, which tells it from Python's own")
        except (Exception, NeedsValue, RunAsItIs) as error:
            if isinstance(error, NotMadeAnew | RecursionError):
                trace.as_it_is = str(error)
            # Perhaps of what takes nothing but Python's own numbers; of ints these are often no TypeErrors.
            told = [path for path, x in numbers.items() if isinstance(error, TypeError) or type(x) is SymbolicInt]
            if isinstance(error, Exception):
                trace.needed |= dict.fromkeys(told, f"without its value came: {error}")
            if not (trace.needed or trace.as_it_is) or error is observed.refused:
                raise
        finally:
            executor.reset(token)
            meanwhile.close()
            trace.restore()
            templates.forget()
    return found
