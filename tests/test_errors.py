"""Errors for users have one base class, and no code reads the text of an exception."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from house import ROOMS, ROOT, files


# Built-in exceptions that a protocol of Python or of a library asks for.
PROTOCOLS = {
    # called by validators of pydantic, which turns ValueError into its own error
    "core/settings.py GivenBy.refuse_others ValueError",
    "data_pipelines/sources/config.py SourceConfig._check_label ValueError",
    "diagnostics/sanity/config.py SanityConfig._check_elements ValueError",
    "data_pipelines/convert/splits.py check_symbols ValueError",
    # caught by `file_errors` in the same module, which makes it an error for users
    "core/destination.py _exchange OSError",
    "model_zoo/heads/description.py check_name ValueError",
    "model_zoo/heads/description.py check_choices ValueError",
    "finetune/property_heads/config.py HeadConfig._check_unit ValueError",
    # caught by its caller in the same module: what is not such a record counts as none
    "model_zoo/heads/record.py _heads ValueError",
    "model_zoo/heads/record.py _network_weights ValueError",
    "model_zoo/uncertainty/record.py _level ValueError",
    "model_zoo/uncertainty/record.py _stress ValueError",
    # compiled into a file that knows nothing of this package
    "model_zoo/engines/metatomic_model.py HeadOutput.check ValueError",
    "model_zoo/engines/metatomic_model.py HeadOutput.forward ValueError",
    # module attributes
    "model_zoo/__init__.py __getattr__ AttributeError",
    "model_zoo/network/architectures.py config_class ValueError",
    # Ctrl-C is passed on
    "pretrain/loop/signals.py listening.ask KeyboardInterrupt",
    "finetune/few_shot/curve.py _from_scratch KeyboardInterrupt",
    "simulation/learn/stall.py _by_gradients KeyboardInterrupt",
    # what a user of the suite has to override
    "testing/conformance.py PotentialConformance.potential NotImplementedError",
    # caught in the same module, which knows file and record and adds them
    "data_pipelines/census/census.py Census.add_table ValueError",
    "data_pipelines/store/shards.py _check_lengths ValueError",
}

# Methods that take a text apart.
READERS = {"startswith", "endswith", "partition", "find", "match", "search", "fullmatch", "findall"}


@dataclass(frozen=True)
class Raise:
    """A `raise` of a built-in exception."""

    file: str
    line: int
    scope: str
    exception: str
    in_validator: bool


def builtin_exceptions() -> set[str]:
    found = set()
    for name, value in vars(builtins).items():
        if isinstance(value, type) and issubclass(value, BaseException):
            found.add(name)
    return found


BUILTIN = builtin_exceptions()


def raises_in(path: Path) -> Iterator[Raise]:
    """Every `raise` of a built-in exception, with the functions and classes around it."""
    file = str(path.relative_to(ROOT))
    waiting: list[tuple[ast.AST, list[ast.AST]]] = [(ast.parse(path.read_text()), [])]
    while waiting:
        node, scopes = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            scopes = [*scopes, node]
        waiting += [(child, scopes) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = last_name(node.exc)
            if name in BUILTIN:
                scope = ".".join(getattr(outer, "name", "") for outer in scopes)
                validator = any(is_validator(outer) for outer in scopes)
                yield Raise(file, node.lineno, scope, name, validator)


def is_validator(node: ast.AST) -> bool:
    """A method that pydantic calls."""
    decorators = getattr(node, "decorator_list", [])
    return any(last_name(decorator).endswith("_validator") for decorator in decorators)


def last_name(node: ast.AST) -> str:
    """`c` of `a.b.c(...)`."""
    if isinstance(node, ast.Call):
        node = node.func
    return getattr(node, "attr", getattr(node, "id", ""))


def test_only_protocols_raise_built_in_exceptions() -> None:
    wrong = []
    for path in files(*ROOMS):
        for found in raises_in(path):
            name = f"{found.file} {found.scope} {found.exception}"
            if not found.in_validator and name not in PROTOCOLS:
                wrong.append(f"{found.file}:{found.line} {found.scope} raises {found.exception}")
    assert not wrong, "\n".join(wrong)


def test_error_classes_are_errors_for_users() -> None:
    """Their bases are EvenfieldError or other classes of ours, not built-in exceptions."""
    wrong = []
    for path in files(*ROOMS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name != "EvenfieldError":
                bases = {last_name(base) for base in node.bases}
                # a model that breaks a rule is a test that fails, for whoever runs the suite
                if node.name.endswith("Error") and bases & BUILTIN - {"AssertionError"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not wrong


def test_no_code_reads_the_text_of_an_exception() -> None:
    wrong = []
    for path in files(*ROOMS):
        for handler in ast.walk(ast.parse(path.read_text())):
            if isinstance(handler, ast.ExceptHandler) and handler.name:
                for line in lines_that_read(handler):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}")
    assert not wrong


def lines_that_read(handler: ast.ExceptHandler) -> Iterator[int]:
    """Lines in which the text of the caught exception decides something."""
    for node in ast.walk(handler):
        is_reader = isinstance(node, ast.Call) and last_name(node) in READERS
        if (isinstance(node, ast.Compare) or is_reader) and f"str({handler.name})" in ast.unparse(
            node
        ):
            yield node.lineno


@pytest.mark.parametrize(
    ("body", "reads"),
    [
        ("if 'gone' in str(error): pass", True),
        ("if str(error).startswith('gone'): pass", True),
        ("if re.search('gone', str(error)): pass", True),
        ("if error.errno == 2: pass", False),
        ("raise ValueError(str(error))", False),
    ],
)
def test_reading_is_recognised(body: str, reads: bool) -> None:
    (tree,) = ast.parse(f"try: pass\nexcept OSError as error:\n    {body}").body
    assert bool(list(lines_that_read(tree.handlers[0]))) == reads
