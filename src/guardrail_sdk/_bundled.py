"""The model that comes with the package, and the hash that its manifest must have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "models" / "guard-smollm2-135m-int4"
MANIFEST_SHA256: Final = "0" * 64
