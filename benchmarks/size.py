"""Counts the lines of code of every floor and every room, beside the sizes that the project promises.

A line counts if something on it is neither blank, nor comment, nor docstring. The first line of a module's docstring
ends with its floor; C and CUDA files stand on that of their folder.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = {1: "core", 2: "compiler and C", 3: "CUDA", 4: "many processes", 5: "surface"}
PLACES = ("tinyarr", "models")
PROMISED = {1: 5_000, "tinyarr": 16_000}  # at most
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


COUNTERS = {".py": python_lines, **dict.fromkeys((".c", ".h", ".cu", ".cuh"), c_lines)}


def lines_of(path: Path) -> int:
    """Lines of code in a file, 0 for what is no code."""
    return COUNTERS[path.suffix](path.read_text(encoding="utf-8")) if path.suffix in COUNTERS else 0


def floor_of(path: Path) -> int | None:
    """The floor that a file says it stands on: `\"\"\"Views of memory. Floor 1.`; None where it says none."""
    module = path if path.suffix == ".py" else path.with_name("__init__.py")
    if not module.exists():
        return None
    says = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    match = re.search(r" Floor (\d)\.$", says.partition("\n")[0])
    return int(match[1]) if match else None


def floors(root: Path) -> dict[int | None, int]:
    """The lines of code on each floor."""
    total = dict.fromkeys(FLOORS, 0)
    for path in (path for place in PLACES for path in (root / place).rglob("*") if path.suffix in COUNTERS):
        total[floor_of(path)] = total.get(floor_of(path), 0) + lines_of(path)
    return total


def report(folder: Path, depth: int = 0) -> tuple[int, list[str]]:
    """The lines of code below a folder, and a table of its files and folders with the files' floors."""
    total, rows = 0, []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        lines, below = report(path, depth + 1) if path.is_dir() else (lines_of(path), [])
        if lines:
            total += lines
            floor = "" if path.is_dir() else f"{floor_of(path) or '':>4}"
            rows += [f"{'  ' * (depth + 1) + path.name + '/' * path.is_dir():44}{lines:>8,}{floor}".rstrip(), *below]
    return total, rows


def promise(key: int | str) -> str:
    return f"   of at most {PROMISED[key]:,}" if key in PROMISED else ""


if __name__ == "__main__":
    for floor, lines in floors(ROOT).items():
        print(f"{f'floor {floor}: {FLOORS[floor]}' if floor else 'no floor':44}{lines:>8,}{promise(floor)}")
    for place in PLACES:
        total, rows = report(ROOT / place)
        print("", f"{place + '/':44}{total:>8,}{promise(place)}", *rows, sep="\n")
