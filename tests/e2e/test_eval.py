"""`isrdpo eval`: answers are made once, judged by rules, a server or a policy; nothing is lost or asked twice."""

from __future__ import annotations

import functools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from chat_server import Answer, ChatServer, completion, refusal
from tiny_run import MODEL, SETTINGS, Lab, letter_policy

from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.evaluation import evaluate
from isrdpo_jax.runs.atomic import read_json, read_jsonl
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.weights.policy_folder import packaged_tokenizer, write_policy

KEY = "sk-not+to/be-seen-4711"
VIDEOS, EACH = 4, 30  # questions about each video
OWN_PROMPT = "{caption} {question} {answer} {prediction}"


@pytest.fixture(autouse=True)
def one_device_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def clips(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with videos of noise, whose questions have reference answers and captions; answers.jsonl beside it."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(VIDEOS):
        frames = np.random.default_rng(i).integers(0, 256, (6, 16, 16, 3), np.uint8)
        write_video(folder / f"{i}.mp4", frames, 8)
        rows += [
            {
                "video": f"{i}.mp4",
                "id": f"{i}_{j}",
                "question": f"What is number {i}_{j}?",
                "answer": "A cat.",
                "caption": f"Clip {i}_{j}: a cat.",
            }
            for j in range(EACH)
        ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"id": row["id"], "text": f"It is {row['id']}."} for row in rows]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(answers)))
    (folder / "prompt.txt").write_text(OWN_PROMPT)
    settings = SETTINGS | {
        "start": str(lab.policy),
        "data": {"dataset": "video_qa", "eval_path": str(folder / "test.jsonl"), "dir": str(folder / "data")},
        "evaluation": SETTINGS["evaluation"],
    }
    (folder / "eval.yaml").write_text(yaml.safe_dump(settings))
    return folder / "eval.yaml"


def endpoint(server: ChatServer, **settings: Any) -> list[str]:
    values = {"kind": "endpoint", "model": "judge", "base_url": server.url, "key_variable": "JUDGE_KEY", **settings}
    return [f"evaluation.judge.{name}={value}" for name, value in values.items()]


def asked_about(body: dict[str, Any]) -> tuple[int, int]:
    i, j = str(body["messages"][-1]["content"]).split("What is number ")[1].split("?")[0].split("_")
    return int(i), int(j)


def graded(body: dict[str, Any], times: int) -> Answer:
    """A judge who likes questions of even number, and stammers about number 7."""
    _, j = asked_about(body)
    return completion("Hm." if j == 7 else f"Explanation: so.\nScore: {4 if j % 2 == 0 else 2}", prompt_tokens=9)


