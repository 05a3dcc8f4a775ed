"""Long lists of tensor names, told shortly and completely."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


def collapse(names: Iterable[str]) -> list[str]:
    """Names that differ in the layer alone become one: `layers.{0-2,5}.norm1.weight`. Sorted."""
    layers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        match = _LAYER.search(name)
        layers[_LAYER.sub("#", name, count=1)] |= {int(match[0])} if match else set()
    return sorted(
        name.replace("#", _ranges(sorted(numbers)), 1) if numbers else name for name, numbers in layers.items()
    )


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return told[0] if told == [f"{numbers[0]}"] else f"{{{','.join(told)}}}"
