"""Writes docs/reading.md, the order of a weekend with the size of each file: `python docs/make_reading.py`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.size import COUNTERS, FLOORS, PLACES, ROOT, floor_of, lines_of

PAGE = ROOT / "docs/reading.md"
ORDER = {  # of floor 1: each file needs only those before it
    "Saturday morning: memory": "errors views dtypes device array",
    "Saturday morning: an operation": "tensor tape eager ops/__init__ ops/primitive",
    "Saturday noon: expressions": """ops/scalar ops/typing ops/expressed ops/elementwise_primitive ops/elementwise
        ops/create ops/shape ops/assign ops/reduce ops/matmul ops/operators""",
    "Saturday afternoon: gradients": "random autograd trees transforms ops/fused",
    "Saturday evening: rows": "ops/row ops/rowwise ops/softmax ops/norm",
    "Sunday morning: what models need": """ops/index ops/activation ops/random ops/attention ops/loss
        ops/linear_cross_entropy""",
    "Sunday morning: NumPy runs it": """backends/__init__ backends/base backends/numpy/registry backends/numpy/pool
        backends/numpy/erf backends/numpy/functions backends/numpy/expression backends/numpy/reduce
        backends/numpy/rows backends/numpy/index backends/numpy/matmul backends/numpy/shape backends/numpy/__init__""",
    "Sunday afternoon: training": """nn/module nn/new_parameters nn/layers segments optim/optimizer optim/adamw
        optim/clipping schedule""",
    "Sunday evening: GPT-2": "models/cache models/gpt2",
}
INTRODUCTION = """# Reading tinyarr

Written by `python docs/make_reading.py`; a test keeps it true. Every module's first line ends with its floor, and a
module imports only what is on its own floor or below. Floor 1 is a weekend: {core:,} lines of code (without docstrings,
comments and blank lines) that train GPT-2 eagerly on NumPy. Read it in this order; a file needs only those before it.
The floors above can be read alone, each after floor 1; compiler.md goes through the second with one example.
"""


def path_of(word: str) -> Path:
    return ROOT / f"{word if word.startswith('models/') else f'tinyarr/{word}'}.py"


def says(path: Path) -> str:
    """The first line of a module's docstring without its floor."""
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return re.sub(r" Floor \d\.$", "", first)


def rooms() -> dict[int, dict[str, int]]:
    """By floor the lines of each room above the first: a folder's, or a module's that has none."""
    found: dict[int, dict[str, int]] = {}
    for path in sorted(path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in COUNTERS):
        floor, inside = floor_of(path) or 0, path.relative_to(ROOT).parts
        room = "/".join(inside[:-1]) + "/" if len(inside) > 2 or inside[0] == "models" else "/".join(inside)
        here = found.setdefault(floor, {})
        here[room] = here.get(room, 0) + lines_of(path)
    return found


def page() -> str:
    parts, core = [], 0
    for title, words in ORDER.items():
        paths = [path_of(word) for word in words.split()]
        lines = sum(map(lines_of, paths))
        core += lines
        parts += [f"## {title} ({lines:,} lines)", "", "| file | lines | |", "|---|---:|---|"]
        parts += [f"| {path.relative_to(ROOT)} | {lines_of(path)} | {says(path)} |" for path in paths] + [""]
    for floor, lines_of_rooms in sorted(rooms().items()):
        if floor > 1:
            parts += [f"## Floor {floor}: {FLOORS[floor]} ({sum(lines_of_rooms.values()):,} lines)", ""]
            parts += ["| room | lines |", "|---|---:|"]
            parts += [f"| {room} | {lines:,} |" for room, lines in lines_of_rooms.items()] + [""]
    return "\n".join([INTRODUCTION.format(core=core), *parts]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
