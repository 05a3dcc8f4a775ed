import pytest
import synthetic
from page import Page, read_data

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
def report(whole_runs, tmp_path_factory):
    """Their report."""
    return build_report(whole_runs, tmp_path_factory.mktemp("report"), synthetic.videos)


@pytest.fixture(scope="session")
def page(report):
    return Page(report.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def data(report):
    """The data beside it."""
    return read_data(report)
