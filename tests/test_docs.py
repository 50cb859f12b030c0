"""What the documentation shows runs: the `>>>` examples in docstrings, and the python blocks of README.md and docs/."""

import ast
import doctest
import re
import runpy
import textwrap
from pathlib import Path

import pytest

import tinyarr

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "tinyarr").rglob("*.py"))
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
PARSER = doctest.DocTestParser()
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def path_in_checkout(path):
    return str(path.relative_to(ROOT))


def new_names():
    return {"__name__": "__main__"}


def docstring_examples(path):
    """A doctest for each docstring with examples, also of what a decorator turned into something that is no function.

    Each starts without any names, so that a reader can paste it as it stands.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node, clean=False) or ""
            name = getattr(node, "name", path.stem)
            test = PARSER.get_doctest(text, new_names(), name, str(path), node.body[0].lineno - 1 if text else 0)
            if test.examples:
                yield test


def run_examples(test):
    """Runs a doctest; a difference fails with the whole report."""
    report = []
    doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    if report:
        raise AssertionError("".join(report))


def run_page(path):
    """Runs the python blocks of a page one after the other, in one namespace; errors name the page's own lines."""
    text = path.read_text(encoding="utf-8")
    names = new_names()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        code = textwrap.dedent(block["code"])
        if code.lstrip().startswith(">>>"):
            test = PARSER.get_doctest(code, names, path.name, str(path), line)
            test.globs = names  # itself, not a copy: a function sees names that later blocks give
            run_examples(test)
        else:
            exec(compile("\n" * line + code, path, "exec"), names)


@pytest.fixture(autouse=True)
def _own_random_numbers_and_folder(tmp_path, monkeypatch):
    """Examples may seed and write files: neither is seen by other tests."""
    monkeypatch.chdir(tmp_path)
    with tinyarr.random.use_generator(tinyarr.random.Generator()):
        yield


@pytest.mark.parametrize("module", MODULES, ids=path_in_checkout)
def test_the_examples_in_docstrings_print_what_they_say(module):
    for test in docstring_examples(module):
        run_examples(test)


@pytest.mark.parametrize("page", PAGES, ids=path_in_checkout)
def test_the_python_blocks_of_a_page_run_in_order(page):
    run_page(page)


DECORATED = '''
@tinyarr.elementwise
def cube(x):
    """
    >>> 1 + 1
    {result}
    """
'''


def test_a_wrong_example_is_found_even_where_the_decorated_is_no_function(tmp_path):
    path = tmp_path / "operations.py"
    path.write_text(DECORATED.format(result=2))
    (right,) = docstring_examples(path)
    run_examples(right)
    path.write_text(DECORATED.format(result=3))
    (wrong,) = docstring_examples(path)
    with pytest.raises(AssertionError, match=r'operations\.py", line 5, in cube'):
        run_examples(wrong)


PAGE = """
```python
x = 1
```
- An item:
  ```python
  x += 1
  ```

```text
1 / 0
```

```python
>>> x
{result}
>>> y = 5
```

```python
1 / (y - {divisor})
```
"""


def test_the_blocks_of_a_page_share_their_names(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(result=2, divisor=4))
    run_page(page)


def test_a_function_sees_names_that_later_sessions_give(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\n>>> def f():\n...     return y\n```\n```python\n>>> y = 1\n>>> f()\n1\n```\n")
    run_page(page)


def test_a_block_that_fails_is_named_by_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(result=2, divisor=5))
    with pytest.raises(ZeroDivisionError) as failure:
        run_page(page)
    assert (failure.traceback[-1].path, failure.traceback[-1].lineno + 1) == (page, 21)


def test_a_session_that_prints_something_else_is_named_by_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(result=3, divisor=4))
    with pytest.raises(AssertionError, match=r'page\.md", line 15'):
        run_page(page)


def test_sessions_are_written_anew_as_they_print_now():
    written_anew = runpy.run_path(str(ROOT / "docs" / "make_sessions.py"))["written_anew"]
    page = "text\n```python\n>>> x = 1\n>>> for i in range(2):\n...     print(x + i)\n7\n```\n```python\n>>> x\n```\n"
    assert written_anew("page.md", page) == page.replace("7\n", "1\n2\n").replace(">>> x\n```", ">>> x\n1\n```")


def test_the_page_of_operations_is_what_the_registry_says():
    made = runpy.run_path(str(ROOT / "docs" / "make_operations.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run: python docs/make_operations.py"


def test_the_stubs_are_what_tinyarr_and_its_tensors_have():
    for path, stub in runpy.run_path(str(ROOT / "docs" / "make_stubs.py"))["STUBS"].items():
        assert path.read_text(encoding="utf-8") == stub(), "run: python docs/make_stubs.py"
