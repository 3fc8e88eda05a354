"""The user's cache: whole and unharmed, or nothing at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guardrail_sdk import _cache

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX rights")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "guardrail-sdk"


def test_what_is_kept_is_found_again(folder: Path) -> None:
    assert _cache.read("a") is None
    assert _cache.write("a", b"one")
    assert _cache.write("a", b"two")
    assert _cache.read("a") == b"two"
    assert [path.name for path in folder.iterdir()] == ["a.guardrail"]


@posix
def test_the_folder_is_the_users_alone(folder: Path) -> None:
    _cache.write("a", b"one")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert _cache.read("a") is None, "others could have looked, and after a chmod written"
    assert not _cache.write("b", b"two")


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "longer"])
def test_a_harmed_file_is_not_read(folder: Path, harm: str) -> None:
    _cache.write("a", b"contents")
    path = folder / "a.guardrail"
    whole = path.read_bytes()
    harmed = {
        "cut": whole[:-1],
        "flip": whole[:-1] + bytes([whole[-1] ^ 1]),
        "empty": b"",
        "longer": whole + b"x",
    }
    path.write_bytes(harmed[harm])
    assert _cache.read("a") is None


@posix
def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    _cache.write("a", b"contents")
    (folder / "a.guardrail").rename(tmp_path / "elsewhere")
    (folder / "a.guardrail").symlink_to(tmp_path / "elsewhere")
    assert _cache.read("a") is None
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert not _cache.write("b", b"two")


@posix
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root")
def test_a_folder_of_somebody_else_is_not_used(folder: Path) -> None:
    _cache.write("a", b"contents")
    os.chown(folder, 12345, 12345)
    assert _cache.read("a") is None
    assert not _cache.write("b", b"two")


def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cache.write("a", b"old")

    def full(path: Path, contents: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert not _cache.write("a", b"new")
    assert _cache.read("a") == b"old"
    assert [path.name for path in folder.iterdir()] == ["a.guardrail"]


@posix
def test_a_process_killed_while_writing_leaves_nothing_to_read(folder: Path) -> None:
    script = (
        "import pathlib, time\n"
        "from guardrail_sdk import _cache\n"
        "def half(path, contents):\n"
        "    with path.open('wb') as file:\n"
        "        file.write(contents[: len(contents) // 2]); file.flush()\n"
        "        print('half', flush=True); time.sleep(60)\n"
        "pathlib.Path.write_bytes = half\n"
        "_cache.write('a', bytes(1000))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    (left,) = folder.iterdir()
    assert _cache.read("a") is None
    _cache.write("b", b"two")
    assert left.exists(), "another process may still be writing it"
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    _cache.write("b", b"two")
    assert [path.name for path in folder.iterdir()] == ["b.guardrail"]


def test_the_newest_files_stay(folder: Path) -> None:
    for number in range(40):
        _cache.write(f"file-{number}", b"x")
        os.utime(folder / f"file-{number}.guardrail", (number, number))
    assert _cache.read("file-39") == b"x"
    assert _cache.read("file-0") is None
    assert len(list(folder.iterdir())) <= 17


def test_files_of_others_stay(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    for number in range(40):
        (folder / f"thesis-{number}.txt").write_text("x")
        os.utime(folder / f"thesis-{number}.txt", (0, 0))
    (folder.parent / "beside.guardrail").write_text("x")
    _cache.write("a", b"one")
    assert len(list(folder.iterdir())) == 41
    assert (folder.parent / "beside.guardrail").exists()


@posix
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_read(folder: Path, kind: str) -> None:
    _cache.write("b", b"two")
    path = folder / "a.guardrail"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = len(os.listdir("/dev/fd")) if Path("/dev/fd").exists() else 0
    for _ in range(5):
        assert _cache.read("a") is None
    if before:
        assert len(os.listdir("/dev/fd")) == before


def test_what_was_dropped_is_gone(folder: Path) -> None:
    _cache.write("a", b"one")
    _cache.drop("a")
    _cache.drop("never there")
    assert _cache.read("a") is None


def test_without_a_place_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "file" / "below"))
    assert not _cache.write("a", b"one")
    assert _cache.read("a") is None
