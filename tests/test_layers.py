"""The design's rules on who may use whom, kept true by reading the source."""

import ast
import pkgutil
import re
import runpy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks.size import FLOORS, floor_of, floors

ROOT = Path(__file__).parents[1]
FORBIDDEN = {  # file or folder: what nothing in it may use
    "tinyarr": ["models", "tests", "torch"],
    "tinyarr/ops": ["tinyarr.backends", "tinyarr.distributed", "numpy", "cupy"],
    "tinyarr/compiler": ["tinyarr.distributed"],
    "tinyarr/backends": [
        "tinyarr.autograd", "tinyarr.tensor", "tinyarr.Tensor", "tinyarr.compiler", "tinyarr.distributed"
    ],
    "tinyarr/program.py": ["tinyarr.backends"],
    "models": ["tinyarr.ops", "tinyarr.backends", "tinyarr.compiler"],
}  # fmt: skip
OFFERING = {"tinyarr.nn"}  # packages whose __init__ only offers names, of all floors, as that of tinyarr does
MOST_LINES = 600
MOST_CORE_LINES = 6_173  # of code on floor 1; the aim is benchmarks/size.py's promise
QUESTIONS = "What", "Whether", "Where", "When", "Which", "Who", "How", "Why"


def source_files(root, place, *suffixes):
    path = root / place
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in files if file.suffix in suffixes and file.exists()]


def names_used(path, root):
    """The dotted name of everything that a module imports, and of every attribute in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(root).parent.parts
    imported = {}  # what a name in this module stands for

    def dotted(node):
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return imported.get(node.id, node.id) if isinstance(node, ast.Name) else "(expression)"

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                if alias.asname:
                    imported[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) + 1 - node.level] if node.level else ()
            for alias in node.names:
                name = ".".join([*origin, *filter(None, [node.module]), alias.name])
                yield name
                imported[alias.asname or alias.name] = name
    yield from (dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def forbidden_uses(root):
    return [
        f"{path.relative_to(root)} uses {name}"
        for place, forbidden in FORBIDDEN.items()
        for path in source_files(root, place, ".py")
        for name in names_used(path, root)
        if any(f"{name}.".startswith(f"{prefix}.") for prefix in forbidden)
    ]


def modules_of(root):
    """The path of every module, by its dotted name."""
    found = {}
    for place in ("tinyarr", "models"):
        for path in source_files(root, place, ".py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_never_run(node):
    """Whether importing a module leaves an `if` out: what type checkers read, and what a script does."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def imports(path, root, known):
    """The modules among `known` that a module imports when it is imported, or later, inside a function."""
    package = path.relative_to(root).parent.parts
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        waiting += [] if is_never_run(node) else ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*origin, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield from (x for x in ([name] if name in known else [module]) if x in known)


def circles(root):
    """Modules that import each other, each circle once: the shortest through its first module."""
    known = modules_of(root)
    graph = {name: sorted(set(imports(path, root, known)) - {name}) for name, path in known.items()}
    found, seen = [], set()
    for start in sorted(graph):
        before, waiting = {}, [start]
        while waiting and start not in before:
            name = waiting.pop(0)
            for other in graph[name]:
                if other not in before:
                    before[other] = name
                    waiting.append(other)
        if start in before:
            circle = [start]
            while (name := before[circle[-1]]) != start:
                circle.append(name)
            if seen.isdisjoint(circle):
                found.append(" > ".join([start, *reversed(circle[1:]), start]))
            seen.update(circle)
    return found


def classes_that_stand_twice(root):
    found = {}
    for path in source_files(root, "tinyarr", ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).add(str(path.relative_to(root)))
    return [f"{name} stands in {' and '.join(sorted(places))}" for name, places in found.items() if len(places) > 1]


def modules_without_a_floor(root):
    return [str(path.relative_to(root)) for path in modules_of(root).values() if floor_of(path) not in FLOORS]


