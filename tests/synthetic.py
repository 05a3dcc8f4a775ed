"""Run folders in the format of a real run, small and reproducible, for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isrdpo_jax.report.videos import Videos
from isrdpo_jax.stages.tally import Tally

QUESTIONS = 12
STAGES = ("collect", "pairs", "reference", "optimize", "evaluate")


def write_run(
    root: Path,
    name: str,
    *,
    context: str = "retrospective",
    iterations: int = 3,
    seed: int = 0,
    evaluation: bool = True,
    questions: int = QUESTIONS,
) -> Path:
    """Writes a finished run and returns its folder."""
    run = root / name
    config = {
        "run": {"name": name, "seed": seed, "iterations": iterations},
        "start": "shapes",
        "judge": {"mode": "letters", "context": context, "video": "true", "inconsistent": "average"},
        "dpo": {"beta": 0.1, "loss": "sigmoid", "learning_rate": 2e-4, "reference": "previous"},
        "evaluation": {"enabled": evaluation},
    }
    _write(run / "config.yaml", yaml.safe_dump(config))
    if evaluation:
        _write_json(run / "iter_00/evaluation/summary.json", summary(0, seed, pairs=False))
        _write_rows(run / "iter_00/evaluation/answers.jsonl", answers(0, seed))
    previous: dict[str, str] = {}
    for t in range(1, iterations + 1):
        options = {"context": context, "seed": seed, "evaluation": evaluation, "questions": questions}
        previous = write_iteration(run, t, previous, **options)
    return run


def write_iteration(
    run: Path,
    t: int,
    previous: dict[str, str],
    *,
    context: str,
    seed: int,
    evaluation: bool = True,
    questions: int = QUESTIONS,
) -> dict[str, str]:
    """Writes iteration t with all its stages; returns its descriptions by video."""
    folder, rng = run / f"iter_{t:02d}", np.random.default_rng((seed, t))
    responses, judgements, descriptions, pairs = [], [], [], []
    for i in range(questions):
        id, video = f"q{i}", f"v{i // 2}"
        begin = f"The red circle moves left. <b>Also</b>, {id} of {t} in {run.name}"
        texts = [f"{begin}, answer {k}." + " More words." * ((i + k) % 3) for k in (0, 1)]
        reason = {3: "tie", 5: "identical", 7: "unfinished", 9: "inconsistent"}.get(i, "ok")
        odds = rng.normal(0.4, 1.2, 2).round(4).tolist() if reason not in ("identical", "unfinished") else []
        margin = float(np.mean(odds)) if odds else None
        verdict = int(margin < 0) if reason == "ok" else None
        finish = "length" if reason == "unfinished" else "stop"
        rows = [{"text": text, "tokens": [5, 6, 2], "finish": finish} for text in texts]
        question = f"What does the red object do & why, in video {video}?"
        responses.append({"id": id, "video": video, "question": question, "responses": rows})
        judgements.append(
            {
                "id": id, "video": video, "log_odds": odds, "margin": margin, "verdict": verdict, "reason": reason,
                "texts": [], "context": None,
            }
        )  # fmt: skip
        if verdict is not None:
            chosen, rejected = texts[verdict], texts[1 - verdict]
            pairs.append(
                {
                    "id": id, "video": video, "question": question, "chosen": chosen, "rejected": rejected,
                    "chosen_tokens": [5, 2], "rejected_tokens": [6, 2], "margin": abs(margin),
                }
            )  # fmt: skip
    turns = {f"v{i}": ("up", "down")[(i + t) % 2] for i in range(questions // 2)}
    new = {video: f"A red circle moves left . A blue square moves {turn} ." for video, turn in turns.items()}
    for video, text in new.items():
        row = {"video": video, "text": text, "tokens": [4, 2], "finish": "stop", "previous": previous.get(video)}
        descriptions.append(row)
    half = questions // 2
    for kind, found in (("responses", responses), ("judgements", judgements)):
        _write_rows(folder / kind / "part-00000-00000.jsonl", found[:half])
        _write_rows(folder / kind / "part-00000-00001.jsonl", found[half:])
    if context != "none":
        _write_rows(folder / "descriptions/part-00000-00000.jsonl", descriptions)
    _write_rows(folder / "pairs.jsonl", pairs)
    _write_rows(folder / "metrics.jsonl", [metrics(step, t) for step in range(1, 15)])
    # Two sessions of a collect that was stopped once.
    sessions = [Tally(steps=40, slot_steps=160, decoded=80, videos=5, prefills=6, seconds=t), Tally(50, 200, 190, 5, 5)]
    _write_rows(folder / "speed.jsonl", [{"stage": "collect", **one.figures()} for one in sessions])
    if evaluation:
        _write_json(folder / "evaluation/summary.json", summary(t, seed, pairs=True))
        _write_rows(folder / "evaluation/answers.jsonl", answers(t, seed))
    for stage in STAGES:
        _write_json(folder / f"{stage}.manifest.json", {"stage": stage})
    return new if context != "none" else {}


def metrics(step: int, t: int) -> dict[str, float]:
    """One row of metrics.jsonl: the margin grows while both log-probs fall."""
    chosen, rejected = -0.02 * (step - 1), -0.07 * (step - 1)
    return {
        "step": step,
        "loss": float(np.log1p(np.exp(-(chosen - rejected)))),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": min(1.0, 0.5 + 0.03 * step),
        "logps/chosen": -14.0 + t + chosen * 10,
        "logps/rejected": -15.0 + t + rejected * 10,
        "grad_norm": 1.0,
        "learning_rate": 2e-4,
        "pairs": 32,
    }


def summary(t: int, seed: int, *, pairs: bool) -> dict[str, dict[str, float | int]]:
    """evaluation/summary.json of iteration t; what needs pairs is absent at the start."""
    values = {
        "accuracy": (0.3541 + 0.0913 * t - 0.02 * seed, 256),
        "false_share": (0.4471 - 0.08 * t, 611),
        "false_per_answer": (1.07 - 0.2 * t, 256),
        "words": (12.13 + seed * t, 256),
        "description_accuracy": (0.8123 + 0.011 * t, 1024),
    }
    if pairs:
        values |= {
            "judge_accuracy": (0.7103 + 0.01 * t, 431),
            "chosen_words": (12.5, 431),
            "rejected_words": (11.1, 431),
            "length_ratio": (1.126 - 0.05 * t + 0.1 * seed, 4784),
        }
    width = {"words": 0.6, "chosen_words": 0.5, "rejected_words": 0.5, "false_per_answer": 0.1}
    return {
        key: {"value": value, "count": n, "low": value - width.get(key, 0.03), "high": value + width.get(key, 0.03)}
        for key, (value, n) in values.items()
    }


def answers(t: int, seed: int) -> list[dict[str, Any]]:
    """evaluation/answers.jsonl of iteration t: a run of seed s says 2 s t words more."""
    return [
        {"id": f"webvid/{i}", "video": f"held-{i // 2}", "text": " ".join(["word"] * (10 + i + 2 * seed * t))}
        for i in range(6)
    ]


def write_rejudged(run: Path, t: int, changed: dict[str, str], turned: int) -> None:
    """What `isrdpo judge` keeps: the verdicts of iteration t, the first `turned` of them the other way round."""
    found = [
        json.loads(line) for part in sorted((run / f"iter_{t:02d}/judgements").iterdir()) for line in part.open()
    ]
    decided = [row for row in found if row["verdict"] is not None]
    for row in decided[:turned]:
        row["verdict"] = 1 - row["verdict"]
    name = "_".join(f"{key}-{value}" for key, value in changed.items())
    _write_rows(run / f"iter_{t:02d}/rejudged/{name}.jsonl", found)
    _write_json(run / f"iter_{t:02d}/rejudged/{name}.json", {"changed": changed})


def videos(run: Path) -> Videos:
    """What is known of a run's videos: all look alike, the truth is not known."""
    return Videos(frames)


def frames(video: str) -> np.ndarray:
    """uint8 [8, 32, 32, 3]: a red disc that moves to the left over noise, as the shapes world draws it."""
    rng = np.random.default_rng(int(video[1:]))
    film = rng.normal(110, 12, (8, 32, 32, 3))
    y, x = np.mgrid[:32, :32]
    for t, frame in enumerate(film):
        frame[(x - (28 - 3 * t)) ** 2 + (y - 12) ** 2 < 16] = (210, 40, 40)
        frame[(abs(x - 20) < 4) & (abs(y - 4 - 3 * t) < 4)] = (50, 80, 210)
    return film.clip(0, 255).astype(np.uint8)


def _write_rows(path: Path, rows: list[dict]) -> None:
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_json(path: Path, value: dict) -> None:
    _write(path, json.dumps(value))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
