"""From judged responses to preference pairs, with a reason for everything that gives none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from isrdpo_jax.errors import DataError

Row = dict[str, Any]


def build_pairs(responses: Sequence[Row], judgements: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """Joins responses and verdicts by question id.

    Returns:
        The pairs, in the order of the responses, and counts: `kept`, and each reason that gave none.

    Raises:
        DataError: a response was not judged, or not a single pair is left.
    """
    verdicts = {row["id"]: row for row in judgements}
    pairs: list[Row] = []
    reasons: Counter[str] = Counter()
    for row in responses:
        if row["id"] not in verdicts:
            raise DataError(
                f"question {row['id']}: it was answered but not judged; delete this iteration's parts and run again."
            )
        judged = verdicts[row["id"]]
        if judged["reason"] != "ok":
            reasons[judged["reason"]] += 1
            continue
        chosen, rejected = row["responses"][judged["verdict"]], row["responses"][1 - judged["verdict"]]
        pairs.append(
            {
                "id": row["id"],
                "video": row["video"],
                "question": row["question"],
                "chosen": chosen["text"],
                "rejected": rejected["text"],
                "chosen_tokens": chosen["tokens"],
                "rejected_tokens": rejected["tokens"],
                "margin": abs(judged["margin"]),
            }
        )
    counts = {"kept": len(pairs), **dict(sorted(reasons.items()))}
    if not pairs:
        listed = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items())) or "no responses"
        raise DataError(
            f"0 of {len(responses)} questions gave a pair ({listed}). Look at them; raise sampling.temperature "
            "or sampling.max_new_tokens, or lower judge.tie_margin."
        )
    return pairs, counts
