"""The judge's accuracy counts verdicts on pairs that truly differ, joined by id."""

from isrdpo_jax.evaluation.judging import descriptions_right, judged_correctly

TRUTH = {
    "objects": [
        {"colour": "blue", "shape": "square", "direction": "up", "size": "large"},
        {"colour": "red", "shape": "circle", "direction": "left", "size": "small"},
    ],
    "background": "dark",
}
RIGHT, WRONG = "The red circle moves left.", "The red cross moves left."


def response(question_id: str, first: str, second: str) -> dict:
    texts = [{"text": first, "tokens": [], "finish": "stop"}, {"text": second, "tokens": [], "finish": "stop"}]
    return {"id": question_id, "video": "v", "question": "What does the red object do?", "responses": texts}


def test_a_verdict_is_correct_when_it_names_the_truly_better_response():
    responses = [response("a", RIGHT, WRONG), response("b", WRONG, RIGHT), response("c", RIGHT, WRONG)]
    judgements = [{"id": "c", "verdict": 1}, {"id": "b", "verdict": 1}, {"id": "a", "verdict": 0}]
    rows = judged_correctly(responses, judgements, {"v": TRUTH})
    assert [row["correct"] for row in rows] == [True, True, False]


def test_true_ties_and_missing_verdicts_do_not_count():
    responses = [response("a", RIGHT, RIGHT), response("b", WRONG, RIGHT)]
    judgements = [{"id": "a", "verdict": 0}, {"id": "b", "verdict": None}]
    assert judged_correctly(responses, judgements, {"v": TRUTH}) == []


def test_pairs_of_equal_length_are_marked():
    longer = RIGHT + " The red object is large."
    rows = judged_correctly(
        [response("a", RIGHT, WRONG), response("b", RIGHT, longer)],
        [{"id": "a", "verdict": 0}, {"id": "b", "verdict": 0}],
        {"v": TRUTH},
    )
    assert [(row["same_length"], row["correct"]) for row in rows] == [(True, True), (False, True)]


def test_data_without_truth_gives_no_rows():
    assert judged_correctly([response("a", RIGHT, WRONG)], [{"id": "a", "verdict": 0}], {"v": None}) == []
    assert descriptions_right([{"video": "v", "text": RIGHT}], {"v": None}) == []


def test_descriptions_are_graded_by_their_statements():
    text = "The blue square moves up. The blue object is large. The red cross moves left. The background is dark."
    (row,) = descriptions_right([{"video": "v", "text": text}], {"v": TRUTH})
    assert (row["right"], row["total"]) == (5, 7)
