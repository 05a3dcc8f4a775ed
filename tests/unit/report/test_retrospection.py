import pytest
from hypothesis import given
from hypothesis import strategies as st

from isrdpo_jax.report.retrospection import Rewriting, rewriting, statements


@pytest.mark.parametrize(
    ("previous", "new", "counts"),
    [
        ("A cat sits. It sleeps.", "A cat  sits. It sleeps.", {"kept": 2}),
        ("A cat sits.", "A CAT sits. A dog barks at it.", {"kept": 1, "added": 1}),
        ("A black cat sits here. It sleeps.", "A white cat sits here.", {"reworded": 1, "dropped": 1}),
        ("A cat sits.", "Two men play chess outside.", {"dropped": 1, "added": 1}),
        ("It rains. It rains.", "It rains.", {"kept": 1, "dropped": 1}),
        ("", "", {}),
    ],
)
def test_what_became_of_the_statements(previous, new, counts):
    words = {"words_before": len(previous.split()), "words_after": len(new.split())}
    assert rewriting(previous, new) == Rewriting(**words, **counts)


def test_every_new_statement_has_one_old():
    """Two new sentences are like one old: only the more alike is its rewording."""
    found = rewriting("a b c d.", "a b c e. a b c d e.")
    assert (found.reworded, found.added, found.dropped) == (1, 1, 0)


def test_versions_and_decimals_do_not_end_a_sentence():
    assert statements("It costs 3.5 dollars. Really? Yes") == ["it costs 3.5 dollars.", "really?", "yes"]


TEXTS = st.lists(st.sampled_from(["a b.", "a c.", "b c d.", "e."]), max_size=5).map(" ".join)


@given(TEXTS, TEXTS)
def test_every_statement_is_counted_once(previous, new):
    found = rewriting(previous, new)
    assert found.after == len(statements(new))
    assert found.before == len(statements(previous))
    back = rewriting(new, previous)
    assert (found.kept, found.added) == (back.kept, back.dropped)
