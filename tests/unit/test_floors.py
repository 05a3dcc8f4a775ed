"""The house: who may import whom, what device code may not touch, and that importing starts nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import isrdpo_jax

PACKAGE = Path(isrdpo_jax.__file__).parent
FLOORS = {
    **dict.fromkeys(["__init__", "errors", "schema", "yaml_tree", "config", "config_reference"], 0),
    **dict.fromkeys(["sharding", "ops"], 1),
    **dict.fromkeys(["models", "runs"], 2),
    **dict.fromkeys(["programs", "data", "weights"], 3),
    "stages": 4,
    **dict.fromkeys(["evaluation", "plan"], 5),
    **dict.fromkeys(["report", "session", "start_policy", "doctor", "pipeline"], 6),
    "sweep": 7,
    **dict.fromkeys(["cli", "cli_common", "cli_data", "__main__"], 8),
}
DEVICE_CODE = {"sharding", "ops", "models", "programs"}
HOST_ONLY = {"os", "io", "sys", "pathlib", "shutil", "tempfile", "subprocess", "logging", "random", "time", "threading"}
MESH_AXES = {"fsdp", "tensor"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below it, such as `runs.layout` or `runs.__init__`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Absolute names of all that a module imports, wherever in it; `from a import b` is `a.b`."""
    package = ["isrdpo_jax", *name.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def top_level(imported: str) -> str | None:
    """The package or module of ours that an import reaches; None for other people's."""
    first, *rest = imported.split(".")
    if first != "isrdpo_jax":
        return None
    return rest[0] if rest and rest[0] in FLOORS else "__init__"


def wrong_imports(name: str, tree: ast.Module) -> list[str]:
    """Imports neither of a lower floor nor of the module's own package; the loose modules of a floor count as one."""
    own = name.split(".")[0]

    def package_of(top: str) -> str:
        return top if (PACKAGE / top).is_dir() else "loose"

    targets = [(imported, top_level(imported)) for imported in imports(name, tree)]
    return [
        f"{name} (floor {FLOORS[own]}) imports {imported} (floor {FLOORS[top]})"
        for imported, top in targets
        if top is not None
        and FLOORS[top] >= FLOORS[own]
        and not (FLOORS[top] == FLOORS[own] and package_of(top) == package_of(own))
    ]


def docstrings(tree: ast.Module) -> set[ast.Constant]:
    """All string constants that only document: those that stand as a statement of their own."""
    statements = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return {value for value in statements if isinstance(value, ast.Constant)}


def axis_names(tree: ast.Module) -> list[str]:
    """Mesh axes that a module names in code, with their lines."""
    prose = docstrings(tree)
    return [
        f"{node.value!r} in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and node not in prose
        and isinstance(node.value, str)
        and node.value in MESH_AXES
    ]


def run_python(code: str) -> None:
    """Runs code in a fresh interpreter, with a TensorFlow in reach that fails when it is imported."""
    trap = """
        import sys, tempfile, pathlib
        folder = pathlib.Path(tempfile.mkdtemp()) / "tensorflow"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
        sys.path.insert(0, str(folder.parent))
    """
    program = textwrap.dedent(trap) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in modules()} - FLOORS.keys() == set()


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", modules())
def test_imports_go_down(name):
    assert wrong_imports(name, modules()[name]) == []


@pytest.mark.parametrize(
    ("name", "code", "allowed"),
    [
        ("ops.losses", "import jax\nfrom isrdpo_jax.errors import DataError", True),
        ("ops.losses", "from isrdpo_jax.ops import logprobs", True),
        ("ops.losses", "from . import logprobs", True),
        ("ops.losses", "from ..sharding import mesh", False),
        ("ops.losses", "def f():\n    from isrdpo_jax import models", False),
        ("ops.losses", "import isrdpo_jax.cli", False),
        ("config", "from isrdpo_jax.schema import Config", True),
        ("config", "from isrdpo_jax import sharding", False),
        ("__main__", "from isrdpo_jax.cli import main", True),
        ("data.loader", "from isrdpo_jax.programs import encode", False),
        ("pipeline", "from isrdpo_jax import __version__", True),
    ],
)
def test_the_floor_rule_itself(name, code, allowed):
    assert (wrong_imports(name, ast.parse(code)) == []) is allowed


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in DEVICE_CODE])
def test_device_code_touches_no_host(name):
    tree = modules()[name]
    assert {imported.split(".")[0] for imported in imports(name, tree)} & HOST_ONLY == set()
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert calls & {"open", "print", "input"} == set()


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in ("data", "runs")])
def test_data_and_runs_stay_on_the_host(name):
    if name not in ("runs.checkpoint", "runs.streamed", "runs.processes"):
        libraries = {imported.split(".")[0] for imported in imports(name, modules()[name])}
        assert libraries & {"jax", "jaxlib", "flax", "optax"} == set()


@pytest.mark.parametrize("name", modules())
def test_nobody_imports_tensorflow_or_a_test_library(name):
    libraries = {imported.split(".")[0] for imported in imports(name, modules()[name])}
    assert libraries & {"tensorflow", "pytest", "hypothesis"} == set()


@pytest.mark.parametrize("name", [name for name in modules() if name != "sharding"])
def test_only_sharding_names_mesh_axes(name):
    assert axis_names(modules()[name]) == []


def test_the_axis_rule_itself():
    assert axis_names(ast.parse('"""fsdp"""\nclass A:\n    """tensor"""\n    fsdp: int = 1\nx = "tensors"')) == []
    assert axis_names(ast.parse('x = P("fsdp")\ny = {"tensor": 1}')) == ["'fsdp' in line 1", "'tensor' in line 2"]


def test_the_ground_floor_imports_no_device_library():
    run_python("""
        import isrdpo_jax, isrdpo_jax.config, isrdpo_jax.errors, isrdpo_jax.schema, isrdpo_jax.yaml_tree
        heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "transformers", "numpy"} & set(sys.modules)
        assert not heavy, heavy
    """)


def test_importing_everything_starts_no_backend_and_no_tensorflow():
    run_python("""
        import importlib, pkgutil, isrdpo_jax
        for module in pkgutil.walk_packages(isrdpo_jax.__path__, "isrdpo_jax."):
            if module.name != "isrdpo_jax.__main__":
                importlib.import_module(module.name)
        from jax._src import xla_bridge
        assert not xla_bridge._backends, f"an import started {list(xla_bridge._backends)}"
        assert "tensorflow" not in sys.modules
    """)
