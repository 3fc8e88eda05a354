"""What the distribution promises: few dependencies, a light import, a small public surface."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import guardrail_sdk

ROOT = Path(__file__).parent.parent


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9-]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_the_runtime_dependencies_are_these_and_no_others() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    frozen = {"anyio", "numpy", "onnxruntime", "pydantic", "PyYAML", "rich", "tokenizers"}
    assert _names(project["dependencies"]) == frozen
    installed = {name.lower() for name in _names(requires("guardrail-sdk") or [])}
    assert installed == {name.lower() for name in frozen}


def test_importing_loads_nothing_heavy_and_no_framework() -> None:
    heavy = {
        *("numpy", "onnxruntime", "tokenizers", "rich", "yaml", "torch", "transformers"),
        *("asyncio", "trio", "uvloop", "guardrail_sdk._local", "guardrail_sdk.artifact"),
    }
    script = f"import sys, guardrail_sdk; print(sorted({heavy} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_what_is_exported_is_what_is_listed() -> None:
    public = {
        name
        for name, value in vars(guardrail_sdk).items()
        if not name.startswith("_") and not hasattr(value, "__path__") and name not in _MODULES
    }
    assert public == set(guardrail_sdk.__all__)
    assert len(guardrail_sdk.__all__) <= 25


_MODULES = {"annotations", "artifact", "cli", "evaluation", "prompt", "testing", "tokenizer"}


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == guardrail_sdk.__version__
    assert f"## {guardrail_sdk.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_is_typed() -> None:
    assert (Path(guardrail_sdk.__file__).parent / "py.typed").exists()
