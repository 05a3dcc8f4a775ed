"""YAML as trees whose every value remembers where it was written; files that include others; overrides.

Scalars follow the core schema of YAML 1.2 (its section 10.3.2): `5e-7`, `.5` and `1E5` are numbers, only `true` and
`false` are booleans, and `yes`, `off` or a date are text. Problems are collected: a user sees all of them at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from isrdpo_jax.errors import ConfigError

INCLUDE = "include"
OVERRIDE = "override"

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


def _core_schema(cls):
    """Class decorator: resolves plain scalars by YAML 1.2 instead of PyYAML's YAML 1.1."""
    cls.yaml_implicit_resolvers = {}
    for name, pattern in _CORE_SCHEMA.items():
        cls.add_implicit_resolver(_TAG + name, re.compile(rf"(?:{pattern})\Z"), None)
    return cls


@_core_schema
class CoreLoader(yaml.SafeLoader):
    """Reads what `CoreDumper` writes, exactly."""


@_core_schema
class CoreDumper(yaml.SafeDumper):
    """Quotes just the text that `CoreLoader` would take for something else."""


@dataclass(frozen=True)
class Entry:
    """A value and its place: `configs/x.yaml:12`, or `override`.

    Attributes:
        value: a scalar, `list[Entry]` or `dict[str, Entry]`.
        origin: the place; that of its key, where it has one.
    """

    value: Any
    origin: str

    def children(self) -> list[tuple[str | int, Entry]]:
        """(key or index, entry) of each element of a mapping or list; none of a scalar."""
        match self.value:
            case dict():
                return list(self.value.items())
            case list():
                return list(enumerate(self.value))
        return []

    def walk(self, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Entry]]:
        """This entry and all below it, with their keys from here."""
        yield keys, self
        for key, child in self.children():
            yield from child.walk((*keys, key))


def show(value: Any) -> str:
    """A value as an error message names it."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}"
        case dict():
            return "a section"
        case list() | tuple():
            return "a list"
    return repr(value)


def read_tree(path: str, problems: list[str], including: tuple[str, ...] = ()) -> Entry:
    """Reads one file, merged over the files that its `include` key names.

    Args:
        path: the file; paths in `include` are relative to it.
        problems: gets a sentence for everything that cannot be used; the tree then lacks it.
        including: real paths of the files on the way here, to notice a circle.
    """
    nothing = Entry({}, path)
    here = os.path.realpath(path)
    if here in including:
        problems.append(f"{path} includes itself ({' -> '.join(map(os.path.basename, (*including, here)))})")
        return nothing
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}); name an existing YAML file")
        return nothing
    except UnicodeDecodeError:
        problems.append(f"{path} is not UTF-8 text; name a YAML file")
        return nothing
    tree = _parse(text, path, problems)
    if tree.value is None:
        return nothing
    if not isinstance(tree.value, dict):
        problems.append(f"{tree.origin} holds {show(tree.value)} where sections such as `dpo:` belong")
        return nothing
    below = nothing
    for name in _included(tree.value.pop(INCLUDE, None), problems):
        other = os.path.normpath(os.path.join(os.path.dirname(path), name.value))
        if os.path.isfile(other):
            below = merge(below, read_tree(other, problems, (*including, here)))
        else:
            problems.append(f"{name.origin} includes {other}, which does not exist; the path is relative to {path}")
    return merge(below, tree)


def override(tree: Entry, text: str, problems: list[str]) -> Entry:
    """The tree with one `dotted.key=value` merged in; a number in the key is an index into a list.

    `include=FILE` (or a list) merges files in, relative to the working directory: `include=configs/mesh/v5e_4x4.yaml`.
    """
    dotted, equals, value = text.partition("=")
    if dotted.strip() == INCLUDE and equals:
        for name in _included(_parse(value, None, problems), problems):
            tree = merge(tree, read_tree(name.value, problems))
        return tree
    keys = dotted.strip().split(".")
    if equals and all(keys):
        return _replaced(tree, keys, _parse(value, None, problems), dotted, problems)
    problems.append(f"the override {text!r} is not of the form key=value, such as dpo.beta=0.2")
    return tree


def merge(below: Entry, above: Entry) -> Entry:
    """`above` refines `below`: mappings key by key, everything else replaced."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    both = {key: merge(below.value[key], above.value[key]) for key in below.value.keys() & above.value.keys()}
    return Entry(below.value | above.value | both, above.origin)


