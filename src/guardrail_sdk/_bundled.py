"""The model that comes with the package, and the hash that its manifest must have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "models" / "guard-smollm2-135m-int4"
MANIFEST_SHA256: Final = "a15759d6ed602dc896217dc445661fe0581c478c0b2bf372c37166724e510e9a"
