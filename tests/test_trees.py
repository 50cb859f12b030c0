"""Trees: what is in them comes out in one order and goes back in it, in containers of the same classes."""

import collections

from hypothesis import given
from hypothesis import strategies as st

from tests.tiers import at_most
from tinyarr.trees import leaves, mapped, rebuilt, sequence_like

Pair = collections.namedtuple("Pair", "x y")
TREES = st.recursive(
    st.integers(),
    lambda inner: st.lists(inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple)
    | st.builds(Pair, inner, inner)
    | st.dictionaries(st.text(max_size=2), inner, max_size=3).map(collections.OrderedDict),
    max_leaves=8,
)


def form(tree):
    return mapped(tree, lambda _: None)


@at_most(60)
@given(TREES)
def test_a_tree_is_rebuilt_of_its_leaves(tree):
    found = leaves(tree)
    assert all(type(leaf) is int for leaf in found)
    again = rebuilt(tree, found)
    assert again == tree and type(again) is type(tree)
    assert mapped(tree, lambda leaf: leaf + 1) == rebuilt(tree, [leaf + 1 for leaf in found])
    assert repr(form(rebuilt(tree, range(len(found))))) == repr(form(tree))


def test_a_sequence_keeps_its_class():
    assert sequence_like([1], [2, 3]) == [2, 3] and sequence_like((1,), iter([2])) == (2,)
    made = sequence_like(Pair(1, 2), [3, 4])
    assert type(made) is Pair and made == (3, 4)
