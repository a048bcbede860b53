"""Reading and writing YAML: plain values, and no key twice in a mapping."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from convmixer.errors import UsageError
from convmixer.terminal import printable


class _StrictLoader(yaml.SafeLoader):
    """A loader of plain values that refuses a mapping with the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            # A key of the mapping may repeat a key that is merged in, and overrides it.
            merged = key_node.tag == "tag:yaml.org,2002:merge"
            key = None if merged else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue
            if key in seen:
                mark = key_node.start_mark
                problem = f"{printable(str(key))} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def parse(text: str, file: str) -> Any:
    """Return the value of a text in YAML.

    Args:
        text: the text.
        file: the file of the text, for messages.

    Raises:
        UsageError: the text is not YAML, or has a key twice.
        Exception: PyYAML lets Python's errors through, such as a ValueError for a date.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{file} is not valid YAML{line}: {error.problem}") from None


def dump(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, with its innermost lists and mappings in one line each."""
    text: str = yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    return text
