"""The embedded world: scenes, pixels, language and the annotator."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.shapes_world import annotator, language
from isrdpo_jax.data.shapes_world.language import Grade, Statement
from isrdpo_jax.data.shapes_world.render import FPS, FRAMES, RGB, centres, render
from isrdpo_jax.data.shapes_world.scene import BACKGROUNDS, SPLITS, Object, Scene, sample_scenes, scene_key, split_of
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.data.video_writer import write_video

SCENE = Scene(
    objects=(
        Object("blue", "square", "up", "large", lane=0, span=(2, 28)),
        Object("red", "circle", "left", "small", lane=1, span=(2, 28)),
    ),
    background="dark",
    noise_seed=7,
)
TRUTH = SCENE.truth
QUESTION = "What does the red object do?"


def test_splits_share_no_meaning():
    keys = {split: {scene_key(scene) for scene in sample_scenes(split, 1500, seed=3)} for split in SPLITS}
    assert all(len(found) == 1500 for found in keys.values())
    for first, second in itertools.combinations(SPLITS, 2):
        assert not keys[first] & keys[second]
    assert all(split_of(key) == split for split, found in keys.items() for key in found)


def test_a_longer_list_begins_with_the_shorter_one_and_seeds_differ():
    assert sample_scenes("train", 40, seed=1)[:10] == sample_scenes("train", 10, seed=1)
    assert sample_scenes("train", 10, seed=1) != sample_scenes("train", 10, seed=2)


def test_nuisance_does_not_change_the_key():
    moved = Scene(
        objects=(SCENE.objects[0], Object("red", "circle", "left", "small", lane=1, span=(2, 28))),
        background="dark",
        noise_seed=8,
    )
    other = Scene(objects=SCENE.objects, background="grey", noise_seed=7)
    assert scene_key(moved) == scene_key(SCENE)
    assert scene_key(other) != scene_key(SCENE)


def test_objects_are_of_two_colours_and_parallel_tracks_differ():
    for scene in sample_scenes("sft", 500, seed=0):
        first, second = scene.objects
        assert first.colour < second.colour
        if (first.direction in ("left", "right")) == (second.direction in ("left", "right")):
            assert first.lane != second.lane


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_objects_keep_their_colour_through_a_file(tmp_path, background):
    pairs = [("blue", "cyan"), ("green", "yellow"), ("purple", "red")]
    for i, (first, second) in enumerate(pairs):
        scene = Scene(
            objects=(
                Object(first, "cross", "right", "small", lane=0, span=(2, 28)),
                Object(second, "triangle", "left", "small", lane=1, span=(2, 28)),
            ),
            background=background,
            noise_seed=i,
        )
        write_video(tmp_path / "scene.mp4", render(scene), FPS)
        frames = decode_video(tmp_path / "scene.mp4", FRAMES).frames
        assert frames.shape == (FRAMES, 32, 32, 3)
        for thing in scene.objects:
            x, y = centres(thing)
            for t in range(2, FRAMES - 2):
                seen = frames[t, int(y[t]), int(x[t])].astype(float)
                nearest = min(RGB, key=lambda name: np.abs(seen - RGB[name]).sum())
                assert nearest == thing.colour, f"{thing.colour} at frame {t}: {seen}"


def test_rendering_is_deterministic_and_directions_move_the_right_way():
    np.testing.assert_array_equal(render(SCENE), render(SCENE))
    x, y = centres(SCENE.objects[1])
    assert x[-1] < x[0] - 20 and np.ptp(y) == 0
    x, y = centres(SCENE.objects[0])
    assert y[-1] < y[0] - 20 and np.ptp(x) == 0


def test_the_description_is_canonical_and_parses_back():
    text = language.describe(TRUTH)
    blue, red = (
        "The blue square moves up. The blue object is large.",
        "The red circle moves left. The red object is small.",
    )
    assert text == f"{blue} {red} The background is dark."
    assert language.parse(text) == language.description_statements(TRUTH)
    for scene in sample_scenes("eval", 100, seed=0):
        text = language.describe(scene.truth)
        assert " ".join(map(str, language.parse(text))) == text
        assert language.grade_description(text, scene.truth) == (7, 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The red circle moves left.", Grade(core=True, statements=1, false=0, words=5)),
        ("The red circle moves right.", Grade(core=False, statements=1, false=1, words=5)),
        ("The red square moves left.", Grade(core=False, statements=1, false=1, words=5)),
        ("The blue square moves up.", Grade(core=False, statements=1, false=1, words=5)),  # true, but not asked
        ("The red circle moves left. The red object is small.", Grade(core=True, statements=2, false=0, words=10)),
        ("The red circle moves left. The background is grey.", Grade(core=True, statements=2, false=1, words=9)),
        (
            "The red circle moves left. The red object is small. The red object is small.",
            Grade(core=True, statements=3, false=0, words=15, repeated=1),
        ),
        ("The red circle moves left. Red red.", Grade(core=True, statements=2, false=1, words=7)),
        ("The background is dark. The red circle moves left.", Grade(core=False, statements=2, false=1, words=9)),
        ("The red object moves left.", Grade(core=False, statements=1, false=1, words=5)),  # without the shape
        ("The red circle moves", Grade(core=False, statements=1, false=1, words=4)),  # cut off
        ("the red circle moves left", Grade(core=False, statements=1, false=1, words=5)),
        ("", Grade(core=False, statements=0, false=0, words=0)),
    ],
)
def test_grades(text, expected):
    assert language.grade(text, QUESTION, TRUTH) == expected


def test_preference_counts_the_core_twice_further_facts_once_and_takes_off_what_is_false():
    assert language.preference(Grade(core=True, statements=1, false=0, words=5)) == 2
    assert language.preference(Grade(core=True, statements=3, false=1, words=15)) == 2
    assert language.preference(Grade(core=True, statements=3, false=0, words=15, repeated=1)) == 3
    assert language.preference(Grade(core=False, statements=3, false=3, words=15)) == -3
    assert language.preference(Grade(core=False, statements=3, false=1, words=15)) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The blue square moves down. The blue object is large. The background is dark.", (3, 7)),
        ("The red circle moves left.", (2, 7)),
        ("The red circle moves left. The red circle moves left.", (2, 8)),
        ("The cyan circle moves left. What?", (0, 9)),
        ("", (0, 7)),
    ],
)
def test_descriptions_are_graded_per_slot(text, expected):
    assert language.grade_description(text, TRUTH) == expected


def test_a_foreign_question_is_refused():
    with pytest.raises(ValueError, match="not a question"):
        language.grade("The red circle moves left.", "Who won?", TRUTH)


def test_step_labels_by_hand():
    text = "The red circle moves right. The blue object is large. The background is grey."
    labels = annotator.step_labels(text, 100, TRUTH)
    words = [(text[: offset - 100].replace(".", " .").split(" ")[-1], label) for offset, label in labels]
    assert words == [
        ("red", "yes"),
        ("circle", "yes"),
        ("right", "no"),
        (".", "no"),
        ("blue", "yes"),
        ("large", "yes"),
        (".", "yes"),
        ("grey", "no"),
        (".", "no"),
    ]


def test_a_false_word_makes_the_rest_of_its_sentence_false():
    labels = [label for _, label in annotator.step_labels("The red cross moves left.", 0, TRUTH)]
    assert labels == ["yes", "no", "no", "no"]  # red, cross, left, full stop


@pytest.fixture(scope="module")
def rows():
    prompts = load_prompts()
    return [
        (scene.truth, annotator.annotate(scene.truth, prompts, (0, i)))
        for i, scene in enumerate(sample_scenes("sft", 400, seed=0))
    ]


def _of(rows, kind):
    return [(truth, row) for truth, found in rows for row in found if row.kind == kind]


def _responses(prompt):
    lines = prompt.split("\n")
    question = next(line for line in lines if line.startswith("Question: ")).removeprefix("Question: ")
    a, b = (next(line for line in lines if line.startswith(f"Response {x}: "))[len("Response A: ") :] for x in "AB")
    return question, a, b


def test_rows_of_every_kind(rows):
    kinds = [row.kind for row in rows[0][1]]
    assert kinds == ["describe", "retrospect", "look", "answer", "look", "answer", *["judge"] * 5, "judge_plain"]
    for truth, row in _of(rows, "describe") + _of(rows, "retrospect"):
        assert row.response == language.describe(truth)
    assert all("Description:" not in row.prompt for _, row in _of(rows, "judge_plain"))
    assert all("Question:" not in row.prompt for _, row in _of(rows, "retrospect"))


def test_annotation_is_deterministic(rows):
    truth, found = rows[5]
    assert annotator.annotate(truth, load_prompts(), (0, 5)) == found
    assert annotator.annotate(truth, load_prompts(), (1, 5)) != found


def test_answers_are_sloppy_as_declared(rows):
    graded = [language.grade(row.response, row.prompt, truth) for truth, row in _of(rows, "answer")]
    assert np.mean([grade.core for grade in graded]) == pytest.approx(1 - annotator.ANSWER_PRIOR * 15 / 16, abs=0.06)
    extras = np.array([grade.statements - 1 for grade in graded])
    assert np.bincount(extras, minlength=5) / len(extras) == pytest.approx(annotator.EXTRAS, abs=0.06)
    false_extras = sum(grade.false - (not grade.core) for grade in graded)
    assert false_extras / extras.sum() == pytest.approx(annotator.ANSWER_EXTRA_FALSE, abs=0.05)


@pytest.mark.parametrize("kind", ["judge", "judge_plain"])
def test_verdicts_follow_the_preference_and_neither_letter_nor_length(rows, kind):
    letters, longer_is_better, equal, alike = [], [], 0, 0
    for truth, row in _of(rows, kind):
        question, a, b = _responses(row.prompt)
        grades = [language.grade(text, question, truth) for text in (a, b)]
        value_a, value_b = map(language.preference, grades)
        assert value_a != value_b
        alike += grades[0].core == grades[1].core
        assert row.response == ("A" if value_a > value_b else "B")
        letters.append(row.response == "A")
        gap = len(a.split()) - len(b.split())
        equal += gap == 0
        if gap:
            longer_is_better.append((gap > 0) == (row.response == "A"))
    assert np.mean(letters) == pytest.approx(0.5, abs=0.08)
    assert np.mean(longer_is_better) == pytest.approx(0.5, abs=0.1)
    assert equal / len(letters) == pytest.approx(annotator.LENGTHS["equal"], abs=0.08)
    assert alike / len(letters) == pytest.approx(annotator.JUDGE_CORES_ALIKE, abs=0.08)


def test_judged_answers_fail_in_every_way_that_a_policy_may_drift_to(rows):
    ways: Counter[str] = Counter()
    false, broken = 0, 0
    for truth, row in _of(rows, "judge"):
        question, *texts = _responses(row.prompt)
        for text in texts:
            first, *extras = language.parse(text)
            false += sum(extra is None or not language.holds(extra, truth) for extra in extras)
            broken += extras.count(None)
            if not language.grade(text, question, truth).core:
                true = first is not None and language.holds(first, truth)
                ways["broken" if first is None else "no answer" if true else "wrong attribute"] += 1
    shares = {way: count / ways.total() for way, count in ways.items()}
    assert shares == pytest.approx(annotator.JUDGE_FALSE_CORES, abs=0.05)
    assert broken / false == pytest.approx(annotator.JUDGE_EXTRA_BROKEN, abs=0.03)


def test_a_broken_sentence_has_one_label():
    assert annotator.step_labels("The red circle moves small.", 7, TRUTH) == ((7 + 27, "no"),)


def test_step_labels_of_judge_rows_stand_behind_words_of_the_responses(rows):
    for truth, row in _of(rows, "judge")[:200]:
        _, a, b = _responses(row.prompt)
        full_stops = [label for offset, label in row.step_labels if row.prompt[offset - 1] == "."]
        statements = language.parse(a) + language.parse(b)
        true = [statement is not None and language.holds(statement, truth) for statement in statements]
        assert full_stops == ["yes" if one else "no" for one in true]
        for offset, _ in row.step_labels:
            assert row.prompt[offset] in " .\n" and row.prompt[offset - 1] != " "


def test_corruption_changes_one_attribute_and_never_the_colour():
    rng = np.random.default_rng(0)
    statement = Statement(size="small", colour="red", shape="circle", direction="left")
    for _ in range(50):
        other = annotator.corrupt(statement, rng)
        assert other.colour == "red"
        assert sum(getattr(other, name) != getattr(statement, name) for name in language.ATTRIBUTES) == 1
