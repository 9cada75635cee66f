"""A checkout on a machine whose git converts line ends has the same bytes where bytes count."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from evenfield.model_zoo.package.folder import read_model_folder


ROOT = Path(__file__).resolve().parents[1]
needs_git = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a checkout of git"
)


@needs_git
def test_shipped_models_and_scripts_survive_a_git_that_writes_crlf(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    # the defaults of git for Windows
    settings = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    # no files yet: only some of them are needed
    cloning = ["git", "clone", "-q", "--shared", "--no-checkout", *settings, str(ROOT), str(clone)]
    subprocess.run(cloning, check=True)
    folders = ["model_zoo/zoo/shipped", "tests/model_zoo/package/old_formats", "slurm"]
    # git looks for the rules among the files that are checked out
    subprocess.run(["git", "checkout", "-q", "HEAD", "--", ".gitattributes"], cwd=clone, check=True)
    subprocess.run(["git", "checkout", "-q", "HEAD", "--", *folders], cwd=clone, check=True)

    num_models = 0
    for manifest in clone.rglob("manifest.json"):
        # verifies every hash
        read_model_folder(manifest.parent)
        num_models += 1
    assert num_models >= 4
    for script in (clone / "slurm").glob("*.sbatch"):
        assert b"\r" not in script.read_bytes(), script
