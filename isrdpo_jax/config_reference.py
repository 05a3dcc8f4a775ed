"""The reference of all settings as Markdown, from the schema: `isrdpo config reference > docs/configuration.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from isrdpo_jax.schema import Config

Schema = dict[str, Any]

_HEAD = """# Configuration

Written by `isrdpo config reference`; every setting with its default. A config file holds only what differs, by section
(`dpo: {beta: 0.2}`); `include=OTHER.yaml` takes in another file, and `dpo.beta=0.2` on the command line wins over both.
`isrdpo config show CONFIG` prints every value of a config and where it comes from. A section that may be `none` is off
unless it is given.
"""


def reference() -> str:
    """The whole page."""
    root = Config.model_json_schema()
    alone: Schema = {"properties": {}}
    parts = []
    for key, field in root["properties"].items():
        section = _section(field, root)
        if section is None:
            alone["properties"][key] = field
        else:
            parts += list(_table(key, section, root))
    return "\n".join([_HEAD, *_table("", alone, root), *parts])


def _table(path: str, section: Schema, root: Schema) -> Iterator[str]:
    """One section, then those inside it."""
    inner = []
    if path:
        yield f"## {path}\n"
        if section.get("description"):
            yield f"{' '.join(section['description'].split())}\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for key, field in section["properties"].items():
        below = _section(field, root)
        name = f"{path}.{key}" if path else key
        if below is not None:
            inner.append((name, below))
        what = f"section [{name}](#{name.replace('.', '')})" if below is not None else _value(field, root)
        meaning = _escape(field.get("description", ""))
        yield f"| `{name}` | {what} | {_default(field, below)} | {meaning} |"
    yield ""
    for name, below in inner:
        yield from _table(name, below, root)


def _section(field: Schema, root: Schema) -> Schema | None:
    """The section that a field is, if it is one; an optional one too."""
    for option in field.get("anyOf", [field]):
        if "$ref" in option:
            found = root["$defs"][option["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _value(field: Schema, root: Schema) -> str:
    """What a value must be, in words."""
    if "anyOf" in field:
        return " or ".join(_value(option, root) for option in field["anyOf"])
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"the keys of {name}: {', '.join(root['$defs'][name]['properties'])}"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{json.dumps(one).strip(chr(34))}`" for one in field.get("enum", [field.get("const")]))
    kind = {"null": "none", "boolean": "true, false", "string": "text"}.get(field["type"], field["type"])
    if kind == "array":
        return f"list of ({_value(field['items'], root)})"
    if kind == "object":
        return f"mapping of names to ({_value(field['additionalProperties'], root)})"
    bounds = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {field[name]:g}" for name, sign in bounds if name in field]
    return f"{kind} {' and '.join(limits)}".strip()


def _default(field: Schema, section: Schema | None) -> str:
    if "default" not in field:
        return "required"
    if field["default"] is None:
        return "none"
    return "" if section is not None else f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
