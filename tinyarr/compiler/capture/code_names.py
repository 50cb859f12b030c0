"""Names that a function's bytecode reads and writes: its globals, their attributes, and others'. Floor 2.

`step.count` and `count` look alike in `co_names`. The instructions tell them apart, and so a global variable whose name
is only an attribute somewhere is none of a function's business.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Container, Sequence
from types import CodeType
from typing import NamedTuple

_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "LOAD_SUPER_ATTR", "IMPORT_FROM"}
_LOCALS = {"LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF", "DELETE_FAST", "DELETE_DEREF"}


class Chain(NamedTuple):
    """A variable and the attributes taken of it at once: `settings.model.width`.

    attributes: without the variable's own name. end: the offset in the bytecode of the instruction that takes the last.
    """

    name: str
    attributes: tuple[str, ...]
    end: int


class Names(NamedTuple):
    """Names in a code object, each once and in order.

    chains: one for each place where a global is read or written. local_chains: where another variable is read.
    attributes: of whatever object. imports: modules that it imports itself. locals: parameters and variables whose
    value is read. all: every name, every string constant, which getattr may take for one, and MATCH_CLASS, which takes
    attributes that are named elsewhere.
    """

    chains: tuple[Chain, ...]
    local_chains: tuple[Chain, ...]
    attributes: tuple[str, ...]
    imports: tuple[str, ...]
    locals: frozenset[str]
    all: frozenset[str]


@functools.cache
def names_of(code: CodeType) -> Names:
    """Returns the names in a code object, without those of functions that are defined in it.

    >>> from tinyarr.compiler.capture.code_names import names_of
    >>> names = names_of((lambda x: x.mean() * settings.width).__code__)
    >>> [(chain.name, chain.attributes) for chain in names.chains], names.attributes
    ([('settings', ('width',))], ('mean', 'width'))
    """
    chains: list[Chain] = []
    local_chains: list[Chain] = []
    among = chains
    attributes: dict[str, None] = {}
    imports: dict[str, None] = {}
    read: set[str] = set()
    strings = {x for x in code.co_consts if isinstance(x, str)}
    chain: Chain | None = None
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if operation in _ATTRIBUTES:
            attributes[name] = None
            if chain is not None:
                chain = Chain(chain.name, (*chain.attributes, name), instruction.offset)
            continue
        if chain is not None:
            among.append(chain)
        chain, among = (Chain(name, (), instruction.offset), chains) if operation in _GLOBALS else (None, local_chains)
        if operation == "IMPORT_NAME":
            imports[name] = None
        elif operation in _LOCALS or "LOAD_FAST" in operation:
            names = name if isinstance(name, tuple) else (name,)
            read.update(names)
            chain = Chain(names[-1], (), instruction.offset)
        elif operation == "MATCH_CLASS":
            strings.add(operation)
    named = frozenset((*code.co_names, *code.co_freevars, *code.co_cellvars, *strings))
    return Names(tuple(chains), tuple(local_chains), tuple(attributes), tuple(imports), frozenset(read), named)


@functools.cache
def with_inner(code: CodeType) -> tuple[CodeType, ...]:
    """The code object, and all of functions and classes that are defined in it."""
    return (code, *(y for x in code.co_consts if isinstance(x, CodeType) for y in with_inner(x)))


class Parameters(NamedTuple):
    """A function's parameters, as far as its code shows: in order, and which of them it never reads, by name.

    any_keyword: whether it may see the keywords of a call in their order.
    """

    names: Sequence[str] = ()
    unread: Container[str] = ()
    unread_keywords: Container[str] = ()
    any_keyword: bool = True

    @classmethod
    def of(cls, function: Callable) -> Parameters:
        code = getattr(function, "__code__", None)
        is_method = isinstance(function, types.MethodType)
        if not (is_method or isinstance(function, types.FunctionType)) or not isinstance(code, types.CodeType):
            return cls()
        inner = [names_of(c) for c in with_inner(code)]
        if any(n.all & {"locals", "vars", "eval", "exec", "dir"} for n in inner):
            return cls()
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        unread = {name for name in names if not any(name in n.locals for n in inner)}
        if any(chain.name == "super" for n in inner for chain in n.chains):  # which takes the first by itself
            unread -= {*names[:1]}
        positional = code.co_varnames[is_method : code.co_argcount]
        unread_keywords = unread - {*code.co_varnames[: code.co_posonlyargcount]}
        return cls(positional, unread, unread_keywords, bool(code.co_flags & inspect.CO_VARKEYWORDS))
