import io
import json

import pytest
import synthetic
from rich.console import Console

from isrdpo_jax.errors import DataError
from isrdpo_jax.evaluation.agree import OWN, agree, agreement_table, read_labels
from isrdpo_jax.runs.layout import RunLayout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = synthetic.write_run(tmp_path_factory.mktemp("runs"), "run", iterations=1)
    synthetic.write_rejudged(made, 1, {"video": "blank"}, turned=2)
    return made


def own_verdicts(run):
    parts = sorted((run / "iter_01/judgements").iterdir())
    return {row["id"]: row for part in parts for row in map(json.loads, part.open())}


def write_labels(path, rows, head="id,label"):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_every_judge_is_compared_with_every_rater(run, tmp_path):
    names = {0: "1", 1: "2"}
    verdicts = {id: row["verdict"] for id, row in own_verdicts(run).items() if row["verdict"] is not None}
    rows = [(id, names[verdict], "ann") for id, verdict in verdicts.items()]
    rows += [(id, names[1 - verdict], "bob") for id, verdict in verdicts.items()]
    file = write_labels(tmp_path / "labels.csv", [*rows, ("nobody", "tie", "bob")], head="id,label,rater")
    found = agree(run, 1, file)
    ann, bob = found["raters"]["ann"], found["raters"]["bob"]
    assert ann["judges"][OWN]["equal"]["value"] == 1 and ann["judges"]["video blank"]["equal"]["value"] == 6 / 8
    assert bob["judges"][OWN]["equal"]["value"] == 0 and bob["unknown_ids"] == {"count": 1, "examples": ["nobody"]}
    assert json.loads((RunLayout(run).iteration(1).agreement / "labels.json").read_text()) == json.loads(
        json.dumps(found)
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(agreement_table(found))
    assert "1 of 9 labels are of unknown ids, such as nobody." in console.export_text()


def test_labels_of_what_was_not_judged_are_counted(run, tmp_path):
    undecided = [id for id, row in own_verdicts(run).items() if row["verdict"] is None and row["reason"] != "tie"]
    file = write_labels(tmp_path / "labels.csv", [(id, "TIE") for id in undecided])
    figures = agree(run, 1, file)["raters"]["labels"]["judges"][OWN]
    assert figures["not_judged"] == len(undecided) == 3 and figures["equal"]["value"] is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,label\nq1,3\n", "line 2: the label '3' is none of 1, 2 and tie"),
        ("id,label\nq1,1\nq1,2\n", "line 3: 'q1' is labelled twice"),
        ("id,label\nq1\n", "line 2: the label None"),
        ("question,better\nq1,1\n", "must name the columns id and label, not question, better"),
        ("", "must name the columns"),
        ("id,label\n", "no labels"),
        ("id,label\n\xff", "not a CSV in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, told):
    file = tmp_path / "labels.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=told):
        read_labels(file)


def test_what_is_not_there(run, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no finished collect"):
        agree(run, 7, tmp_path / "none.csv")
