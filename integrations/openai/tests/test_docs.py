"""What the documentation says is true: its code runs, and so does the example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from service import Asked, Events, Json, completion, plain, said, serving

from guardrail_sdk import Guard
from guardrail_sdk.testing import FakeModel

HERE = Path(__file__).parent.parent
PAGE = HERE.parent.parent / "docs" / "integrations" / "openai.md"


def answer(asked: Asked) -> Json | Events:
    return said("A soup. ") if asked.streamed else completion("A soup.")


@pytest.mark.parametrize("page", [HERE / "README.md", PAGE], ids=lambda page: page.name)
def test_code_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python[^\n]*\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    monkeypatch.setattr("guardrail_sdk.Guard", lambda: Guard(model=FakeModel(["bomb"])))
    with serving(answer) as service, plain(service.url) as client:

        def made(**_: object) -> openai.OpenAI:
            return client

        monkeypatch.setattr(openai, "OpenAI", made)
        names: dict[str, object] = {"__name__": page.stem}
        for code in blocks:
            exec(compile(code, str(page), "exec", dont_inherit=True), names)
    printed = capsys.readouterr().out
    assert ("block S2" if page.name == "README.md" else "content_filter") in printed


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
    assert "flour and water" in allowed
    assert "murder" not in stopped
    assert "[The assistant's message was judged unsafe" in stopped
    assert "[The user's message was judged unsafe" in refused
