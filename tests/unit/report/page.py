"""A page as its reader finds it: texts, values, links and images, by the standard library's parser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Parses a page and checks that its tags nest.

    Attributes:
        text: everything that is read, blanks collapsed.
        tags: (tag, attributes) in order.
        values: the exact numbers of all `<data>`.
        sections: text by the id of the section's heading.
        loads: every address that the page would load.
    """

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.values: list[float] = []
        self.loads: list[str] = []
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._words: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert self._open == [], f"left open: {self._open}"
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "section":
            self._section = attributes["aria-labelledby"]
        if tag == "data":
            self.values.append(float(attributes["value"]))
        for key in ("src", "href", "srcset", "poster", "action"):
            if attributes.get(key):
                self.loads.append(attributes[key])
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            return
        if self._open and self._open[-1] == "style":
            self.loads += [part.split(")")[0] for part in data.split("url(")[1:]]
            return
        self._words.append(data)
        self.sections[self._section] = " ".join(f"{self.sections.get(self._section, '')} {data}".split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def read_data(report: Path) -> dict[str, Any]:
    """All data beside a page, by the name under which its script hands it over."""
    (folder,) = report.parent.glob("data-*")
    assert f'"folder": "{folder.name}"' in report.read_text(encoding="utf-8")
    data = {}
    for path in sorted(folder.glob("*.js")):
        name, value = re.fullmatch(r'put\("([\w-]+)", (.*)\);\n', path.read_text(encoding="ascii")).groups()
        assert name == path.stem
        data[name] = json.loads(value)
    return data
