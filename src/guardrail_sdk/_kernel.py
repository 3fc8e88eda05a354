"""Which kernel a model runs with on this machine: asked for, remembered or measured."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

from guardrail_sdk import _cache
from guardrail_sdk._errors import ConfigError
from guardrail_sdk._expand import EXPANSION, Kernel
from guardrail_sdk._session import runtime_version
from guardrail_sdk.artifact import Artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIABLE: Final = "GUARDRAIL_KERNEL"
KERNELS: Final[tuple[Kernel, ...]] = get_args(Kernel)
# What is faster by less than this isn't worth its memory.
_WORTH: Final = 0.9
# Bytes for each of INT4's while a graph is expanded and loaded: the file, its copy, the packed one.
_PEAK: Final[dict[Kernel, int]] = {"int4": 0, "int8": 6, "float32": 24}
_SPARE: Final = 128 * 2**20
_GROUP: Final = Path("/sys/fs/cgroup")
_GROUP_FILES: Final = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_MEASURING: Final = "measuring since "
# A process that was killed meanwhile, perhaps for want of memory, is not followed by another soon.
_PATIENCE_S: Final = 600
# The bundled model's INT8 logits differ from INT4's by 3 % of their spread on these prompts.
_TOLERANCE: Final = 0.05


def asked() -> Kernel | None:
    """Return the kernel that the environment asks for; None to choose.

    Raises:
        ConfigError: If there is no such kernel.
    """
    name = os.environ.get(VARIABLE) or "auto"
    if name in KERNELS:
        return name
    if name == "auto":
        return None
    raise ConfigError(f"{VARIABLE} is {name!r}: use auto, {', '.join(KERNELS)}.")


class Trial(NamedTuple):
    """What a kernel did with a few prompts."""

    seconds: float
    logits: NDArray[np.float32]


def choose(artifact: Artifact, try_out: Callable[[Kernel], Trial]) -> Kernel:
    """Return the fastest kernel for `artifact` on this machine whose logits are INT4's, nearly.

    It is measured once and remembered in the user's cache. Where nothing can be remembered,
    it isn't measured for every process anew: the file runs as it stands. So it does while another
    process measures, and for a while after one that didn't come to an end.

    Args:
        artifact: The model.
        try_out: Runs the same prompts with a kernel.
    """
    name = f"kernel-{_key(artifact)}"
    known = (_cache.read(name) or b"").decode(errors="replace")
    if known in KERNELS:
        return known
    if _is_going_on(known) or not _cache.write(name, f"{_MEASURING}{int(time.time())}".encode()):
        return "int4"
    best: Kernel = "int4"
    stored = try_out(best)
    least = stored.seconds
    complete = True
    for kernel in KERNELS[1:]:
        if not has_room(artifact, kernel):
            complete = False
            continue
        # A graph that can't be expanded, for whatever reason, runs as it stands.
        with suppress(Exception):
            trial = try_out(kernel)
            if trial.seconds < least * _WORTH and _agree(stored.logits, trial.logits):
                best, least = kernel, trial.seconds
    if complete:
        _cache.write(name, best.encode())
    return best


def _is_going_on(known: str) -> bool:
    began = known.removeprefix(_MEASURING)
    return known != began and began.isdigit() and 0 <= time.time() - int(began) < _PATIENCE_S


def _agree(stored: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    """Return whether a kernel's logits differ from INT4's by little of what they say."""
    import numpy as np

    if found.shape != stored.shape or not np.isfinite(found).all():
        return False
    return bool(np.abs(found - stored).mean() <= _TOLERANCE * stored.std())


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
    for limit, used in _GROUP_FILES:
        with suppress(OSError, ValueError):
            most = int((_GROUP / limit).read_text(encoding="ascii"))
            found.append(most - int((_GROUP / used).read_text(encoding="ascii")))
    return found


def _key(artifact: Artifact) -> str:
    """Return a hash of all that the choice depends on."""
    about = (artifact.sha256, EXPANSION, runtime_version(), _processor(), os.cpu_count())
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line
    return f"{platform.machine()} {platform.processor()}"