def _replaced(tree: Entry, keys: Sequence[str], value: Entry, dotted: str, problems: list[str]) -> Entry:
    if not keys:
        return merge(tree, value)
    key, rest = keys[0], keys[1:]
    if isinstance(tree.value, list):
        if not (key.isascii() and key.isdigit() and int(key) < len(tree.value)):
            length = len(tree.value)
            problems.append(f"the override {dotted} asks for element {key} of a list of {length} ({tree.origin})")
            return tree
        index = int(key)
        changed = _replaced(tree.value[index], rest, value, dotted, problems)
        return Entry([*tree.value[:index], changed, *tree.value[index + 1 :]], tree.origin)
    if not isinstance(tree.value, dict):
        tree = Entry({}, OVERRIDE)
    below = tree.value.get(key, Entry(None, OVERRIDE))
    return Entry(tree.value | {key: _replaced(below, rest, value, dotted, problems)}, tree.origin)


def _included(entry: Entry | None, problems: list[str]) -> list[Entry]:
    """The file names of an `include` key: one or a list."""
    if entry is None:
        return []
    names = entry.value if isinstance(entry.value, list) else [entry]
    wrong = [name for name in names if not isinstance(name.value, str)]
    problems += [f"{INCLUDE} ({name.origin}) must name a YAML file, got {show(name.value)}" for name in wrong]
    return [name for name in names if isinstance(name.value, str)]


def _parse(text: str, path: str | None, problems: list[str]) -> Entry:
    """Parses a file, or an override where `path` is None; what cannot be read is a null."""

    def place(mark: yaml.Mark) -> str:
        return f"{path}:{mark.line + 1}" if path else OVERRIDE

    def convert(node: yaml.Node, origin: str, above: tuple[yaml.Node, ...] = ()) -> Entry:
        if any(node is other for other in above):
            problems.append(f"{origin} contains itself through an alias")
            return Entry(None, origin)
        if isinstance(node, yaml.SequenceNode):
            return Entry([convert(item, place(item.start_mark), (*above, node)) for item in node.value], origin)
        if isinstance(node, yaml.MappingNode):
            section: dict[str, Entry] = {}
            for key, value in node.value:
                here = place(key.start_mark)
                if not isinstance(key, yaml.ScalarNode):
                    problems.append(f"{here} has a key that is not a word")
                elif key.value in section:
                    problems.append(f"{key.value} ({here}) was given before, at {section[key.value].origin}")
                else:
                    section[key.value] = convert(value, here, (*above, node))
            return Entry(section, origin)
        try:
            return Entry(_scalar(node), origin)
        except (ValueError, KeyError) as error:
            problems.append(f"{origin} has a value that cannot be read: {node.value[:40]!r} ({error})")
            return Entry(None, origin)

    start = path or OVERRIDE
    try:
        node = yaml.compose(text, Loader=CoreLoader)
    except yaml.MarkedYAMLError as error:
        where = place(error.problem_mark) if error.problem_mark else start
        problems.append(f"{where} is not YAML: {', '.join(filter(None, (error.context, error.problem)))}")
    except yaml.YAMLError as error:  # a character that YAML does not allow
        problems.append(f"{start} is not YAML: {' '.join(str(error).split())}")
    else:
        return convert(node, place(node.start_mark)) if node else Entry(None, start)
    return Entry(None, start)


def _scalar(node: yaml.Node) -> Any:
    """The value of a scalar; ValueError or KeyError where its text does not fit its tag."""
    text = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return {"true": True, "false": False}[text.lower()]
        case "int":
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        case "float":
            return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
    raise ValueError(f"the tag {node.tag} is not allowed")


def read_plain(path: str) -> Any:
    """One file, and those that it includes, as bare values.

    Raises:
        ConfigError: it cannot be read; lists every problem.
    """
    problems: list[str] = []
    tree = read_tree(path, problems)
    if problems:
        raise ConfigError("; ".join(problems))
    return _bare(tree)


def _bare(entry: Entry) -> Any:
    if isinstance(entry.value, dict):
        return {key: _bare(child) for key, child in entry.value.items()}
    return [_bare(child) for child in entry.value] if isinstance(entry.value, list) else entry.value
