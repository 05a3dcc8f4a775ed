import pytest

from isrdpo_jax.data.shapes_world.language import better_response, describe
from isrdpo_jax.data.shapes_world.revision import Revision, revision

TRUTH = {
    "objects": [
        {"colour": "blue", "shape": "square", "direction": "left", "size": "small"},
        {"colour": "red", "shape": "circle", "direction": "up", "size": "large"},
    ],
    "background": "dark",
}
RIGHT = describe(TRUTH)  # seven slots: shape, direction and size of two objects, and the background


@pytest.mark.parametrize(
    ("previous", "new", "counts"),
    [
        (RIGHT, RIGHT, {"kept_right": 7}),
        ("", RIGHT, {"added_right": 7}),
        (RIGHT, "", {"dropped_right": 7}),
        ("The red circle moves down.", "The red circle moves up.", {"kept_right": 1, "corrected": 1}),
        ("The red circle moves up.", "The red circle moves down.", {"kept_right": 1, "spoiled": 1}),
        ("The red circle moves down.", "The red circle moves left.", {"kept_right": 1, "changed": 1}),
        ("The background is grey.", "The background is grey.", {"kept_wrong": 1}),
        ("The background is grey.", "The red object is small.", {"dropped_wrong": 1, "added_wrong": 1}),
        ("A green square moves up fast.", "A green square moves up fast.", {"kept_wrong": 1}),  # outside the grammar
        ("The red object is large. The red object is small.", "The red object is large.", {"kept_right": 1}),
    ],
)
def test_every_slot_is_counted_once(previous, new, counts):
    assert revision(previous, new, TRUTH) == Revision(**counts)


def test_an_absent_object_is_wrong():
    assert revision("The background is dark.", "The green object is small.", TRUTH) == Revision(
        dropped_right=1, added_wrong=1
    )


@pytest.mark.parametrize(
    ("first", "second", "better"),
    [
        ("The red circle moves up.", "The red circle moves down.", 0),
        ("The red circle moves down.", "The red circle moves up. The background is grey.", 1),
        ("The red circle moves up.", "The red circle moves up. The background is dark.", 1),
        ("The red circle moves up.", "The red circle moves up. The red circle moves up.", None),
    ],
)
def test_the_better_response(first, second, better):
    assert better_response([first, second], "What does the red object do?", TRUTH) == better
