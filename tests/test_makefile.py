"""The Makefile without a .venv: one clear line when the interpreter is unfit, and its plan."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that the set-up reads, without a .venv."""
    for name in ("Makefile", "pyproject.toml", "constraints-cpu.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make as a shell would, though the suite may itself run under make."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        ["make", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def fake_python(folder: Path, before: str) -> str:
    """A Python that runs one statement before the program given with -c."""
    path = folder / "fake python"
    path.write_text(
        f"#!{sys.executable}\nimport sys\n{before}\n"
        "if sys.argv[1] == '--version':\n"
        "    print('Python', '.'.join(map(str, sys.version_info[:3])))\n"
        "else:\n    exec(sys.argv[2])\n"
    )
    path.chmod(0o755)
    return str(path)


def test_a_missing_python_is_one_line(checkout: Path) -> None:
    result = make(checkout, "test", "PYTHON=/nonexistent")
    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert "no '/nonexistent' here: install Python 3.11 or newer" in line
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("sys.version_info = (3, 9, 18)", "not Python 3.11 or newer but Python 3.9.18"),
        ("sys.modules['ensurepip'] = None", "lacks its venv module: install it"),
    ],
)
def test_an_unfit_python_is_one_line(checkout: Path, before: str, message: str) -> None:
    result = make(checkout, "quickstart", f"PYTHON={fake_python(checkout, before)}")
    assert result.returncode != 0
    (line,) = (result.stdout + result.stderr).splitlines()
    assert message in line
    assert not (checkout / ".venv").exists()


def test_the_set_up_comes_before_the_work_and_only_once(checkout: Path) -> None:
    plan = make(checkout, "-n", "quickstart", f"PYTHON={sys.executable}").stdout
    steps = [
        "-m venv --upgrade-deps .venv",
        "-c constraints-cpu.txt torch",
        "-c constraints-cpu.txt -e '.[test]'",
    ]
    places = [plan.index(step) for step in [*steps, "evenfield quickstart runs/quickstart"]]
    assert places == sorted(places)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").touch()
    (checkout / ".venv" / ".ready-test").touch()
    assert "pip" not in make(checkout, "-n", "test").stdout
    os.utime(checkout / "constraints-cpu.txt", (2**32, 2**32))  # newer than the set-up
    assert "pip" in make(checkout, "-n", "test").stdout


def test_the_pin_can_be_dropped(checkout: Path) -> None:
    plan = make(checkout, "-n", "test", f"PYTHON={sys.executable}", "CONSTRAINTS=").stdout
    assert "constraints" not in plan and "torch" not in plan
    assert "-e '.[test]'" in plan


def test_help_names_every_target(checkout: Path) -> None:
    text = make(checkout).stdout
    assert text == make(checkout, "help").stdout
    for target in ("quickstart", "test", "test-oldest", "check", "fix", "bench", "docs", "clean"):
        assert f"make {target} " in text


def test_type_checkers_get_a_link_for_every_package(checkout: Path) -> None:
    assert make(checkout, ".links/evenfield").returncode == 0
    links = {path.name for path in (checkout / ".links" / "evenfield").iterdir()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert links == packages - {"tests"}
