"""Read untrusted YAML: every fault raises the same error class, and no text takes long to read.

With anchors and aliases, a short text can stand for a very long one: with ten levels of aliases,
288 characters stand for a billion values. They take little memory only until some code iterates
over them, for example the validation of settings.
"""

from __future__ import annotations

from typing import Any

import yaml

from .errors import EvenfieldError


# Limit on the number of values: this many per character, plus an allowance. Without aliases, a text
# has at most one value per character.
MOST_PER_LETTER = 4
ALLOWANCE = 1000

# Limit on nesting: PyYAML's time per character grows with the number of open brackets.
DEEPEST = 100

# separator in numbers of base 60
BASE_60 = ":"
TEXT = "tag:yaml.org,2002:str"
# tag of a number -> how PyYAML reads it
NUMBERS = {
    "tag:yaml.org,2002:int": yaml.SafeLoader.construct_yaml_int,
    "tag:yaml.org,2002:float": yaml.SafeLoader.construct_yaml_float,
}


class YamlTextError(EvenfieldError):
    """A text is not valid YAML, or its aliases stand for far too many values."""


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but it refuses duplicate keys and values that are nested too deeply.

    As in YAML 1.2, there are no numbers of base 60: 1:30 is the text "1:30" and not 90.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        # checked here too, because the scanner runs up to a thousand brackets ahead of the composer
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
        """Construct a number. Raises YamlTextError for base 60, which a tag can request."""
        if BASE_60 in node.value:
            # PyYAML's time for a number of base 60 grows with the square of its length
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
    """Read a text as `yaml.safe_load` does, but with the limits and rules of this module.

    An empty text gives None. Raises YamlTextError.
    """
    try:
        # the constructor raises for characters that YAML does not allow
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
        # joined to one line, because PyYAML's messages have several
        raise YamlTextError(" ".join(str(error).split())) from None
    except (ValueError, OverflowError) as error:
        # a date that does not exist, or a number with thousands of digits
        raise YamlTextError(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def _refuse_doubled_keys(node: yaml.MappingNode) -> None:
    """Raise YamlTextError for a duplicate key in a mapping; PyYAML would silently keep the last.

    Keys that are lists or mappings are refused later, when the values are constructed.
    """
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        # the tag is part of the key, because "1" and 1 are different keys
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
    # by identity, because an alias is the same node again
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
