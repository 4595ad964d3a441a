"""YAML as people write it: a key stands once, and a name is the text that the file holds, `no` and `2024` too."""

from typing import Any

import yaml

from taskpgm.errors import UserError

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
# Keys whose values, or the items in their lists, are text however they look.
NAMING = {"name", "tasks", "path", "subset", "split", "revision", "adapter", "columns"}


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
