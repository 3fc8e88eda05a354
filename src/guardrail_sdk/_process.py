"""Makes things that are costly or hold threads once per process, also in a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class PerProcess(Generic[KeyT, ValueT]):
    """Values by key, each made at its first use in a process, by one thread while others wait.

    What a parent process made is kept but not used after a fork: its threads don't exist in the
    child, and to free it would wait for them. Locks are per process, too, since a fork copies a
    lock as held if another thread of the parent held it.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, KeyT], ValueT] = {}
        self._locks: dict[int, Lock] = {}

    def get(self, key: KeyT, make: Callable[[], ValueT]) -> ValueT:
        """Return the value of `key`; made by `make` if this process has none yet."""
        process = os.getpid()
        place = (process, key)
        if place not in self._values:
            with self._locks.setdefault(process, Lock()):
                if place not in self._values:
                    self._values[place] = make()
        return self._values[place]
