"""What the documents promise is there: messages, commands, settings, links."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import isrdpo_jax
from isrdpo_jax.cli import app
from isrdpo_jax.config import load_config

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "docs" / "embedded_world.ipynb"
CONCEPTS, TROUBLE = ROOT / "docs" / "concepts.md", ROOT / "docs" / "troubleshooting.md"


def messages() -> str:
    """All texts of the package's code."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in Path(isrdpo_jax.__file__).parent.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def first_cells(page: Path, *sections: str) -> list[str]:
    """The first column of the tables of some sections."""
    parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    text = "".join(body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name in sections)
    return [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| `")]


def commands(page: Path) -> list[list[str]]:
    """Every `isrdpo …` in code, as words, without its comment."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`(isrdpo [^`]+)`", text)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("isrdpo ")]
    return [shlex.split(line, comments=True) for line in inline + lines]


def test_every_error_message_is_one_of_ours():
    known = messages()
    quoted = [part for cell in first_cells(TROUBLE, "Starting", "Running") for part in re.findall(r"`([^`]+)`", cell)]
    pieces = [piece.strip() for quote in quoted for piece in quote.split("…")]
    assert len(pieces) > 20 and [piece for piece in pieces if piece not in known] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_command_exists(page):
    names = set(get_command(app).commands)
    assert {words[1] for words in commands(page)} - names - {"CONFIG", "--help", "…"} == set()


def test_every_experiment_of_the_paper_has_a_config_that_loads():
    runs = [words[2:] for words in commands(CONCEPTS) if words[1] == "run"]
    assert len(runs) >= 6
    for config, *overrides in runs:
        load_config(ROOT / config, overrides)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_notebook_is_one_and_its_commands_are_ours():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    lines = [line for source in sources for line in source.splitlines()]
    shell = [shlex.split(line.split(" 2>")[0]) for line in lines if line.startswith("!")]
    (size,) = (value for line in lines for value in re.findall(r'^size = "(.*)" if SMALL', line))
    assert {words[0] for words in shell} == {"!{isrdpo}"} and len(shell) >= 4
    assert {words[1] for words in shell} <= set(get_command(app).commands)
    for words in shell:
        if words[1] == "run":
            _, _, config, *overrides = words
            load_config(ROOT / config, [*(word for word in overrides if word != "{size}"), *size.split()])
    for source in sources:
        compile(re.sub(r"^!.*$", "pass", source, flags=re.M), NOTEBOOK.name, "exec")


def test_the_notebook_was_run_and_nothing_failed():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) >= 6 and not [output for output in outputs if output["output_type"] == "error"]
    assert "Traceback" not in json.dumps(outputs)