def test_a_policy_is_judged_by_the_rules_of_the_embedded_world(lab: Lab, isrdpo: Callable, tmp_path: Path):
    arguments = ("eval", lab.policy, lab.config, "--out", tmp_path / "out", "--json")
    said = isrdpo(*arguments)
    assert said.code == 0, said.err
    (row,) = json.loads(said.out)["rows"]
    assert (row["total"], row["judged"], row["outcomes"]) == (24, 24, {"ok": 24})
    assert row["accuracy"]["count"] == 24 and row["accuracy_if_rest_right"] == row["accuracy"]["value"]
    answers = Path(row["answers"])
    written, when = answers.read_bytes(), answers.stat().st_mtime_ns
    again = isrdpo(*arguments)
    assert json.loads(again.out) == json.loads(said.out) and answers.stat().st_mtime_ns == when
    answers.write_bytes(written[: len(written) // 2])  # as a killed process leaves it
    assert json.loads(isrdpo(*arguments).out) == json.loads(said.out)
    rows = read_jsonl(answers)
    by_id = {row["id"]: row for row in rows}
    assert by_id == {row["id"]: row for row in map(json.loads, written.splitlines())} and len(rows) == len(by_id)


def test_a_run_stands_for_its_iterations_with_the_answers_that_it_kept(finished, lab, isrdpo, tmp_path):
    run = finished.layout
    said = isrdpo("eval", run.root, run.config, "--out", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert [row["subject"] for row in found["rows"]] == [f"{run.root}/iter_{t:02d}" for t in range(3)]
    for row, one in zip(found["rows"], run.iterations(), strict=True):
        assert read_jsonl(Path(row["answers"])) == read_jsonl(one.evaluation / "answers.jsonl")
        assert row["accuracy"] == read_json(one.evaluation / "summary.json")["accuracy"]
    assert [row["both"] for row in found["paired"]] == [24, 24]
    first, second = (found["rows"][i]["accuracy"]["value"] for i in (0, 2))
    assert found["paired"][1]["accuracy"]["value"] == pytest.approx(second - first)
    other = isrdpo("eval", run.root / "iter_02", run.config, "data.world_seed=5", "--out", tmp_path / "other", "--json")
    (row,) = json.loads(other.out)["rows"]
    assert row["total"] == 24 and read_jsonl(Path(row["answers"])) != read_jsonl(
        run.iteration(2).evaluation / "answers.jsonl"
    )


def test_a_server_judges_and_another_one_shows_the_drift(lab, isrdpo, clips, tmp_path):
    out = tmp_path / "out"
    with ChatServer(graded) as server:
        said = isrdpo("eval", lab.policy, clips, *endpoint(server), "--out", out, "--json")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        (row,) = found["rows"]
        total = VIDEOS * EACH
        assert row["outcomes"] == {"invalid: no score": VIDEOS, "ok": total - VIDEOS}
        assert (row["total"], row["judged"], row["accuracy"]["count"]) == (total, total - VIDEOS, total - VIDEOS)
        assert row["accuracy"]["value"] == pytest.approx(15 / 29)
        assert row["accuracy_if_rest_wrong"] == pytest.approx(15 / 30)
        assert row["accuracy_if_rest_right"] == pytest.approx(16 / 30)
        assert row["score"]["value"] == pytest.approx((15 * 4 + 14 * 2) / 29)
        assert (found["judge"]["prompt"], found["drift"]) == ("ours", [])
        assert found["calls"]["prompt_tokens"] == 0 and found["calls"]["without_usage"] == total
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        server.handler = lambda body, times: completion("Explanation: so.\nScore: 3")
        second = isrdpo("eval", lab.policy, clips, *endpoint(server, model="other"), "--out", out, "--json")
    (drift,) = json.loads(second.out)["drift"]
    assert drift["against"] == found["judge"]["name"] and drift["both"] == total - VIDEOS
    assert (drift["turned_right"], drift["turned_wrong"]) == (14 * VIDEOS, 0)
    assert drift["accuracy"]["value"] == pytest.approx(14 / 29) and drift["agreement"] == pytest.approx(15 / 29)
    shown = isrdpo("eval", lab.policy, clips, *endpoint(server, model="other"), "--out", out)  # all from the cache
    assert shown.code == 0 and "120 from the cache" in shown.out and "against the judge" in shown.out
    texts = [path.read_text() for path in out.rglob("*") if path.is_file()]
    assert len(texts) > 5
    assert not any(KEY in text for text in [*texts, said.out, said.err, second.out, second.err, shown.out, shown.err])


def test_a_killed_evaluation_resumes_without_asking_twice(lab, clips, tmp_path):
    """SIGKILL in the middle of the calls: what was kept is not asked again. SIGTERM: nothing is."""
    out, at_once = tmp_path / "out", 4

    def interrupted(number: signal.Signals, asked: int) -> tuple[int, int]:
        """Ends a call by a signal; returns its exit code, and how many replies are kept."""
        child = lab.start(*command, "--json")
        while len(server.bodies) < asked:
            assert child.poll() is None, child.communicate()
            time.sleep(0.002)
        child.send_signal(number)
        assert "Traceback" not in child.communicate()[1]
        return child.returncode, (out / "replies.jsonl").read_bytes().count(b"\n")

    with ChatServer(lambda body, times: Answer(graded(body, times).body, delay=0.03)) as server:
        command = ("eval", clips.parent / "answers.jsonl", clips, *endpoint(server, concurrency=at_once), "--out", out)
        code, kept = interrupted(signal.SIGKILL, 40)
        lost = len(server.bodies) - kept
        assert code == -signal.SIGKILL and kept > 0 and 0 <= lost <= at_once
        code, kept = interrupted(signal.SIGTERM, 80)
        assert (code, kept) == (75, len(server.bodies) - lost) and kept < VIDEOS * EACH
        found = lab.answer(*command)
        assert (found["calls"]["asked"], found["calls"]["from_cache"]) == (VIDEOS * EACH - kept, kept)
        assert len(server.asked) == VIDEOS * EACH and len(server.bodies) == VIDEOS * EACH + lost
    (row,) = found["rows"]
    assert row["outcomes"] == {"invalid: no score": VIDEOS, "ok": VIDEOS * EACH - VIDEOS}


def test_a_run_asks_its_judge_behind_each_iteration_and_outlives_it(lab, clips, tmp_path):
    rows = [row for row in read_jsonl(clips.parent / "test.jsonl") if int(row["id"].split("_")[1]) < 2]
    few = clips.parent / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"run.dir={tmp_path}", "run.name=judged", f"data.path={few}", f"data.eval_path={few}", "dpo.epochs=1"]

    with ChatServer(graded) as server:
        command = ("run", clips, *settings, "run.iterations=1", *endpoint(server))
        said = lab.isrdpo(*command).stderr
        assert said.count("accuracy 0.500, score 3.000, 8 of 8 answers judged") == 2  # π_1 and π_2
        found = read_json(tmp_path / "judged/judged/summary.json")
        assert [row["subject"].split("/")[-1] for row in found["rows"]] == ["iter_00", "iter_01"]
        assert [row["both"] for row in found["paired"]] == [8]
        asked = len(server.bodies)
        assert 8 <= asked <= 16  # answers that both gave are judged once
        lab.isrdpo(*command)
        assert len(server.bodies) == asked
    (tmp_path / "judged/judged/replies.jsonl").unlink()
    (tmp_path / "judged/judged/verdicts").rename(tmp_path / "verdicts")
    gone = lab.isrdpo(*command, "evaluation.judge.attempts=1")  # nobody listens there any more
    assert "0 of 8 answers judged" in gone.stderr
    refused = lab.isrdpo(*command, "evaluation.judge.base_url=nowhere", code=2)
    assert "nowhere" in refused.stderr


def test_answers_of_others_are_joined_by_id_and_failures_are_counted(isrdpo, clips, tmp_path):
    """LLaVA-Hound's prediction rows: in another order, with an error and without two answers."""
    rows = []
    for row in read_jsonl(clips.parent / "answers.jsonl")[2:]:
        failed = row["id"] == "0_4"
        prediction = {"status": "error" if failed else "success", "message": "boom" if failed else row["text"]}
        rows.append({"id": row["id"], "model_prediction": prediction})
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def handler(body, times):
        i, j = asked_about(body)
        asked = body["messages"][-1]["content"]
        assert f"It is {i}_{j}." in asked and f"Clip {i}_{j}:" in asked  # of the question, not of the video
        return refusal(400) if (i, j) == (1, 1) else completion("Score: 5")

    with ChatServer(handler) as server:
        said = isrdpo("eval", path, clips, *endpoint(server), "--out", tmp_path / "out", "--json")
        (row,) = json.loads(said.out)["rows"]
        assert row["outcomes"] == {"failed: refused with 400": 1, "missing: no answer": 3, "ok": 116}
        assert (row["accuracy"]["value"], row["accuracy_if_rest_wrong"]) == (1.0, pytest.approx(116 / 120))
        for wrong, message in (
            ([{"id": "0_0", "text": "x"}, {"id": "9_9", "text": "x"}], "does not know"),
            ([{"id": "0_0", "text": "x"}, {"id": "0_0", "text": "y"}], "stands twice"),
            ([{"id": "0_0"}], "these are no answers"),
        ):
            path.write_text("".join(json.dumps(row) + "\n" for row in wrong))
            said = isrdpo("eval", path, clips, *endpoint(server), "--out", tmp_path / "out", "--json")
            assert (said.code, said.out) == (2, "") and message in " ".join(said.err.split())


def test_two_subjects_are_compared_on_the_questions_that_both_answered(isrdpo, clips, tmp_path):
    rows = read_jsonl(clips.parent / "answers.jsonl")
    better = tmp_path / "better.jsonl"
    better.write_text("".join(json.dumps(row | {"text": row["text"] + " Surely."}) + "\n" for row in rows[:-20]))

    def handler(body, times):
        sure = "Surely." in body["messages"][-1]["content"]
        return completion(f"Score: {5 if sure or asked_about(body)[1] % 3 else 1}")

    with ChatServer(handler) as server:
        arguments = ("--against", clips.parent / "answers.jsonl", "--out", tmp_path / "out", "--json")
        found = json.loads(isrdpo("eval", better, clips, *endpoint(server), *arguments).out)
    assert [row["judged"] for row in found["rows"]] == [120, 100]
    (paired,) = found["paired"]
    turned = sum(int(row["id"].split("_")[1]) % 3 == 0 for row in rows[:-20])
    assert (paired["subject"], paired["both"], paired["turned_right"]) == (str(better), 100, turned)
    assert paired["accuracy"]["value"] == pytest.approx(turned / 100)
    assert paired["score"]["value"] == pytest.approx(4 * turned / 100)
    assert paired["accuracy"]["low"] > 0


def test_nothing_judged_is_no_accuracy(lab, isrdpo, tmp_path):
    """The embedded world has no captions: every answer is counted as not judged, and nothing is asked."""
    with ChatServer(graded) as server:
        said = isrdpo("eval", lab.policy, lab.config, *endpoint(server), "--out", tmp_path / "out", "--json")
    (row,) = json.loads(said.out)["rows"]
    assert (row["judged"], row["total"], row["outcomes"]) == (0, 24, {"missing: no caption": 24})
    assert row["accuracy"] == {"value": None, "count": 0, "low": None, "high": None}
    assert (row["accuracy_if_rest_wrong"], row["accuracy_if_rest_right"]) == (0.0, 1.0)
    assert server.bodies == []


@pytest.fixture(scope="module")
def grader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that answers everything with `Score=4`."""
    folder = tmp_path_factory.mktemp("grader") / "grader"
    tokenizer, params = load_tokenizer(packaged_tokenizer("shapes")), letter_policy()
    llama = params["llama"]
    words = llama["embedding"] / np.linalg.norm(llama["embedding"], axis=1, keepdims=True)
    chain = [tokenizer.encode_turn("?")[-1], *tokenizer.encode_response("Score=4")]
    llama["head"][:] = 0
    for now, following in zip(chain, chain[1:], strict=False):
        llama["head"][:, following] = 3 * words[now]
    write_policy(folder, MODEL, packaged_tokenizer("shapes"), params, {})
    return folder


def test_a_policy_of_ours_judges_by_the_same_rules(lab, isrdpo, clips, grader, tmp_path):
    out = tmp_path / "out"
    prompt = f"evaluation.judge.prompt={clips.parent / 'prompt.txt'}"
    judge = ["evaluation.judge.kind=policy", prompt, "evaluation.judge.max_new_tokens=16"]
    arguments = ("eval", clips.parent / "answers.jsonl", clips, *judge, "--out", out, "--json")
    said = isrdpo(*arguments, f"evaluation.judge.model={grader}")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    (row,) = found["rows"]
    assert (row["outcomes"], row["score"]["value"]) == ({"ok": 120}, 4.0)
    assert found["judge"]["prompt"] == "own"
    replies = (out / "replies.jsonl").read_bytes()
    (out / "replies.jsonl").write_bytes(replies[: len(replies) // 3])  # in the middle of a batch
    assert json.loads(isrdpo(*arguments, f"evaluation.judge.model={grader}").out) == found
    assert sorted((out / "replies.jsonl").read_bytes().splitlines()) == sorted(replies.splitlines())
    letters = json.loads(isrdpo(*arguments, f"evaluation.judge.model={lab.policy}").out)
    assert letters["rows"][0]["judged"] == 0 and letters["drift"][0]["both"] == 0
    long = isrdpo(*arguments[:-1], "--json", f"evaluation.judge.model={grader}", "evaluation.judge.prompt=null")
    assert json.loads(long.out)["rows"][0]["outcomes"] == {"missing: room in the judge's context window": 120}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.judge.kind=endpoint"], "needs the name of a model"),
        (["evaluation.judge.kind=exact"], "no exact truth"),
        (["evaluation.judge.kind=policy", "evaluation.judge.model=nobody"], "no policy there"),
        (["evaluation.judge.kind=endpoint", "evaluation.judge.model=m", "evaluation.judge.base_url=here"], "base_url"),
        (["evaluation.judge.kind=endpoint", "evaluation.judge.model=m", "evaluation.judge.prompt=no.txt"], "no.txt"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is(isrdpo, clips, tmp_path, overrides, message):
    said = isrdpo("eval", clips.parent / "answers.jsonl", clips, *overrides, "--out", tmp_path / "out", "--json")
    assert (said.code, said.out) == (2, "") and message in " ".join(said.err.split())
    assert "Traceback" not in said.err and not (tmp_path / "out" / "answers").exists()
