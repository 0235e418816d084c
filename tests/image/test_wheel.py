"""The package as people install it: a wheel in an environment of its own, away from every checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from control.paths import ROOT

WITHIN_S = 600


def run(*argv: str | Path, home: Path, cwd: Path) -> str:
    """Run a program with as little of our surroundings as a new user has; returns what it said."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.boot
@pytest.mark.timeout(3 * WITHIN_S)
def test_the_examples_in_a_project_that_has_only_installed_it(tmp_path: Path) -> None:
    """The wheel holds all that the built-in guest is made of; the first test that wants a machine makes it."""
    sources, home, project = tmp_path / "sources", tmp_path / "home", tmp_path / "project"
    kept = shutil.ignore_patterns(".git", ".venv", "build", ".unhinged", "__pycache__", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, sources, ignore=kept)
    home.mkdir()
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        tmp_path,
        ".",
        home=home,
        cwd=sources,
    )
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv", home=home, cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[pytest]", home=home, cwd=tmp_path)
    shutil.rmtree(sources)
    shutil.copytree(ROOT / "docs/examples/pytest", project, ignore=kept)
    told = run(python, "-m", "pytest", "-q", home=home, cwd=project)
    assert "14 passed" in told and "making the built-in guest, once" in told
    assert (home / ".cache/unhinged/build/image/image.json").is_file()
    assert run(tmp_path / "venv/bin/unhinged", "run", "--", "echo", "here", home=home, cwd=project).endswith("here\n")
    told = run(tmp_path / "venv/bin/unhinged", "img", "build", "builtin", home=home, cwd=project)
    assert "builtin: unchanged" in told
    told = run(tmp_path / "venv/bin/unhinged", "doctor", home=home, cwd=project)
    assert "unhinged can work here" in told and "make" not in told, told
