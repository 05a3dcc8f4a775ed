"""A run on a user's own videos, good and bad."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_run import Lab

from isrdpo_jax import pipeline
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.runs.atomic import read_json
from isrdpo_jax.runs.layout import STAGES, RunLayout

GOOD = {"one.mp4": 6, "two.mp4": 9, "still.mp4": 1}  # frames


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def truncated(path: Path) -> None:
    write_video(path, noise(30), 8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_VIDEOS = {
    "gone.mp4": (lambda path: None, "missing"),
    "nothing.mp4": (Path.touch, "empty"),
    "text.mp4": (lambda path: path.write_text("This is not a video.\n" * 500), "not_a_video"),
    "torn.mp4": (truncated, "not_a_video"),  # what describes the frames stood at the end
    "audio.mp4": (audio_only, "no_video_stream"),
    "noframes.mp4": (no_frames, "zero_frames"),
}
BAD_ROWS = [
    ('{"video": "one.mp4"}', "missing_field"),
    ('{"video": "one.mp4", "question": "Who?", "id": "one.mp4#1"}', "duplicate_id"),
    ('{"video": "one.mp4", "question": "  "}', "empty_question"),
    ('{"video": "one.mp4", "question": "Look at <video>."}', "video_marker"),
    ('{"video": "one.mp4", "question": "Who?", "answer": "The <video> shows me."}', "video_marker"),
    ('{"video": "one.mp4", "question": 7}', "wrong_type"),
    ("not json", "bad_json"),
]


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in GOOD.items():
        write_video(folder / name, noise(frames), 8)
    for name, (make, _) in BAD_VIDEOS.items():
        make(folder / name)
    good = [ask(name, question) for name in GOOD for question in ("What moves?", "What is behind it?")]
    write(folder / "mixed.jsonl", [*good, *(row for row, _ in BAD_ROWS), *map(ask, BAD_VIDEOS)])
    write(folder / "good.jsonl", good)
    return folder


def ask(video: str, question: str = "What moves?") -> str:
    return json.dumps({"video": video, "question": question})


def write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def settings(lab: Lab, videos: Path, rows: str, *more: str) -> list[str]:
    own = ["data.dataset=video_qa", f"data.path={videos / rows}", "run.iterations=1"]
    return [*own, *more]


@pytest.fixture(scope="module")
def skipping(lab: Lab, videos: Path) -> RunLayout:
    from tiny_run import on_one_device

    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        return lab.run("videos", *settings(lab, videos, "mixed.jsonl", "data.max_bad_fraction=0.7")).layout


def test_bad_rows_and_videos_are_counted_by_reason(skipping: RunLayout, isrdpo):
    expected = Counter(reason for _, reason in [*BAD_ROWS, *BAD_VIDEOS.values()])
    status = json.loads(isrdpo("status", skipping.root, "--json").out)
    assert status["skipped"] == expected and status["videos"] == len(GOOD)
    table = " ".join(isrdpo("status", skipping.root).out.split())
    assert [reason for reason, count in expected.items() if f"{reason} {count}" not in table] == [], table


def test_the_good_ones_are_trained_on(skipping: RunLayout):
    one = skipping.iteration(1)
    asked = [json.loads(line) for path in one.parts("responses") for line in path.read_text().splitlines()]
    assert Counter(row["video"] for row in asked) == dict.fromkeys(GOOD, 2)
    assert read_json(one.manifest("optimize"))["counts"]["updates"] == 1


def test_without_held_out_questions_there_is_no_evaluation(skipping: RunLayout, isrdpo):
    assert not [path for path in skipping.root.rglob("*evaluat*")]
    status = json.loads(isrdpo("status", skipping.root, "--json").out)
    assert (status["state"], status["next_stage"]) == ("finished", None)
    assert [row["done"] for row in status["rows"]] == [[], list(STAGES[:-1])]
    assert isrdpo("report", skipping.root).code == 0
    assert "finished: 1 iterations" in skipping.report.read_text(encoding="utf-8")


def test_with_held_out_questions_every_policy_answers_them(lab: Lab, videos: Path, one_device):
    heldout = f"data.eval_path={videos / 'good.jsonl'}"
    run = lab.run("heldout", *settings(lab, videos, "good.jsonl", heldout)).layout
    for one in run.iterations():
        summary = read_json(one.evaluation / "summary.json")
        assert summary["words"]["count"] == 6 and "accuracy" not in summary


def test_too_many_bad_ones_stop_before_anything_is_computed(lab: Lab, videos: Path, isrdpo, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "open_policy", lambda *_, **__: pytest.fail("a policy was opened"))
        stopped = isrdpo("run", lab.config, "run.name=strict", *settings(lab, videos, "mixed.jsonl"))
    assert stopped.code == 2
    assert (
        "13 of 19 rows cannot be used" in stopped.err and "data.max_bad_fraction allows a share of 0.05" in stopped.err
    )
    assert f"{videos / 'mixed.jsonl'}" in stopped.err and "line 7: the field question is missing" in stopped.err


def test_what_the_refusal_advises_cures_it(lab: Lab, videos: Path, one_device):
    """The same name, with the bad ones allowed."""
    run = lab.run("strict", *settings(lab, videos, "mixed.jsonl", "data.max_bad_fraction=0.7"), until="collect").layout
    assert run.iteration(1).manifest("collect").exists()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (BAD_ROWS[2][0], "line 2: the question is empty [empty_question]"),
        (ask("text.mp4"), "text.mp4: "),
    ],
    ids=["row", "video"],
)
def test_bad_ones_may_be_refused_with_file_and_line(lab: Lab, videos: Path, isrdpo, bad: str, words: str):
    write(videos / "refused.jsonl", [ask("one.mp4"), bad, ask("two.mp4")])
    overrides = settings(lab, videos, "refused.jsonl", "data.on_bad_record=fail")
    refused = isrdpo("run", lab.config, "run.name=refused", *overrides)
    assert refused.code == 2 and f"{videos / 'refused.jsonl'}, line 2: " in refused.err and words in refused.err
