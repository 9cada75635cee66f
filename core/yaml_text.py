"""YAML that was written by somebody else: every fault is one error, and no text takes long.

An anchor makes a short text mean a long one: with ten levels of aliases, 288 letters are a billion
values. They stay small in memory only until something walks over them, as a check of settings
does.
"""

from __future__ import annotations

from typing import Any

import yaml

from .errors import EvenfieldError


# A text has at most one value for each letter, so that only aliases lead above this. Some are
# allowed even to a short text.
MOST_PER_LETTER = 4
ALLOWANCE = 1000

# PyYAML's time for one letter grows with the number of brackets that are open.
DEEPEST = 100

# what stands between the digits of a number of base 60
BASE_60 = ":"
TEXT = "tag:yaml.org,2002:str"
# tag of a number -> how PyYAML reads it
NUMBERS = {
    "tag:yaml.org,2002:int": yaml.SafeLoader.construct_yaml_int,
    "tag:yaml.org,2002:float": yaml.SafeLoader.construct_yaml_float,
}


class YamlTextError(EvenfieldError):
    """A text that is no YAML, or that stands for far more than it is long."""


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses doubled keys and values that are nested too deeply.

    It reads no numbers of base 60, as YAML 1.2 does not: 1:30 is a text and not 90.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        # the scanner runs a thousand brackets ahead of the composer
        self._refuse_below(self.flow_level + 1)
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._refuse_below(self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return TEXT if tag in NUMBERS and BASE_60 in value else tag

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number, of base 60 only where a tag says that it is one. Raises YamlTextError."""
        if BASE_60 in node.value:
            # PyYAML's time for one grows with the square of its length
            raise YamlTextError(f"has a number with a colon in line {node.start_mark.line + 1}")
        return NUMBERS[node.tag](self, node)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        _refuse_doubled_keys(node)
        return node

    def _refuse_below(self, depth: int) -> None:
        if depth > DEEPEST:
            raise YamlTextError(f"values are nested more than {DEEPEST} levels deep")


for number in NUMBERS:
    _StrictLoader.add_constructor(number, _StrictLoader.construct_number)


def read_yaml_text(text: str) -> Any:
    """What `yaml.safe_load` reads, None from an empty text, and 1:30 as a text.

    Raises YamlTextError.
    """
    try:
        # it looks for characters that YAML does not allow
        loader = _StrictLoader(text)
    except yaml.YAMLError as error:
        raise YamlTextError(" ".join(str(error).split())) from None

    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_expansion(node, MOST_PER_LETTER * len(text) + ALLOWANCE)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        # PyYAML spreads the position of the fault over several lines
        raise YamlTextError(" ".join(str(error).split())) from None
    except (ValueError, OverflowError) as error:
        # a date that does not exist, or a number of thousands of digits
        raise YamlTextError(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def _refuse_doubled_keys(node: yaml.MappingNode) -> None:
    """Raise YamlTextError for a key that a mapping has twice: PyYAML keeps the last without a word.

    Keys that are lists or mappings are refused when the values are built.
    """
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        # "1" and 1 are two keys
        name = (key.tag, key.value)
        line = key.start_mark.line + 1
        if name in lines:
            raise YamlTextError(
                f"has the key {key.value!r} twice, in lines {lines[name]} and {line}",
                remedy="keep one of them",
            )
        lines[name] = line


def _refuse_expansion(node: yaml.Node, limit: int) -> None:
    """Raise YamlTextError for a tree that has more than `limit` nodes with its aliases followed."""
    # by identity: an alias is the same node once more
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(one: yaml.Node) -> int:
        key = id(one)
        if key in inside:
            raise YamlTextError("an alias leads into itself")
        if key not in sizes:
            inside.add(key)
            total = 1 + sum(map(size, _children(one)))
            inside.remove(key)
            if total > limit:
                raise YamlTextError(
                    f"aliases make more than {limit} values of it",
                    remedy="write the values out, without anchors",
                )
            sizes[key] = total
        return sizes[key]

    size(node)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return []
