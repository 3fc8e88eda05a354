"""The model that comes with the package, and the hash that its manifest must have."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "models" / "guard-e5-small-int4"
MANIFEST_SHA256: Final = "391e3de4084f84ea76b844ba7e19999900820342f0748afc7d23df2c4f3c7111"
