"""Writes into a page what its Python sessions print: python docs/make_sessions.py docs/compiler.md

A page may only show what is so, and tests/test_docs.py compares; after a change that is meant, this writes it anew.
"""

import doctest
import re
import sys
from pathlib import Path

SESSION = re.compile(r"(?<=```python\n)>>> .*?(?=```$)", re.MULTILINE | re.DOTALL)


class _Recorder(doctest.DocTestRunner):
    """Runs examples, and keeps what each prints as what it shall print."""

    def report_failure(self, out, test, example, got):
        example.want = got

    def report_unexpected_exception(self, out, test, example, exc_info):
        raise exc_info[1]


def written_anew(name: str, page: str) -> str:
    """Returns a page whose sessions, which share their names, show what they print now.

    name: of the page, as errors and lines of traced functions show it.
    """
    names = {"__name__": "__main__"}

    def session(match: re.Match) -> str:
        parts = doctest.DocTestParser().parse(match[0])
        examples = [part for part in parts if isinstance(part, doctest.Example)]
        test = doctest.DocTest(examples, names, name, name, page.count("\n", 0, match.start()), match[0])
        test.globs = names  # itself, not a copy: a function sees names that later sessions give
        _Recorder().run(test, clear_globs=False)
        return "".join(part if isinstance(part, str) else _shown(part) for part in parts)

    return SESSION.sub(session, page)


def _shown(example: doctest.Example) -> str:
    first, *more = example.source.splitlines()
    lines = [f">>> {first}", *(f"... {line}".rstrip() for line in more)]
    lines += [line or "<BLANKLINE>" for line in example.want.splitlines()]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written_anew(path.name, path.read_text(encoding="utf-8")), encoding="utf-8")
