"""YAML as people write it: a key stands once, and a name is the text that the file holds, `no` and `2024` too.

Numbers are those of YAML 1.2: 010 is ten, 0o10 is eight, and 1:30 is no number. Dates are text.
"""

import re
from typing import Any

import yaml

from taskpgm.errors import UserError

TEXT, MERGE, INT, FLOAT, DATE = (f"tag:yaml.org,2002:{name}" for name in ("str", "merge", "int", "float", "timestamp"))
WHOLE = re.compile(r"[-+]?[0-9][0-9_]*$|0o[0-7]+$|0x[0-9a-fA-F]+$")
BASES = {"0o": 8, "0x": 16}
# Keys whose values, or the items in their lists, are text however they look.
NAMING = {"name", "tasks", "path", "subset", "split", "revision", "adapter", "columns", "validation"}


def read_yaml(text: str, where: str) -> Any:
    """Plain data of the one document in `text`; every key is text.

    Args:
        where: how messages call the file.

    Raises:
        UserError: no YAML, or a key that stands twice in a mapping.
    """
    try:
        loader = _Loader(text)
        loader.where = where
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {_reason(error)}.") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be read; correct it.") from error


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong, and the line where it shows."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split()).replace(' in "<unicode string>",', ",")
    said = ", ".join(part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    tab = "; indent with spaces" if "'\\t'" in said else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}{tab}"


class _Loader(yaml.SafeLoader):
    where = ""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except UserError:
            raise
        except (ValueError, LookupError, AttributeError) as error:  # PyYAML's own checks are few
            shown, line = str(node.value), node.start_mark.line + 1
            shown = repr(shown if len(shown) <= 40 else shown[:40] + "…")
            kind = node.tag.rpartition(":")[2]
            raise UserError(
                f"{self.where}: {shown} in line {line} cannot be read as {kind}; correct it, or put text in quotes."
            ) from error

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node).replace("_", "")
        return int(text, BASES.get(text[:2], 10))

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            key.tag = TEXT
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{self.where}: the key {key.value!r} in line {line} stands in line {lines[key.value]} already, "
                    "and YAML would keep one of the two; put them together, or remove one."
                )
            lines[key.value] = line
            if key.value in NAMING:
                _take_as_written(key.value, value)
        return node


def _take_as_written(key: str, node: yaml.Node) -> None:
    """Have plain scalars that are a name, or names in a list, or columns in a mapping, read as text."""
    nodes = [node]
    if isinstance(node, yaml.SequenceNode):
        nodes = node.value
    elif key == "columns" and isinstance(node, yaml.MappingNode):
        nodes = [value for _, value in node.value]
    for one in nodes:
        absent = one.tag == "tag:yaml.org,2002:null" and (key not in ("name", "tasks") or not one.value)
        if isinstance(one, yaml.ScalarNode) and not absent:
            one.tag = TEXT


FRACTION = re.compile(
    r"""[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?$ | \.[0-9][0-9_]*([eE][-+][0-9]+)?$
    | [-+]?\.(inf|Inf|INF)$ | \.(nan|NaN|NAN)$""",
    re.VERBOSE,
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, value) for tag, value in rules if tag not in (INT, FLOAT, DATE)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INT, WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(FLOAT, FRACTION, list("-+.0123456789"))
_Loader.add_constructor(INT, _Loader.construct_yaml_int)
