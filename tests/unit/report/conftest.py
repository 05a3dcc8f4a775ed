import pytest
import synthetic
from page import Page

from isrdpo_jax.report.build import build_report


def write_runs(root):
    """Two finished runs of three iterations: ISR-DPO and the self-rewarding baseline."""
    return [synthetic.write_run(root, "isr"), synthetic.write_run(root, "self", context="none", seed=1)]


@pytest.fixture
def runs(tmp_path):
    """Runs that a test may change."""
    return write_runs(tmp_path / "runs")


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory):
    """Runs to read only."""
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def page(whole_runs, tmp_path_factory):
    """Their report, with every question as an example."""
    path = build_report(
        whole_runs, tmp_path_factory.mktemp("report"), synthetic.frames, max_examples=synthetic.QUESTIONS
    )
    return Page(path.read_text(encoding="utf-8"))
