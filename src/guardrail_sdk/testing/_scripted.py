"""The chat model behind an adapter under test: says what it is told to, notes what happens."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator, Sequence
from threading import Event

import anyio

_PATIENCE_S = 10.0
_PACE_S = 0.01


class ScriptedModel:
    """A chat model that answers with `pieces`, in whatever thread or loop the framework runs it.

    A test of an adapter builds its framework's model, or its fake server, on one of these: call
    `begin` where the request arrives, then take `pieces` (or `apieces`) for the answer.

    Args:
        pieces: The answer, in the pieces in which it is streamed.
        tool: The name of a tool that is called with the answer as its arguments; None to speak.
        hold: Wait after the piece of this index until `go` is set, and speak slowly from there on,
            so that whoever hung up meanwhile is noticed; None for neither.

    Attributes:
        calls: How often it was called.
        sent: How many pieces have left.
        started: Set once it was called.
        go: Lets a held model go on.
        ended: Set once an answer is over, whether sent, closed, or cancelled.
    """

    def __init__(
        self, pieces: Sequence[str], *, tool: str | None = None, hold: int | None = None
    ) -> None:
        self.tool = tool
        self.calls = 0
        self.sent = 0
        self.started = Event()
        self.go = Event()
        self.ended = Event()
        self._pieces = tuple(pieces)
        self._hold = hold

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self._pieces)

    @property
    def cut(self) -> bool:
        """Whether an answer ended before all of it was sent."""
        return self.ended.is_set() and self.sent < len(self._pieces)

    def begin(self) -> None:
        """Note a call."""
        self.calls += 1
        self.started.set()

    def pieces(self) -> Generator[str, None, None]:
        """Yield the answer; closing it is being cancelled.

        Raises:
            TimeoutError: If a held model is not let go for ten seconds.
        """
        try:
            for index, piece in enumerate(self._pieces):
                if self._hold is not None and index > self._hold:
                    time.sleep(_PACE_S)
                yield piece
                self.sent = index + 1
                if index == self._hold and not self.go.wait(_PATIENCE_S):
                    raise TimeoutError(f"The model was held for {_PATIENCE_S:.0f} s.")
        finally:
            self.ended.set()

    async def apieces(self) -> AsyncGenerator[str, None]:
        """Yield the answer without blocking the event loop.

        Raises:
            TimeoutError: If a held model is not let go for ten seconds.
        """
        try:
            for index, piece in enumerate(self._pieces):
                if self._hold is not None and index > self._hold:
                    await anyio.sleep(_PACE_S)
                yield piece
                self.sent = index + 1
                if index == self._hold:
                    await self._held()
        finally:
            self.ended.set()

    async def _held(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not self.go.is_set():
            if time.monotonic() > deadline:
                raise TimeoutError(f"The model was held for {_PATIENCE_S:.0f} s.")
            await anyio.sleep(0.005)
