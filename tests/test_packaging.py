"""The house: what is packed, and which way imports point."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
ROOMS = (
    "core",
    "data_pipelines",
    "model_zoo",
    "pretrain",
    "finetune",
    "simulation",
    "diagnostics",
    "cli",
    "testing",
)
NO_PACKAGES = ("build", "dist", "runs", "tests")

# a room may import from those that stand before it in its row
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


def packages() -> list[str]:
    """Import names of all packages in the checkout."""
    folders = {init.parent.relative_to(ROOT) for init in ROOT.rglob("__init__.py")}
    own = [f for f in folders if not f.parts[0].startswith(".") and f.parts[0] not in NO_PACKAGES]
    return sorted(".".join(("evenfield", *folder.parts)) for folder in own)


def files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def test_every_package_is_listed_for_setuptools():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == packages()
    assert {name.split(".")[1] for name in packages()} == set(ROOMS)
    assert setuptools["package-dir"] == {f"evenfield.{room}": room for room in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_that_it_is_typed(room):
    assert (ROOT / room / "py.typed").is_file()


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory) -> Path:
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
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> set[str]:
    """Names of its files."""
    with zipfile.ZipFile(wheel_file) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module_and_every_file_that_they_read(wheel):
    expected = set()
    for room in ROOMS:
        for pattern in (
            "**/*.py",
            "**/py.typed",
            "**/recipes/*.yaml",
            "**/templates/*.j2",
            "**/sample/*",
            "**/shipped/*/*",
        ):
            expected |= {
                f"evenfield/{path.relative_to(ROOT)}" for path in (ROOT / room).glob(pattern)
            }
    assert {name.rpartition(".")[2] for name in expected} >= {"py", "typed", "yaml", "j2"}
    assert not expected - wheel


def test_wheel_holds_nothing_else(wheel):
    strangers = {
        name for name in wheel if not name.startswith("evenfield/") and ".dist-info/" not in name
    }
    assert not strangers


def test_installed_wheel_runs_what_readme_shows_without_a_network(
    wheel_file: Path, tmp_path: Path
) -> None:
    """In a virtual environment of its own, which borrows the libraries of this one but not the checkout."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")]
    subprocess.run(command, check=True)
    python, site = (
        tmp_path / "venv/bin/python",
        next((tmp_path / "venv").glob("lib/python*/site-packages")),
    )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, str(wheel_file)], check=True)
    (site / "borrowed.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith("site-packages"))
    )
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    no_network = "import socket\nsocket.socket.connect = None\nsocket.getaddrinfo = None\n"
    where = "print(model_zoo.__file__)\n"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", no_network + example + where],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(site) in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    wrong = []
    for path in files(room):
        package = ("evenfield", *path.relative_to(ROOT).parts[:-1])
        for node in ast.walk(ast.parse(path.read_text())):
            for name in imported(node, package):
                parts = name.split(".")
                if (
                    parts[0] == "evenfield"
                    and len(parts) > 1
                    and parts[1] not in (room, *MAY_IMPORT[room])
                ):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
                if parts[0] in ROOMS:
                    wrong.append(
                        f"{path.relative_to(ROOT)}:{node.lineno} imports {name} past evenfield"
                    )
    assert not wrong


def imported(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Full names of the modules that an import statement in `package` brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level == 0:
        return [node.module or ""]
    base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
    named = ".".join(part for part in base if part)
    return [named] if node.module else [f"{named}.{alias.name}" for alias in node.names]


def test_every_library_that_is_imported_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.match(r"[\w-]+", line).group().replace("-", "_") for line in asked}
    modules = {
        "markdown_it_py": "markdown_it",
        "pyyaml": "yaml",
        "torch_sim_atomistic": "torch_sim",
    }
    modules |= {"metatensor_torch": "metatensor", "metatomic_torch": "metatomic"}
    known = (
        {modules.get(name, name) for name in names} | set(sys.stdlib_module_names) | {"evenfield"}
    )
    imports = {}
    for path in files(*ROOMS):
        package = ("evenfield", *path.relative_to(ROOT).parts[:-1])
        for node in ast.walk(ast.parse(path.read_text())):
            imports |= {
                name.split(".")[0]: f"{path.relative_to(ROOT)}" for name in imported(node, package)
            }
    assert not {module: path for module, path in imports.items() if module not in known}


def test_relative_imports_are_resolved_as_python_does():
    (node,) = ast.parse("from ..pretrain.loop.trainer import Trainer").body
    assert imported(node, ("evenfield", "model_zoo")) == ["evenfield.pretrain.loop.trainer"]
    (node,) = ast.parse("from .. import pretrain").body
    assert imported(node, ("evenfield", "model_zoo")) == ["evenfield.pretrain"]
    (node,) = ast.parse("from .package import load_model").body
    assert imported(node, ("evenfield", "model_zoo")) == ["evenfield.model_zoo.package.folder"]
