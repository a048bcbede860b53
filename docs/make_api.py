"""Write docs/api.md from the signatures and docstrings of the public names: `make api`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import convmixer
import convmixer_kernels
from convmixer_kernels import exporting

PAGE = Path(__file__).with_name("api.md")
HEAD = """\
# API

`make api` writes this page from the docstrings, which `help(name)` shows as well. Functions of
tensors take and return (N, C, H, W). `impl` names an implementation; a named one runs or raises.
"""
MODULES = (
    (convmixer_kernels, convmixer_kernels.__all__),
    (exporting, ["decompose"]),
    (convmixer, convmixer.__all__),
)
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
WIDTH = 100


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for module, names in MODULES:
        public = [name for name in names if not name.startswith("__")]
        parts.append(f"## `{module.__name__}`\n\n{_markdown(inspect.getdoc(module) or '')}")
        for name in public:
            parts += _entries(name, getattr(module, name), "###")
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _entries(name: str, thing: Any, heading: str) -> Iterator[str]:
    """Yield the entry of a function or class, and those of the methods that a class documents."""
    kind = "class " if inspect.isclass(thing) else ""
    code = f"```py\n{kind}{_call(name, thing)}\n```"
    yield f"{heading} `{name}`\n\n{code}\n\n{_markdown(inspect.getdoc(thing) or '')}"
    for method, member in vars(thing).items() if kind else ():
        if method.startswith("_") or not getattr(member, "__doc__", None):
            continue
        if isinstance(member, property):
            yield f"{heading}# `{name}.{method}`\n\n{_markdown(inspect.getdoc(member) or '')}"
        elif inspect.isroutine(member):
            yield from _entries(f"{name}.{method}", getattr(thing, method), f"{heading}#")


class _Code(str):
    """An annotation that shows without quotes in a signature."""

    __repr__ = str.__str__


def _call(name: str, thing: Any) -> str:
    """Return a signature as code, with a line for each parameter where one line is too short."""
    signature = inspect.signature(thing)
    parameters: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        if parameter.name != "self":
            parameters.append(str(parameter.replace(annotation=_code(parameter.annotation))))
    returns = ""
    if not inspect.isclass(thing):
        returns = f" -> {inspect.formatannotation(_code(signature.return_annotation))}"
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){returns}"


def _code(annotation: Any) -> Any:
    return _Code(annotation) if isinstance(annotation, str) else annotation


def _markdown(docstring: str) -> str:
    """Return a docstring as Markdown: its sections become lists."""
    text = docstring.replace("``", "`")
    blocks = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    parts = [blocks[0].strip()]
    for title, block in zip(blocks[1::2], blocks[2::2], strict=True):
        body, after = _split_indented(block)
        parts.append(f"**{title}**\n\n{_items(body) if title != 'Returns' else body}")
        parts.append(after.strip())
    return "\n\n".join(part for part in parts if part)


def _split_indented(block: str) -> tuple[str, str]:
    """Return the indented lines at the beginning of a block, dedented, and the rest."""
    match = re.match(r"(?:[ ]+.*(?:\n|$)|\n(?=[ ]))*", block)
    assert match is not None
    return textwrap.dedent(match[0]).strip(), block[match.end() :]


def _items(body: str) -> str:
    """Return `name: meaning` entries, whose further lines are indented, as a list."""
    items = []
    for entry in re.split(r"\n(?=\S)", body):
        name, colon, meaning = re.sub(r"\s+", " ", entry).partition(": ")
        items.append(f"- `{name}`: {meaning}" if colon else f"- {name}")
    return "\n".join(items)


if __name__ == "__main__":
    PAGE.write_text(page())
