"""A folder of the user's own for what can be made again: read whole and unharmed, or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

VARIABLE: Final = "GUARDRAIL_CACHE"
_NAME: Final = "guardrail-sdk"
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_SUFFIX, _UNFINISHED = ".guardrail", ".guardrail-unfinished"
_NO_SURPRISES: Final = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)
_STALE_S: Final = 3600
_MOST_FILES: Final = 16


def read(name: str) -> bytes | None:
    """Return what was kept as `name`; None if there is nothing, or not what was written."""
    folder = _folder()
    if folder is None:
        return None
    try:
        # A link could lead to a file of somebody else, and a pipe would be waited for.
        handle = os.open(folder / _file(name), os.O_RDONLY | _NO_SURPRISES)
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or not _is_own(about):
            os.close(handle)
            return None
        with os.fdopen(handle, "rb") as file:
            digest, contents = file.read(_DIGEST_BYTES), file.read()
    except OSError:
        return None
    return contents if hashlib.sha256(contents).digest() == digest else None


def write(name: str, contents: bytes) -> bool:
    """Keep `contents` as `name`, whole or not at all; return whether it was kept.

    The files that were written first are dropped where there would be too many.
    """
    folder = _folder()
    if folder is None:
        return False
    try:
        with _unfinished(folder) as path:
            path.write_bytes(hashlib.sha256(contents).digest() + contents)
            path.replace(folder / _file(name))
        _tidy(folder)
    except OSError:
        return False
    return True


def _folder() -> Path | None:
    """Return the folder, made if missing; None where nothing can be kept safely."""
    try:
        folder = _place()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.lstat()
    except (OSError, RuntimeError):  # no home, no room, no rights
        return None
    private = sys.platform == "win32" or not about.st_mode & 0o077
    return folder if stat.S_ISDIR(about.st_mode) and _is_own(about) and private else None


def drop(name: str) -> None:
    """Forget what was kept as `name`."""
    folder = _folder()
    if folder is not None:
        with suppress(OSError):
            (folder / _file(name)).unlink()


def _file(name: str) -> str:
    return name + _SUFFIX


def _place() -> Path:
    """Return a folder of our own, also below one that is named: only our files are in it."""
    if own := os.environ.get(VARIABLE):
        return Path(own) / _NAME
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / _NAME


def _is_own(about: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or about.st_uid == os.getuid()


@contextmanager
def _unfinished(folder: Path) -> Generator[Path]:
    """Provide a file of this process alone, which is gone at the end unless it was renamed."""
    handle, name = tempfile.mkstemp(suffix=_UNFINISHED, dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Drop what killed processes left, and all but the newest files; others' stay."""
    ages: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with suppress(OSError):
            ages.append((time.time() - path.lstat().st_mtime, path))
    ages.sort(key=lambda one: one[0])
    finished = [path for _, path in ages if path.suffix == _SUFFIX]
    left = [path for age, path in ages if path.suffix == _UNFINISHED and age > _STALE_S]
    for path in [*finished[_MOST_FILES:], *left]:
        with suppress(OSError):
            path.unlink()
