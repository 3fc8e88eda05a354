"""The documentation is true: its code runs, its commands parse, its links lead somewhere.

A fence of Python runs after those before it on its page.
What follows `print(...)  # ` or `#> ` is what it must print. A fence with a title is a file.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest
import yaml
from stand_in import stand_in

import guardrail_sdk
from guardrail_sdk import Policy
from guardrail_sdk.cli import _parser

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in (
        ROOT / "README.md",
        ROOT / "model_build" / "README.md",
        ROOT / "integrations" / "README.md",
        *DOCS.rglob("*.md"),
    )
    if path.exists()
)
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One fenced block of a page."""

    language: str
    title: str | None
    tested: bool
    line: int
    code: str


def fences(page: Path) -> Iterator[Fence]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        title = re.search(r'title="([^"]+)"', found[2])
        yield Fence(
            language=found[1],
            title=title and title[1],
            tested="notest" not in found[2],
            line=text.count("\n", 0, found.start()) + 1,
            code=found[3],
        )


def commands(page: Path) -> list[str]:
    """Return what the page says to type into a shell, one command each."""
    lines = "\n".join(fence.code for fence in fences(page) if fence.language == "console")
    return re.findall(r"^\$ (.+)$", lines.replace("\\\n", " "), re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@each_page
@pytest.mark.parametrize("model", ["stand-in", "bundled"])
def test_code_runs_and_prints_what_it_shows(
    model: str,
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if model == "stand-in":
        stand_in(monkeypatch)
    monkeypatch.delenv("GUARDRAIL_MODEL", raising=False)
    monkeypatch.delenv("GUARDRAIL_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for fence in fences(page):
        if fence.title is not None:
            Path(fence.title).write_text(fence.code, encoding="utf-8")
        if fence.language != "python" or not fence.tested:
            continue
        run(fence, page, names)
        shown = re.findall(r"^(?:\s*print\(.*\)  # |#> ?)(.*)$", fence.code, re.MULTILINE)
        printed = capsys.readouterr().out.splitlines()
        assert not shown or printed == shown, f"{page.name}, line {fence.line}"


def run(fence: Fence, page: Path, names: dict[str, object]) -> None:
    """Run a fence; one that awaits runs on an event loop."""
    code = compile(
        "\n" * fence.line + fence.code,
        str(page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    if not awaits(code):
        exec(code, names)
        return

    async def awaited() -> None:
        await eval(code, names)

    asyncio.run(awaited())


def awaits(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_COROUTINE)


@each_page
def test_commands_exist(page: Path) -> None:
    for command in commands(page):
        for part in re.split(r"\s(?:&&|\||>|<)\s", command):
            words = shlex.split(part, comments=True)
            if words[0] == "guardrail":
                _parser().parse_args(words[1:])
            elif words[0] == "guardrail-build":
                source = ROOT / "model_build" / "guardrail_model_build" / "cli.py"
                known = re.findall(r'"(--[a-z]+)"', source.read_text(encoding="utf-8"))
                assert {word for word in words if word.startswith("--")} <= {*known, "--help"}
            elif words[0] == "make":
                targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert set(words[1:]) <= set(targets), command
            elif Path(words[0]).name.startswith("python"):
                assert all((ROOT / word).exists() for word in words if word.endswith(".py"))
            recipes = [word for word in words if word.endswith(".yaml") and "/" in word]
            assert all((ROOT / recipe).exists() for recipe in recipes), command


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if page.parent == DOCS:
            assert DOCS in linked.parents, (
                f"{target} is not part of the site that {page.name} is in"
            )
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """Return what a link can point at: headings, and the names that a reference page lists."""
    text = prose(page)
    headings: list[str] = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", line).strip().lower()) for line in headings
    }
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def test_policy_files_are_valid(tmp_path: Path) -> None:
    files = [fence for fence in fences(DOCS / "policy.md") if fence.language == "yaml"]
    assert files
    for fence in files:
        path = tmp_path / "policy.yaml"
        path.write_text(fence.code, encoding="utf-8")
        assert Policy.from_file(path) != Policy()


def test_the_recipe_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "model_build"), *sys.path])
    recipe = importlib.import_module("guardrail_model_build.recipe").Recipe
    files = [fence for fence in fences(DOCS / "build-a-model.md") if fence.language == "yaml"]
    assert files
    for fence in files:
        path = tmp_path / "recipe.yaml"
        path.write_text(fence.code, encoding="utf-8")
        assert recipe.load(path).name


def test_the_reference_lists_every_public_name() -> None:
    listed = anchors(DOCS / "reference.md")
    assert {f"guardrail_sdk.{name}" for name in guardrail_sdk.__all__} <= listed


def pages_in(navigation: list[dict[str, str | list[dict[str, str]]]]) -> Iterator[str]:
    for entry in navigation:
        for page in entry.values():
            if isinstance(page, str):
                yield page
            else:
                yield from (inner for each in page for inner in each.values())


def test_the_site_shows_every_page() -> None:
    config = yaml.safe_load((DOCS / "config" / "mkdocs.yml").read_text(encoding="utf-8"))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(pages_in(config["nav"])) == there
