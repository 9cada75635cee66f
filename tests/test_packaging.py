"""The house: what is packed, and which way imports point."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from house import ROOMS, ROOT, files


NO_PACKAGES = ("build", "dist", "runs", "tests")

# A room may import from these others. The command line may import from all.
MAY_IMPORT = {
    "core": (),
    "data_pipelines": ("core",),
    "model_zoo": ("core", "data_pipelines"),
    "testing": ("core", "data_pipelines", "model_zoo"),
    "pretrain": ("core", "data_pipelines", "model_zoo"),
    "finetune": ("core", "data_pipelines", "model_zoo", "pretrain"),
    "simulation": ("core", "data_pipelines", "model_zoo", "pretrain", "finetune"),
    "diagnostics": ("core", "data_pipelines", "model_zoo", "pretrain", "finetune"),
}

# Inside data_pipelines, a subpackage may import from those before it.
DATA_ORDER = (
    *("store", "sources", "census", "stream", "checks", "convert", "corpus", "demo", "enrich"),
)

# Import name of a distribution whose name differs by more than hyphens.
IMPORT_NAMES = {
    "markdown_it_py": "markdown_it",
    "metatensor_torch": "metatensor",
    "metatomic_torch": "metatomic",
    "pyyaml": "yaml",
    "torch_pme": "torchpme",
    "torch_sim_atomistic": "torch_sim",
}


def packages() -> list[str]:
    """Import names of all packages in the checkout."""
    folders = {init.parent.relative_to(ROOT) for init in ROOT.rglob("__init__.py")}
    names = []
    for folder in folders:
        top = folder.parts[0]
        if not top.startswith(".") and top not in NO_PACKAGES:
            names.append(".".join(("evenfield", *folder.parts)))
    return sorted(names)


# --- what is packed


def test_the_rooms_are_listed_for_setuptools() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name.split(".")[1] for name in packages()} == set(ROOMS)
    assert setuptools["package-dir"] == {f"evenfield.{room}": room for room in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_that_it_is_typed(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()


@pytest.mark.parametrize("package", packages())
def test_every_package_has_a_docstring(package: str) -> None:
    folder = ROOT.joinpath(*package.split(".")[1:])
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout."""
    pytest.importorskip("build", reason="comes with the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(
        ".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "docs", "tests"
    )
    shutil.copytree(ROOT, folder / "source", ignore=skip)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run(
        [*command, str(folder / "source")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "is absent from the `packages`" not in done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> set[str]:
    """The names of its files."""
    with zipfile.ZipFile(wheel_file) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module_and_every_file_that_they_read(wheel: set[str]) -> None:
    patterns = (
        "**/*.py",
        "**/py.typed",
        "**/recipes/*.yaml",
        "**/templates/*.j2",
        "**/templates/*.css",
        "**/reference/*.csv",
        "**/sample/*",
        "**/shipped/*/*",
    )
    expected = set()
    for room in ROOMS:
        for pattern in patterns:
            for path in (ROOT / room).glob(pattern):
                expected.add(f"evenfield/{path.relative_to(ROOT)}")
    assert {name.rpartition(".")[2] for name in expected} >= {"py", "typed", "yaml", "j2"}
    assert not expected - wheel


def test_wheel_names_whose_data_it_was_made_from(wheel: set[str]) -> None:
    licences = {name.rpartition("/")[2] for name in wheel if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


def test_wheel_holds_nothing_else(wheel: set[str]) -> None:
    strangers = [name for name in wheel if not name.startswith("evenfield/")]
    assert not [name for name in strangers if ".dist-info/" not in name]


def test_installed_wheel_runs_what_readme_shows_without_a_network(
    wheel_file: Path, tmp_path: Path
) -> None:
    """In a new environment, which borrows the libraries of this one but not the checkout."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    site = next(venv.glob("lib/python*/site-packages"))

    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel_file)], check=True)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))

    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    no_network = "import socket\nsocket.socket.connect = None\nsocket.getaddrinfo = None\n"
    where = "print(model_zoo.__file__)\n"
    done = subprocess.run(
        [python, "-c", no_network + example + where],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(site) in done.stdout.splitlines()[-1]


# --- imports


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str) -> None:
    allowed = (room, *MAY_IMPORT[room])
    wrong = []
    for path in files(room):
        for line, name in imports_of(path):
            parts = name.split(".")
            where = f"{path.relative_to(ROOT)}:{line}"
            if parts[0] in ROOMS:
                wrong.append(f"{where} imports {name} past evenfield")
            elif parts[0] == "evenfield" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{where} imports {name}")
    assert not wrong


@pytest.mark.parametrize("folder", DATA_ORDER)
def test_imports_point_one_way_inside_data_pipelines(folder: str) -> None:
    later = DATA_ORDER[DATA_ORDER.index(folder) + 1 :]
    wrong = []
    for path in files(f"data_pipelines/{folder}"):
        for line, name in imports_of(path):
            if name.startswith(tuple(f"evenfield.data_pipelines.{other}" for other in later)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


def test_modules_import_each_other_in_no_circle() -> None:
    """At module level, with what is imported for type checkers alone."""
    modules = {module_name(path): path for path in files(*ROOMS)}
    graph = {}
    for module, path in modules.items():
        targets = {name for _, name in imports_of(path, modules, module_level=True)}
        graph[module] = (targets & modules.keys()) - {module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        # each module of the circle is imported by the next
        pytest.fail(" <- ".join(error.args[1]))


def test_every_library_that_is_imported_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        requirements += extra
    known = {"evenfield", *sys.stdlib_module_names}
    for requirement in requirements:
        name = re.match(r"[\w-]+", requirement).group().replace("-", "_")
        known.add(IMPORT_NAMES.get(name, name))
    unknown = []
    for path in files(*ROOMS):
        for line, name in imports_of(path):
            if name.split(".")[0] not in known:
                unknown.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not unknown


def test_no_class_of_evenfield_is_named_in_the_settings_of_pytest() -> None:
    """pytest imports it before lines are counted: once, 3 % of them counted as never run."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    assert not [each for each in settings["ini_options"]["filterwarnings"] if "evenfield." in each]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(("evenfield", *parts))


def imports_of(
    path: Path, modules: dict[str, Path] | None = None, module_level: bool = False
) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports.

    `from a import b` gives `a.b` where that is one of `modules`, else `a`. With `module_level`,
    imports inside functions are left out.
    """
    package = ("evenfield", *path.relative_to(ROOT).parts[:-1])
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if module_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in imported(node, package, modules or {}):
                yield node.lineno, name


def imported(
    node: ast.Import | ast.ImportFrom, package: tuple[str, ...], modules: dict[str, Path]
) -> list[str]:
    """Full names of the modules that an import statement in `package` brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = [] if node.level == 0 else list(package[: len(package) - node.level + 1])
    if node.module:
        base += node.module.split(".")
    names = []
    for alias in node.names:
        full = ".".join([*base, alias.name])
        is_module = full in modules or not node.module
        names.append(full if is_module else ".".join(base))
    return names


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("import a.b", ["a.b"]),
        ("from a.b import c", ["a.b"]),
        ("from ..pretrain.loop import trainer", ["evenfield.pretrain.loop.trainer"]),
        ("from ..pretrain.loop.trainer import Trainer", ["evenfield.pretrain.loop.trainer"]),
        ("from .. import pretrain", ["evenfield.pretrain"]),
        ("from .package import load_model", ["evenfield.model_zoo.package"]),
    ],
)
def test_relative_imports_are_resolved_as_python_does(statement: str, names: list[str]) -> None:
    (node,) = ast.parse(statement).body
    modules = {"evenfield.pretrain.loop.trainer": Path()}
    assert imported(node, ("evenfield", "model_zoo"), modules) == names
