"""From YAML files and `key=value` overrides to a checked `Config`, each of whose values knows where it came from.

A file may refine others: `include: base.yaml` (or a list; later ones win) is read first, relative to the file that
names it, and merged section by section; a list replaces a list. Every *other* relative path in a YAML file
(`data.path`, `run.dir`, ...) stays as written and is relative to the working directory, not to the file.

Whatever cannot be used is refused before a device is touched, with all problems of one load in one `ConfigError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.schema import Config
from isrdpo_jax.yaml_tree import INCLUDE, CoreDumper, Entry, override, read_tree, show

DEFAULT = "default"

# Keys that do not change results: where and on what a run happens, what it saves, and how far it goes.
WITHOUT_EFFECT = frozenset(
    {
        *("run.name", "run.dir", "run.iterations", "data.dir", "data.feature_cache", "evaluation.judge"),
        *("mesh", "collect.lanes", "collect.slots", "collect.memory_gib", "checkpoint", "processes", "tracking"),
    }
)

# What a value must be, by the type of pydantic's error; other errors say it themselves.
_REQUIREMENTS = {
    "float_type": "must be a number",
    "int_type": "must be an integer",
    "bool_type": "must be true or false",
    "string_type": "must be text (a number in quotes is text)",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a section of `key: value` lines",
}


@dataclass(frozen=True)
class LoadedConfig:
    """A checked config and the origin of each of its leaves: `configs/x.yaml:12`, `override` or `default`."""

    config: Config
    origins: dict[str, str]


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> LoadedConfig:
    """Reads a config file, the files that it includes, and `dotted.key=value` overrides, which win.

    The value of an override is YAML (`dpo.beta=0.2`, `mesh={fsdp: 4}`, `dpo.clip_norm=null`); a number in the key is an
    index into a list (`sft.phases.0.steps=10`). `include=FILE` takes all values of a file.

    Raises:
        ConfigError: one paragraph that lists every problem of files, overrides and values, each with its place.
    """
    path = os.fspath(path)
    problems: list[str] = []
    tree = read_tree(path, problems)
    for text in overrides:
        tree = override(tree, text, problems)
    try:
        config = Config.model_validate(_plain(tree, Config))
    except ValidationError as error:
        problems += [_explain(details, tree) for details in error.errors(include_url=False)]
    if problems:
        numbered = problems if len(problems) == 1 else [f"({i}) {problem}" for i, problem in enumerate(problems, 1)]
        raise ConfigError(f"The config {path} cannot be used: {'; '.join(numbered)}")
    written = {".".join(map(str, keys)): entry.origin for keys, entry in tree.walk()}
    return LoadedConfig(config, {key: written.get(key, DEFAULT) for key, _ in leaves(config)})


def leaves(config: Config) -> list[tuple[str, Any]]:
    """All values as (dotted path, value), in the order of the schema; an empty list or mapping is a value."""
    return list(_leaves(config.model_dump(mode="json"), ()))


def config_hash(config: Config, *, exclude: Collection[str] = frozenset()) -> str:
    """SHA-256 (hex) of the config as canonical JSON: the same for the same values, however they were written.

    Args:
        config: what to hash; a default counts like the same value given.
        exclude: dotted paths of sections or values to leave out.

    Raises:
        KeyError: `exclude` names something that the schema does not have.
    """
    values = config.model_dump(mode="json")
    for dotted in exclude:
        *parents, last = dotted.split(".")
        section = values
        for key in parents:
            section = section[key]
        del section[last]
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def semantic_hash(config: Config) -> str:
    """Hash of all that determines results: a run may be continued with any config that has the same."""
    return config_hash(config, exclude=WITHOUT_EFFECT)


def evaluates(config: Config) -> bool:
    """Whether a run has held-out videos to evaluate its policies on."""
    return config.evaluation.enabled and config.data.heldout


def dump_yaml(config: Config) -> str:
    """The whole config as YAML; `load_config` of it gives exactly the same config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=CoreDumper, sort_keys=False, width=120)


def diff_configs(a: Config, b: Config) -> list[tuple[str, Any, Any]]:
    """The leaves that differ, as (dotted path, value in a, value in b); None where one has no such leaf."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return [(key, left.get(key), right.get(key)) for key in left | right if left.get(key) != right.get(key)]


def _leaves(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, (*keys, str(key)))
    else:
        yield ".".join(keys), value


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds: itself, optionally, or as the elements of a list."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _annotation(model: type[BaseModel] | None, key: str | int) -> Any:
    """The type of one field of a section; None for a key that it does not have."""
    return model.model_fields[key].annotation if model and key in model.model_fields else None


def _plain(entry: Entry, annotation: Any) -> Any:
    """The bare values of a tree as pydantic's strict mode wants them: tuples for lists, and the word `true` as text
    where it is one of a field's choices (`judge.video: true`)."""
    value = entry.value
    if isinstance(value, dict):
        model = _section(annotation)
        return {key: _plain(child, _annotation(model, key)) for key, child in value.items()}
    if isinstance(value, list):
        return tuple(_plain(child, annotation) for child in value)
    if isinstance(value, bool) and str(value).lower() in get_args(annotation):
        return str(value).lower()
    return value


def _explain(details: Any, tree: Entry) -> str:
    """One of pydantic's errors as a sentence: dotted path, place, what is wrong, what to do."""
    keys: tuple[str | int, ...] = details["loc"]
    entry = tree
    for key in keys:
        entry = dict(entry.children()).get(key, entry)
    where = f"{'.'.join(map(str, keys))} ({entry.origin})"
    match details["type"]:
        case "extra_forbidden":
            return f"{where} is not a key; {_suggestion(keys)}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            return f"{where}: {details['ctx']['error']}"
    requirement = _REQUIREMENTS.get(details["type"]) or re.sub(r"^\w+ should", "must", details["msg"])
    hint = "; none is written null" if details["input"] == "none" else ""
    return f"{where} {requirement}, got {show(details['input'])}{hint}"


def _suggestion(keys: Sequence[str | int]) -> str:
    """For an unknown key: the same key in another section, or its nearest neighbour here or anywhere."""
    *parents, wrong = keys
    model: type[BaseModel] | None = Config
    for key in parents:
        model = model if isinstance(key, int) else _section(_annotation(model, key))
    siblings = [*(model.model_fields if model else ()), *([] if parents else [INCLUDE])]
    by_name: dict[str, list[str]] = {}
    for dotted in _legal_keys(Config):
        by_name.setdefault(dotted.rpartition(".")[2], []).append(dotted)
    prefix = "".join(f"{key}." for key in parents)
    if wrong in by_name:
        nearest = by_name[str(wrong)]
    elif near := get_close_matches(str(wrong), siblings, n=1):
        nearest = [prefix + near[0]]
    elif near := get_close_matches(str(wrong), by_name, n=1):
        nearest = by_name[near[0]]
    else:
        return f"{prefix.rstrip('.') or 'a config'} has {', '.join(siblings)}"
    return f"did you mean {' or '.join(nearest)}?"


def _legal_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a section and of those in it, dotted; elements of lists as N."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if section := _section(field.annotation):
            element = "N." if get_origin(field.annotation) is tuple else ""
            yield from _legal_keys(section, f"{prefix}{name}.{element}")