def offered(root, known):
    """The module of each name that a package of OFFERING has: of `tinyarr.nn.Linear`, `tinyarr.nn.layers`."""
    return {
        f"{package}.{alias.asname or alias.name}": f"{package}.{node.module}"
        for package in OFFERING & known.keys()
        for node in ast.walk(ast.parse(known[package].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }


def imports_from_above(root):
    """Imports of a module on a higher floor, late ones counted.

    Packages that offer names of all floors may be imported; of them, models may use what is not above.
    """
    known = modules_of(root)
    floor = {path: floor_of(path) for path in known.values()}
    origin = offered(root, known)
    used = {
        path: {*imports(path, root, known), *(origin[name] for name in names_used(path, root) if name in origin)}
        for path in known.values()
    }
    return [
        f"{path.relative_to(root)}, floor {floor[path]}, imports {name}, floor {floor[known[name]]}"
        for path in known.values()
        for name in sorted(used[path] - {"tinyarr", *OFFERING})
        if (floor[path] or 0) < (floor[known[name]] or 0)
    ]


def private_uses(root):
    """Private names that models/ uses, but for those of an object itself and of models/ itself."""

    def private(name):
        owners = name.replace("self._", "self.").replace("cls._", "cls.")
        return any(part.startswith("_") and not part.endswith("__") for part in owners.split("."))

    return [
        f"{path.relative_to(root)} uses {name}"
        for path in source_files(root, "models", ".py")
        for name in names_used(path, root)
        if private(name) and not name.startswith("models.")
    ]


def uses_of_names(root):
    """Places where compiler or backends choose by a primitive's name, which a user's operation may bear too."""

    def is_name(node):
        return isinstance(node, ast.Attribute) and node.attr == "name" and ast.unparse(node.value).endswith("primitive")

    def chooses(node):
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            return (function == "hasattr" and "primitive" in ast.unparse(node)) or (
                function.endswith((".get", ".setdefault", ".startswith", ".endswith")) and any(map(is_name, node.args))
            )
        if isinstance(node, ast.Compare):
            return any(map(is_name, [node.left, *node.comparators]))
        return is_name(getattr(node, {ast.Subscript: "slice", ast.Match: "subject"}.get(type(node), ""), None))

    return [
        f"{path.relative_to(root)} uses {ast.unparse(node).splitlines()[0]}"
        for place in ("tinyarr/compiler", "tinyarr/backends", "tinyarr/program.py")
        for path in source_files(root, place, ".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if chooses(node)
    ]


def questions(root):
    """Docstrings that begin with a question's word, which hides what is described: a noun or a verb names it."""
    described = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    return [
        f"{path.relative_to(root)} says {text.splitlines()[0]}"
        for place in ("tinyarr", "models")
        for path in source_files(root, place, ".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, described) and (text := ast.get_docstring(node)) and text.split()[0] in QUESTIONS
    ]


def long_files(root):
    lengths = {
        path.relative_to(root): len(path.read_text(encoding="utf-8").splitlines())
        for path in source_files(root, "tinyarr", ".py", ".c", ".h", ".cu", ".cuh")
    }
    return [f"{path} has {lines} lines" for path, lines in lengths.items() if lines > MOST_LINES]


def hidden_modules(package, modules):
    """Modules that can't be reached by name, because the package has another thing of that name."""
    reached = {name: getattr(package, name) for name in modules if hasattr(package, name)}
    return [name for name, value in reached.items() if not isinstance(value, ModuleType)]


@pytest.mark.parametrize("broken",
    [
        forbidden_uses, circles, classes_that_stand_twice, modules_without_a_floor, imports_from_above, private_uses,
        uses_of_names, questions, long_files,
    ],
)  # fmt: skip
def test_the_source_keeps_the_rule(broken):
    assert broken(ROOT) == []


def test_no_module_bears_the_name_of_a_public_function():
    import tinyarr

    modules = [module.name for module in pkgutil.iter_modules(tinyarr.__path__)]
    assert hidden_modules(tinyarr, modules) == ["device", "tensor"]  # PyTorch's names, which no code here imports so


@pytest.mark.parametrize(
    ("broken", "file", "source", "use"),
    [
        (forbidden_uses, "tinyarr/ops/sort.py", "import numpy as np", "numpy"),
        (forbidden_uses, "tinyarr/ops/sort.py", "def f():\n    from .. import backends", "tinyarr.backends"),
        (forbidden_uses, "tinyarr/backends/numpy/sort.py", "from ...tensor import ones", "tinyarr.tensor.ones"),
        (forbidden_uses, "tinyarr/backends/base.py", "from tinyarr import autograd", "tinyarr.autograd"),
        (forbidden_uses, "tinyarr/backends/base.py", "import tinyarr as t\nt.Tensor(1)", "tinyarr.Tensor"),
        (forbidden_uses, "tinyarr/program.py", "from . import backends", "tinyarr.backends"),
        (forbidden_uses, "models/gpt2.py", "import tinyarr\ntinyarr.compiler.plan", "tinyarr.compiler.plan"),
        (private_uses, "models/gpt2.py", "from tinyarr.nn import _linear", "tinyarr.nn._linear"),
        (private_uses, "models/gpt2.py", "model().block._weight = 1", "(expression).block._weight"),
        (private_uses, "models/gpt2.py", "self.block._weight = 1", "self.block._weight"),
        (uses_of_names, "tinyarr/compiler/plan.py", "if x.primitive.name == 'a': f()", "x.primitive.name == 'a'"),
        (uses_of_names, "tinyarr/compiler/plan.py", "x = primitive.name not in NORMS", "primitive.name not in NORMS"),
        (uses_of_names, "tinyarr/backends/meta.py", "TABLE.get(primitive.name)", "TABLE.get(primitive.name)"),
        (uses_of_names, "tinyarr/backends/meta.py", "TABLE[x.primitive.name](x)", "TABLE[x.primitive.name]"),
        (uses_of_names, "tinyarr/backends/meta.py", "match primitive.name:\n case 1: f()", "match primitive.name:"),
        (uses_of_names, "tinyarr/backends/meta.py", "hasattr(x.primitive, 'typed')", "hasattr(x.primitive, 'typed')"),
    ],
)
def test_a_planted_use_is_found(tmp_path, broken, file, source, use):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert f"{file} uses {use}" in broken(tmp_path)


def test_a_docstring_that_begins_with_a_question_is_found(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/run.py").write_text('"""Runs."""\ndef f():\n    """What a run is."""')
    assert questions(tmp_path) == ["models/run.py says What a run is."]


def test_what_the_rules_allow_is_not_reported(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/gpt2.py").write_text(
        "import tinyarr\nfrom tinyarr import nn\nfrom .run import _open\nself._cache = nn.Linear.__name__"
    )
    assert forbidden_uses(tmp_path) == private_uses(tmp_path) == []


def test_a_planted_circle_is_found_through_late_imports_and_not_through_those_for_types(tmp_path):
    (tmp_path / "tinyarr/ops").mkdir(parents=True)
    (tmp_path / "tinyarr/ops/__init__.py").touch()
    (tmp_path / "tinyarr/ops/sort.py").write_text("from ..views import size\nfrom ..tape import record")
    (tmp_path / "tinyarr/views.py").write_text("def size():\n    from .tensor import Tensor")
    (tmp_path / "tinyarr/tensor.py").write_text("from .ops import sort")
    (tmp_path / "tinyarr/tape.py").write_text("if TYPE_CHECKING:\n    from .ops import sort")
    assert circles(tmp_path) == ["tinyarr.ops.sort > tinyarr.views > tinyarr.tensor > tinyarr.ops.sort"]


def test_the_order_of_reading_is_complete_and_each_file_needs_only_those_before_it():
    reading = runpy.run_path(str(ROOT / "docs/make_reading.py"))
    order = [reading["path_of"](word) for words in reading["ORDER"].values() for word in words.split()]
    known = modules_of(ROOT)
    assert sorted(order) == sorted(path for path in known.values() if floor_of(path) == 1)
    for i, path in enumerate(order):
        after = {name for name, other in known.items() if other in order[i + 1 :]}
        assert after.isdisjoint(imports(path, ROOT, known)), path


def test_the_page_of_reading_says_what_each_file_says_and_about_how_long_it_is():
    """Sizes may be off by a tenth, so that not every change must write the page anew."""
    reading = runpy.run_path(str(ROOT / "docs/make_reading.py"))
    number = re.compile(r"\d[\d,]*")
    page, wanted = reading["PAGE"].read_text(encoding="utf-8"), reading["page"]()
    advice = "run: python docs/make_reading.py"
    assert number.sub("", page) == number.sub("", wanted), advice
    for said, found in zip(number.findall(page), number.findall(wanted), strict=True):
        said, found = (int(text.replace(",", "")) for text in (said, found))
        assert abs(said - found) <= max(found / 10, 10), advice


def test_the_core_is_small():
    assert floors(ROOT)[1] <= MOST_CORE_LINES


def test_a_planted_import_from_above_a_class_that_stands_twice_and_a_missing_floor_are_found(tmp_path):
    (tmp_path / "tinyarr").mkdir()
    (tmp_path / "tinyarr/views.py").write_text('"""Views. Floor 1."""\ndef f():\n    from . import plan\nclass Plan: 1')
    (tmp_path / "tinyarr/plan.py").write_text('"""Plans. Floor 2.\n\nOf memory."""\nfrom . import views\nclass Plan: 1')
    (tmp_path / "tinyarr/rows.py").write_text('"""Rows.\n\nFloor 1."""')
    above = "tinyarr/views.py, floor 1, imports tinyarr.plan, floor 2"
    assert imports_from_above(tmp_path) == [above]
    assert classes_that_stand_twice(tmp_path) == ["Plan stands in tinyarr/plan.py and tinyarr/views.py"]
    assert modules_without_a_floor(tmp_path) == ["tinyarr/rows.py"]


def test_what_a_package_offers_stands_on_the_floor_of_the_room_from_which_it_comes(tmp_path):
    for file, source in {
        "tinyarr/nn/__init__.py": '"""Names. Floor 5."""\nfrom .layers import Linear\nfrom .losses import MSELoss',
        "tinyarr/nn/layers.py": '"""Layers. Floor 1."""',
        "tinyarr/nn/losses.py": '"""Losses. Floor 5."""',
        "models/gpt2.py": '"""GPT-2. Floor 1."""\nfrom tinyarr import nn\nnn.Linear(), nn.MSELoss()',
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
    assert imports_from_above(tmp_path) == ["models/gpt2.py, floor 1, imports tinyarr.nn.losses, floor 5"]


def test_a_planted_long_file_is_found(tmp_path):
    (tmp_path / "tinyarr").mkdir()
    (tmp_path / "tinyarr/norm.cu").write_text("\n" * (MOST_LINES + 1))
    assert long_files(tmp_path) == ["tinyarr/norm.cu has 601 lines"]


def test_a_planted_function_with_a_module_s_name_is_found():
    package = SimpleNamespace(compile=lambda: None, nn=ModuleType("nn"))
    assert hidden_modules(package, ["compile", "nn", "optim"]) == ["compile"]
