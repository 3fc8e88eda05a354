"""Makes things that are costly or hold threads once per process, also in a forked child."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class PerProcess(Generic[KeyT, ValueT]):
    """Values by key, each made at its first use in a process, by one thread while others wait.

    What a parent process made is not used after a fork: its threads don't exist in the child.
    Nor is it ever freed there, since that would wait for them. Locks are per process, too, since
    a fork copies a lock as held if another thread of the parent held it.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, KeyT], ValueT] = {}
        self._locks: dict[int, Lock] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._keep_for_ever)

    def get(self, key: KeyT, make: Callable[[], ValueT]) -> ValueT:
        """Return the value of `key`; made by `make` if this process has none yet."""
        process = os.getpid()
        place = (process, key)
        if place not in self._values:
            with self._locks.setdefault(process, Lock()):
                if place not in self._values:
                    self._values[place] = make()
        return self._values[place]

    def _keep_for_ever(self) -> None:
        """Keep the parent's values also when the interpreter ends, which frees what modules hold.

        One reference that nobody gives back is the only way to tell it.
        """
        for value in self._values.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
