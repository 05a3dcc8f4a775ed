"""Running a sweep: its points one after the other, or on several machines that see one folder.

Who has a point's lock runs it; the others pass it over. A point that fails is marked and does not stop the others. The
same command again does what is missing. What is the same in several points is made once (`runs.shared_stages`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from rich.console import Console

from isrdpo_jax.config import load_config, semantic_hash
from isrdpo_jax.errors import IsrdpoError, RunLockedError, StoppedError
from isrdpo_jax.pipeline import run
from isrdpo_jax.report.status import read_status
from isrdpo_jax.runs.atomic import write_json
from isrdpo_jax.runs.shared_stages import SharedStages
from isrdpo_jax.sweep.points import Point, Sweep
from isrdpo_jax.sweep.results import Row, failure_path, read_rows, write_results


def run_sweep(sweep: Sweep, console: Console, after_point: Callable[[], object] = lambda: None) -> list[Row]:
    """Brings every point to its end that nobody else is running.

    Args:
        after_point: called when the table has been brought up to date behind a point.

    Returns:
        One row per point, as `results.read_rows` gives them; they are written after every point.

    Raises:
        StoppedError: on request; what is on disk stays usable.
    """
    for number, point in enumerate(sweep.points, 1):
        console.rule(f"{sweep.name}: {point.name}, {number} of {len(sweep.points)}")
        try:
            _run(sweep, point, console)
        finally:
            write_results(sweep)
        after_point()
    write_results(sweep)
    return read_rows(sweep)


def is_finished(point: Point) -> bool:
    """Whether the point's run is at its end, with this configuration."""
    if not point.layout.config.exists():
        return False
    began = load_config(point.layout.config).config
    same = semantic_hash(began) == semantic_hash(point.config) and began.run.iterations == point.config.run.iterations
    return same and read_status(point.layout.root)["state"] == "finished"


def _run(sweep: Sweep, point: Point, console: Console) -> None:
    siblings = [other.layout for other in sweep.points if other is not point]
    try:
        if is_finished(point):
            console.print(f"{point.layout.root} is done.", highlight=False, soft_wrap=True)
            return
        failure_path(point).unlink(missing_ok=True)
        run(point.config, console=console, shared=SharedStages(sweep.root / "claims", siblings))
    except StoppedError:
        raise
    except RunLockedError as error:
        console.print(f"{error} The next point, then.", highlight=False, soft_wrap=True, markup=False)
    except Exception as error:  # whatever stops this point, such as a device that is out of memory, spares the others
        said = str(error) if isinstance(error, IsrdpoError) else f"{type(error).__name__}: {error}"
        console.print(f"{point.name}: {said}", style="red", highlight=False, soft_wrap=True, markup=False)
        write_json(failure_path(point), {"error": said, "traceback": traceback.format_exc()})
