"""List the keys of a settings class with their types, defaults and descriptions.

`evenfield ... --settings` prints `as_text`; docs/settings.md is built from `as_markdown`.
"""

from __future__ import annotations

import json
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from .settings import GivenBy, Settings


TEXT_WIDTH = 96
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Row:
    """One key, written as a user types it, such as `optimizer.learning_rate`.

    `default` is YAML text, or None if the key is required.
    """

    key: str
    kind: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Group:
    """The keys of one settings class, at one place below the class of the command."""

    prefix: str
    about: str
    rows: list[Row]


def groups_of(cls: type[Settings]) -> list[Group]:
    """The keys of a class, followed by the keys of nested classes."""
    return list(_groups(cls, None, ""))


def as_text(cls: type[Settings]) -> str:
    """Text for a terminal: each key with its default as it is typed, and its description below."""
    blocks = []
    for group in groups_of(cls):
        lines = [f"# {group.prefix or 'settings'}: {group.about}"]
        for row in group.rows:
            if row.default is None:
                lines.append(f"{row.key}=...    ({row.kind}, required)")
            else:
                lines.append(f"{row.key}={row.default}    ({row.kind})")

            indent = " " * 4
            description = textwrap.fill(
                row.description, TEXT_WIDTH, initial_indent=indent, subsequent_indent=indent
            )
            lines.append(description)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def as_markdown(cls: type[Settings]) -> str:
    """A Markdown table for the documentation, with nested keys in the order of their classes."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for group in groups_of(cls):
        for row in group.rows:
            default = "required"
            if row.default is not None:
                default = f"`{row.default}`"
            cells = [f"`{row.key}`", row.kind, default, row.description]
            # a bar inside a cell would end the cell
            escaped = [cell.replace("|", "\\|") for cell in cells]
            lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines)


def _groups(
    cls: type[Settings], values: Settings | None, prefix: str, hidden: frozenset[str] = frozenset()
) -> Iterator[Group]:
    """Yield the group of a class and the groups of its nested classes.

    values: default of the field that holds the class; it may differ from the class's own defaults.
    prefix: what precedes the keys, such as `optimizer.`.
    hidden: keys to leave out, because they are set elsewhere.
    """
    rows = []
    nested = []
    for name, field in cls.known_keys().items():
        if name in hidden:
            continue

        key = f"{prefix}{name}"
        # keys that this class reads on behalf of another class are not attributes
        default = getattr(values, name, _default(field))
        classes = _settings_classes(field.annotation)
        if not classes:
            rows.append(Row(key, _kind(field), _as_yaml(field, default), field.description or ""))
        for inner, step in classes:
            # the default of a union belongs to one member; the others show their own defaults
            value = default if isinstance(default, inner) else None
            inner_prefix = f"{key}{step}."
            nested.append((inner, value, inner_prefix, _given_elsewhere(field)))

    yield Group(prefix.rstrip("."), _first_line(cls), rows)
    for choice, alternative in cls.alternatives().items():
        yield _alternative(choice, alternative, prefix)
    for arguments in nested:
        yield from _groups(*arguments)


def _first_line(cls: type[Settings]) -> str:
    """The first line of the class's docstring; a test checks that every settings class has one."""
    docstring = (cls.__doc__ or "").strip()
    return docstring.splitlines()[0]


def _given_elsewhere(field: FieldInfo) -> frozenset[str]:
    """Keys of the nested class that the outer class fills in; see GivenBy."""
    markers = [marker for marker in field.metadata if isinstance(marker, GivenBy)]
    return frozenset(key for marker in markers for key in marker.outer_keys)


def _alternative(choice: str, cls: type[Settings], prefix: str) -> Group:
    """The keys of a class that is read only if a setting chooses it."""
    rows = []
    for name, field in cls.model_fields.items():
        default = _as_yaml(field, _default(field))
        rows.append(Row(f"{prefix}{name}", _kind(field), default, field.description or ""))

    place = prefix.rstrip(".")
    return Group(f"{place} with {prefix}{choice}", _first_line(cls), rows)


def _settings_classes(annotation: Any) -> list[tuple[type[Settings], str]]:
    """The settings classes in a type, each with the part of the key that leads to it.

    A mapping adds `.NAME` to the key, because the user chooses the name, as in
    `loss.noise.NAME.energy`. A list adds `[]`.
    """
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [(annotation, "")]

    origin = get_origin(annotation)
    if origin is Literal:
        # the arguments of a Literal are values, not types
        return []
    step = ""
    if origin is dict:
        step = ".NAME"
    elif origin is list:
        step = "[]"

    found = []
    for argument in get_args(annotation):
        for inner, deeper in _settings_classes(argument):
            found.append((inner, step + deeper))
    return found


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    return field.get_default(call_default_factory=True)


def _as_yaml(field: FieldInfo, default: Any) -> str | None:
    """The default as it is typed after `key=`. JSON is valid YAML, and text needs no quotes."""
    if field.is_required():
        return None
    if isinstance(default, str) and default:
        return default
    return json.dumps(default)


def _kind(field: FieldInfo) -> str:
    """The type of a key in words, with its bounds."""
    words = [_type_name(field.annotation)]
    # pydantic keeps `gt=0` as an object of annotated_types with the attribute `gt`
    for constraint in field.metadata:
        for attribute, sign in BOUNDS.items():
            bound = getattr(constraint, attribute, None)
            if bound is not None:
                words.append(f"{sign} {bound:g}")
    return ", ".join(words)


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    # for list[int], isinstance(..., type) may hold too, but its name would be only "list"
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin is Annotated:
        return _type_name(arguments[0])
    names = [_type_name(argument) for argument in arguments]
    if origin in (Union, types.UnionType):
        return " or ".join(names)
    return f"{origin.__name__}[{', '.join(names)}]"
