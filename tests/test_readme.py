"""What the README shows is run, in its order, as a reader would: every snippet, every command that needs nothing of the reader's own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENDED = "has ended"
"""What --resume says of a run that went through, as the README's does here."""


def snippets():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def commands():
    """The lines that call distillrl on what the repository has, or on what an earlier line made."""
    lines = [line.split("  #")[0].strip() for line in README.splitlines() if line.startswith("    distillrl ")]
    return [line for line in lines if "examples/" in line or "runs/" in line or len(line.split()) == 2]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder with the repository's examples in it, and nothing else."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(words, folder):
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=quiet, capture_output=True, text=True, timeout=300)


def test_the_python_snippets_run(reader):
    assert snippets()
    for snippet in snippets():
        done = run(["-c", snippet], reader)
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"


def test_the_commands_run(reader):
    lines = commands()
    assert len(lines) >= 8
    for line in lines:
        done = run(["-m", "distillrl", *shlex.split(line)[1:]], reader)
        if "--resume" in line:
            assert done.returncode == 2, line
            assert ENDED in done.stderr
        else:
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
