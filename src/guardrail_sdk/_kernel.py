"""Which kernel a model runs with on this machine: asked for, remembered or measured."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, cast, get_args

from guardrail_sdk import _cache
from guardrail_sdk._errors import ArtifactError, ConfigError
from guardrail_sdk._expand import Kernel
from guardrail_sdk.artifact import Artifact

VARIABLE: Final = "GUARDRAIL_KERNEL"
KERNELS: Final[tuple[Kernel, ...]] = get_args(Kernel)
# What is faster by less than this isn't worth its memory.
_WORTH: Final = 0.9
# Bytes for each of INT4's while a graph is expanded and loaded: the file, its copy, the packed one.
_PEAK: Final[dict[Kernel, int]] = {"int4": 0, "int8": 6, "float32": 24}
_SPARE: Final = 128 * 2**20


def asked() -> Kernel | None:
    """Return the kernel that the environment asks for; None to choose.

    Raises:
        ConfigError: If there is no such kernel.
    """
    name = os.environ.get(VARIABLE, "auto")
    if name in KERNELS:
        return name
    if name == "auto":
        return None
    raise ConfigError(f"{VARIABLE} is {name!r}: use auto, {', '.join(KERNELS)}.")


def choose(artifact: Artifact, seconds: Callable[[Kernel], float]) -> Kernel:
    """Return the fastest kernel for `artifact` on this machine.

    It is measured once and remembered in the user's cache. Where nothing can be remembered,
    it isn't measured for every process anew: the file runs as it stands.

    Args:
        artifact: The model.
        seconds: Runs a prompt of usual length with a kernel; returns how long that takes.
    """
    name = f"kernel-{_key(artifact)}"
    known = _cache.read(name)
    if known is not None and known.decode(errors="replace") in KERNELS:
        return cast("Kernel", known.decode())
    if not _cache.write(name, b"int4"):
        return "int4"
    best: Kernel = "int4"
    least = seconds(best)
    for kernel in KERNELS[1:]:
        if not has_room(artifact, kernel):
            continue
        # A graph that can't be expanded runs as it stands.
        with suppress(ArtifactError):
            taken = seconds(kernel)
            if taken < least * _WORTH:
                best, least = kernel, taken
    _cache.write(name, best.encode())
    return best


def has_room(artifact: Artifact, kernel: Kernel) -> bool:
    """Return whether memory suffices to expand `artifact`; True where that isn't known."""
    stored = sum((artifact.folder / name).stat().st_size for name in artifact.manifest.files)
    needed = _PEAK[kernel] * stored + _SPARE
    return all(free >= needed for free in _free_bytes())


def _free_bytes() -> list[int]:
    """Return the memory that the machine and this process's control group have left."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(free.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return found


def _key(artifact: Artifact) -> str:
    """Return a hash of all that the choice depends on."""
    about = (artifact.sha256, version("onnxruntime"), version("guardrail-sdk"), _processor())
    return hashlib.sha256(repr((about, os.cpu_count())).encode()).hexdigest()[:32]


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line
    return f"{platform.machine()} {platform.processor()}"
