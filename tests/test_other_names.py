"""Whoever uses a name of PyTorch or NumPy is told what it is called here."""

import pytest

import tinyarr as ta
from tinyarr.other_names import FUNCTIONS, METHODS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_another_library_is_named_by_ours(name):
    if name != "tensor":  # a module of that name has been imported
        with pytest.raises(AttributeError, match=r"tinyarr has no attribute .*: use "):
            getattr(ta, name)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_another_library_is_named_by_ours(name):
    with pytest.raises(AttributeError, match=r"Tensor has no attribute .*: use "):
        getattr(ta.ones(2), name)


def test_any_other_name_is_plainly_missing():
    with pytest.raises(AttributeError, match=r"^tinyarr has no attribute 'frobnicate'$"):
        _ = ta.frobnicate
    with pytest.raises(AttributeError, match=r"^'Tensor' object has no attribute 'frobnicate'$"):
        _ = ta.ones(2).frobnicate


def test_what_a_star_import_brings_exists():
    assert all(hasattr(ta, name) for name in ta.__all__)
    assert {"Tensor", "matmul", "nn", "float32"} <= set(ta.__all__)
