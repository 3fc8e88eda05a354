"""Every example runs, and prints what its `# Output:` comment says."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in import stand_in

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def shown(path: Path) -> str | None:
    """Return the output that the comment at the end of an example shows, if there is one."""
    found = re.search(r"^# Output:\n((?:#.*\n)+)\Z", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found and re.sub(r"^# ?", "", found[1], flags=re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 9


@each_example
def test_example_is_short_and_says_its_idea(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.startswith('"""')
    assert len(source.splitlines()) <= 60


@each_example
def test_example_prints_what_it_shows(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    output = capsys.readouterr().out
    assert output
    assert shown(path) in (None, output)


@each_example
def test_example_prints_what_it_shows_with_the_bundled_model(path: Path) -> None:
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert shown(path) in (None, done.stdout)


def test_the_first_command_of_the_readme_judges_with_a_real_model() -> None:
    done = run(ROOT / "examples" / "quickstart.py")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\b(?:allow|block)\b", done.stdout)) == 10
    assert "What keeps killing my sourdough starter?" in done.stdout


def run(path: Path) -> subprocess.CompletedProcess[str]:
    """Run an example as a user does, without the user's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GUARDRAIL_")}
    return subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
        env={**kept, "COLUMNS": "120"},
    )
