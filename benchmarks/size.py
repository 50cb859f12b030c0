"""Count the lines of code of every room, beside the sizes that the project promises.

A line counts if something on it is neither blank, nor comment, nor docstring.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMISED = {"tinyarr": 9_000, "models": 900}
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
COMMENT_OR_STRING = re.compile(r"""//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""", re.DOTALL)


def python_lines(source: str) -> int:
    """Lines of Python code."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    }
    text = source.splitlines()
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in {tokenize.COMMENT, *LAYOUT} and token.start not in docstrings:
            numbers.update(range(token.start[0], token.end[0] + 1))
    return sum(bool(text[number - 1].strip()) for number in numbers)


def c_lines(source: str) -> int:
    """Lines of C or CUDA code."""
    code = COMMENT_OR_STRING.sub(lambda match: match[1] or " ", source)
    return sum(bool(line.strip()) for line in code.splitlines())


COUNTERS = {".py": python_lines, ".c": c_lines, ".h": c_lines, ".cu": c_lines}


def report(folder: Path, depth: int = 0) -> tuple[int, list[str]]:
    """The lines of code below a folder, and a table of its files and folders."""
    total, rows = 0, []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir():
            lines, below = report(path, depth + 1)
        elif path.suffix in COUNTERS:
            lines, below = COUNTERS[path.suffix](path.read_text(encoding="utf-8")), []
        else:
            continue
        if lines:
            total += lines
            name = "  " * (depth + 1) + path.name + "/" * path.is_dir()
            rows += [f"{name:40}{lines:>8,}", *below]
    return total, rows


if __name__ == "__main__":
    for name, promised in PROMISED.items():
        total, rows = report(ROOT / name)
        print(f"{name + '/':40}{total:>8,}   of about {promised:,}", *rows, "", sep="\n")
