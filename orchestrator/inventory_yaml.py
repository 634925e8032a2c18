"""YAML text to plain values, with the place of each; stricter than YAML where YAML surprises.

Keys may be given once. Only `true`, `false`, `null`, decimal numbers and text exist, as in YAML 1.2's core schema: a
host called `no` is text, `22:22` is no base-60 number, `010` is ten. Nothing here knows what an inventory is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from orchestrator.inventory_rules import Problem, Where


class YamlError(Exception):
    """The text is not usable YAML; `problems` has one line per problem, with line and column where there is one."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Document:
    """The plain value of a text, the line (from 1) of each key and list item, and the keys that are given twice."""

    content: Any
    lines: dict[Where, int]
    repeated: tuple[Problem, ...]

    def line_of(self, problem: Problem) -> tuple[int, bool]:
        """A sort key: the line of the value, or that of the nearest thing around it."""
        where = problem.where
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 0), problem.missing


def read_yaml(text: str) -> Document:
    """The one document in the text. Raises YamlError."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Where, int] = {}
            repeated = tuple(_walk(node, (), lines, frozenset())) if node else ()
            content = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise YamlError(_marked(error, text)) from error
    except yaml.reader.ReaderError as error:
        raise YamlError(_unreadable(error, text)) from error
    except RecursionError as error:
        raise YamlError("the file is nested too deeply; an inventory has hosts and their keys, no more") from error
    return Document(content, lines, repeated)


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalar words of YAML 1.2's core schema (less octal and hexadecimal numbers)."""


_Loader.yaml_implicit_resolvers = {}
_NUMBER_START = list("-+0123456789.")
_FLOAT = r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _name, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9]{1,18}", _NUMBER_START),
    ("float", _FLOAT, _NUMBER_START),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | str:
    text = str(loader.construct_scalar(node))
    return int(text, 10) if re.fullmatch(r"[-+]?[0-9]{1,18}", text) else text


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _walk(node: yaml.Node, where: Where, lines: dict[Where, int], above: frozenset[int]) -> Iterator[Problem]:
    """Note each place's line; yield a problem for each key that is given twice."""
    if id(node) in above:
        return
    above |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*where, i)] = item.start_mark.line + 1
            yield from _walk(item, (*where, i), lines, above)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*where, str(key.value))
            line = key.start_mark.line + 1
            if place in lines and key.tag != "tag:yaml.org,2002:merge":
                yield Problem(place, f"given twice, in line {lines[place]} and in line {line}; keep one of them")
            lines.setdefault(place, line)
            yield from _walk(value, place, lines, above)


def _marked(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "not understood"
    if mark is None:
        return f"not valid YAML: {problem}; correct the text"
    place = f"line {mark.line + 1}, column {mark.column + 1}"
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    if "\t" in line[: mark.column + 1]:
        return f"{place}: a tab; YAML is indented with spaces, replace the tab"
    if "could not determine a constructor" in problem:
        return f"{place}: a tag (a word that begins with !); remove it, inventories use none"
    return f"{place}: not valid YAML, {problem}; correct this place or the line above"


def _unreadable(error: yaml.reader.ReaderError, text: str) -> str:
    line = text.count("\n", 0, error.position) + 1
    return f"line {line}: the character U+{ord(text[error.position]):04X} is not allowed; remove it"
