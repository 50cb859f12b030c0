from benchmarks.size import c_lines, python_lines


def test_python_docstrings_comments_and_blank_lines_are_not_counted():
    source = '''"""Module
docstring."""

# comment
def f(x):  # counted once
    "docstring"
    return """text

    of two lines""" + x
'''
    assert python_lines(source) == 3


def test_c_comments_are_not_counted_and_strings_are_no_comments():
    source = """
/* a comment
   of two lines */
const char *url = "http://x /* y";  // counted once
// comment
int one = /* inside */ 1;
"""
    assert c_lines(source) == 2
