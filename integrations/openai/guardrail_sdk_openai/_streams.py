"""Guarded streams: still the client's own kind, but all that comes out of them was judged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import suppress
from typing import NoReturn, TypeVar, cast

import httpx2
from openai import AsyncStream, Stream

from guardrail_sdk import ConfigError

EventT = TypeVar("EventT")


class GuardedStream(Stream[EventT]):
    """A stream whose events come from a guarded generator.

    Args:
        events: The generator.
        source: The stream that it guards; None if no request was sent.
    """

    def __init__(
        self, events: Generator[EventT, None, None], source: Stream[EventT] | None
    ) -> None:
        vars(self).update({} if source is None else vars(source))
        self.response = _sealed(None if source is None else source.response, events)
        self._iterator = events

    def __iter__(self) -> Iterator[EventT]:
        """Return the stream itself: to leave a loop doesn't end it."""
        return self


class GuardedAsyncStream(AsyncStream[EventT]):
    """The same for an async stream."""

    def __init__(
        self, events: AsyncGenerator[EventT, None], source: AsyncStream[EventT] | None
    ) -> None:
        vars(self).update({} if source is None else vars(source))
        self.response = _sealed(None if source is None else source.response, events)
        self._iterator = events

    def __aiter__(self) -> AsyncIterator[EventT]:
        """Return the stream itself: to leave a loop doesn't end it."""
        return self


class _SealedResponse(httpx2.Response):
    """A response whose status, headers and connection are there, but not its body.

    To close it closes what guards its events, too: that is all that the client's helpers close.
    """

    __slots__ = ("events",)  # all else is shared with the response itself
    events: object

    def close(self) -> None:
        """Close the response and the guard."""
        super().close()
        with suppress(ValueError):  # another thread waits for an event: the response ends that
            cast("Generator[object, None, None]", self.events).close()

    async def aclose(self) -> None:
        """Close the response and the guard."""
        await super().aclose()
        with suppress(RuntimeError):  # another task waits for an event: the response ends that
            await cast("AsyncGenerator[object, None]", self.events).aclose()

    def _refused(self, *_: object, **__: object) -> NoReturn:
        raise ConfigError(
            "The body of a guarded stream can't be read by itself: iterate over the stream."
        )

    @property
    def content(self) -> bytes:
        """Refused."""
        return self._refused()

    @property
    def text(self) -> str:
        """Refused."""
        return self._refused()

    json = read = iter_raw = iter_bytes = iter_text = iter_lines = _refused
    aread = aiter_raw = aiter_bytes = aiter_text = aiter_lines = _refused


def _sealed(response: httpx2.Response | None, events: object) -> httpx2.Response:
    """Return a view of the same response; of an empty one if no request was sent."""
    view = object.__new__(_SealedResponse)
    view.__dict__ = (httpx2.Response(200) if response is None else response).__dict__
    view.events = events
    return view
