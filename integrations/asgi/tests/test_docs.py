"""What the documentation says is true: its code runs, and so does the example."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Client
from starlette.applications import Starlette

from guardrail_sdk import Guard
from guardrail_sdk.testing import FakeModel

HERE = Path(__file__).parent.parent
PAGE = HERE.parent.parent / "docs" / "integrations" / "asgi.md"


@pytest.mark.parametrize("page", [HERE / "README.md", PAGE], ids=lambda page: page.name)
def test_code_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python[^\n]*\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    monkeypatch.setattr("guardrail_sdk.Guard", lambda: Guard(model=FakeModel(["bomb"])))
    names: dict[str, object] = {"__name__": page.stem}
    exec(compile(code, str(page), "exec", dont_inherit=True), names)
    app = names["app"]
    assert isinstance(app, Starlette)
    answered = asyncio.run(Client(body=b'{"prompt": "soup", "question": "soup"}').ask(app))
    assert answered.status == (200 if page.name == "README.md" else 404)
    blocked = asyncio.run(Client(body=b'{"prompt": "bomb", "question": "bomb"}').ask(app))
    assert blocked.error["type"] == "guardrail_blocked"


def test_links_lead_somewhere() -> None:
    for page in (HERE / "README.md", PAGE):
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), target


def test_the_example_runs() -> None:
    run = subprocess.run(
        [sys.executable, str(HERE / "example.py")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    allowed, stopped, refused = run.stdout.strip().split("\n\n")
    assert "200\ndata: " in allowed
    assert "error" not in allowed
    assert "200\ndata: " in stopped
    assert "event: error" in stopped
    assert "murder" not in stopped
    assert "400\n{" in refused


def test_no_framework_is_needed() -> None:
    needed = importlib.metadata.requires("guardrail-sdk-asgi") or []
    assert sorted(re.split(r"[<>=]", name)[0] for name in needed) == ["anyio", "guardrail-sdk"]
