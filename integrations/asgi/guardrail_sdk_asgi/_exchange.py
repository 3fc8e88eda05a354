"""One guarded request: the app on one side, the client on the other, the guard between them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Final, cast

import anyio
import anyio.lowlevel

from guardrail_sdk import Blocked, MessageError, Stage
from guardrail_sdk_asgi._codec import Request
from guardrail_sdk_asgi._framing import Kind, Piece, kind_of, splitter, whole
from guardrail_sdk_asgi._refusal import Refusal
from guardrail_sdk_asgi._types import (
    App,
    Event,
    Receive,
    Scope,
    Send,
    content_length,
    headers_of,
    without,
)

Response = Piece | AsyncGenerator[Piece, None]
Guarded = Callable[["Exchange", Request], Awaitable[Response]]

_log = logging.getLogger("guardrail_sdk_asgi")

# With these an app would send what is not read here, or not all at once.
_NOT_ASKED: Final = (b"accept-encoding", b"range", b"if-range")
# The extensions that only tell the app something; by others it would send what is not read here.
_INFORMATION: Final = ("tls",)
# What is said of a body before all of it is known, or of another one.
_OF_THE_BODY: Final = (
    b"content-length",
    b"content-digest",
    b"content-md5",
    b"digest",
    b"etag",
    b"repr-digest",
)


class Exchange:
    """Runs the app in the task that serves the request, and the guard in another.

    The app's messages are handed over one by one, so that it sends no faster than the client and
    the guard take. Its last one returns once all has left, so that what it does afterwards is
    only done if nothing was blocked.

    Args:
        app: What answers.
        scope: The request.
        receive: What says that the client is gone; the body was received already.
        send: What sends to the client.
        limit: The most bytes of a response that may be held back.
    """

    def __init__(self, app: App, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self._app = app
        self._scope = scope
        self._client_receive = receive
        self._client_send = send
        self._limit = limit
        self._request: Request | None = None
        self._replayed = False
        self._complete = False
        self._start: Event = {}
        self._started = False
        self._kind: Kind | None = None
        self._held = 0
        self._failure: Exception | None = None
        self._admitted = anyio.Event()
        self._answered = anyio.Event()
        self._gone = anyio.Event()
        self._all = anyio.CancelScope()
        self._answering = anyio.CancelScope()
        self._outbox, self._inbox = anyio.create_memory_object_stream[Event](0)

    async def run(self, guarded: Guarded, request: Request) -> None:
        """Judge the request, have the app answer it, judge the answer and send it.

        Raises:
            Exception: What the app or a hook raises; also what blocks a stream that has begun
                and has no place for an error, so that the server breaks the connection.
        """
        with self._outbox, self._inbox, self._all:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch)
                group.start_soon(self._answer, guarded, request)
                await self._admitted.wait()
                try:
                    await self._app(self._app_scope(), self._app_receive, self._app_send)
                except Exception as error:
                    self._fail(error)
                self._all.cancel()
        if self._failure is not None:
            raise self._failure

    async def respond(self, request: Request) -> Response:
        """Let the app begin, and return what it answers: a whole body or a stream of pieces."""
        self._request = request
        self._admitted.set()
        self._start = await self._next("http.response.start")
        body, more = await self._body()
        while more and not body:
            body, more = await self._body()
        if not body:
            return self._nothing()
        headers = headers_of(self._start)
        self._kind = kind = kind_of(headers)
        if kind is Kind.JSON or (kind is Kind.TEXT and content_length(headers) is not None):
            return await self._collected(kind, body, more)
        self._start["headers"] = without(headers, *_OF_THE_BODY)
        return self._pieces(kind, body, more)

    async def _nothing(self) -> AsyncGenerator[Piece, None]:
        for piece in ():
            yield piece

    async def _collected(self, kind: Kind, body: bytes, more: bool) -> Piece:
        collected = bytearray(body)
        while more:
            body, more = await self._body()
            collected += body
        return whole(kind, bytes(collected))

    async def _pieces(self, kind: Kind, body: bytes, more: bool) -> AsyncGenerator[Piece, None]:
        split = splitter(kind)
        for piece in split.feed(body):
            yield piece
        while more:
            body, more = await self._body()
            for piece in split.feed(body):
                yield piece
        for piece in split.finish():
            yield piece

    async def _body(self) -> tuple[bytes, bool]:
        """Return the next portion of the body, and whether there are more."""
        message = await self._next("http.response.body")
        portion = bytes(cast("bytes", message.get("body") or b""))
        self._held += len(portion)
        if self._held > self._limit:
            raise MessageError(
                f"More than {self._limit} bytes of the response would have to be held back: raise "
                "max_response_bytes, or stream."
            )
        return portion, bool(message.get("more_body", False))

    async def _next(self, expected: str) -> Event:
        message = await self._inbox.receive()
        if message.get("type") != expected:
            raise MessageError(
                f"The app sent {message.get('type')} in place of {expected}: it can't be judged."
            )
        return message

    async def _answer(self, guarded: Guarded, request: Request) -> None:
        try:
            with self._answering:
                await self._deliver(await guarded(self, request))
        except Blocked as blocked:
            await self._refuse(Refusal.of(blocked, self._stage), blocked)
        except MessageError as error:
            await self._refuse(Refusal.unreadable(error, self._stage), error)
        except Exception as error:
            self._fail(error)
        else:
            if self._answering.cancelled_caught and not self._admitted.is_set():
                self._all.cancel()
        finally:
            self._answered.set()
            self._inbox.close()

    @property
    def _stage(self) -> Stage:
        return "output" if self._admitted.is_set() else "input"

    async def _deliver(self, response: Response) -> None:
        """Send what was let through, as it came."""
        if isinstance(response, Piece):
            if response.changed:
                length = (b"content-length", str(len(response.raw)).encode())
                kept = without(headers_of(self._start), *_OF_THE_BODY)
                self._start["headers"] = [*kept, length]
            await self._emit(response.raw, more=False)
            return
        async with aclosing(response) as pieces:
            async for piece in pieces:
                self._held -= piece.size
                await self._emit(piece.raw, more=True)
        await self._emit(b"", more=False)

    async def _emit(self, raw: bytes, *, more: bool) -> None:
        if not self._started:
            self._started = True
            await self._send(self._start)
        await self._send({"type": "http.response.body", "body": raw, "more_body": more})

    async def _send(self, message: Event) -> None:
        """Send to the client; that it is gone ends the answer."""
        try:
            await self._client_send(message)
        except OSError:
            self._hang_up()
            await anyio.lowlevel.checkpoint()

    async def _refuse(self, refusal: Refusal, error: Blocked | MessageError) -> None:
        """Send an error in place of what was not let through, and cancel the app."""
        if isinstance(error, MessageError) and refusal.stage == "output":
            _log.error("A response to a guarded route was withheld: %s", error)
        if not self._started:
            await refusal.send(self._send)
        else:
            last = None if self._kind is None else refusal.last(self._kind)
            if last is None:
                self._fail(error)
                return
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
        self._all.cancel()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._all.cancel()

    async def _watch(self) -> None:
        """Wait for the client to hang up: there is nothing else that it can say."""
        try:
            message = await self._client_receive()
        except Exception as error:
            self._fail(error)
        else:
            if message.get("type") == "http.disconnect":
                self._hang_up()

    def _hang_up(self) -> None:
        self._gone.set()
        self._answering.cancel()

    def _app_scope(self) -> Scope:
        """Return the request as the app sees it, without the ways around the guard."""
        scope = dict(self._scope)
        headers = without(headers_of(scope), *_NOT_ASKED)
        extensions = scope.get("extensions")
        if isinstance(extensions, Mapping):
            known = cast("Mapping[str, object]", extensions)
            scope["extensions"] = {name: known[name] for name in _INFORMATION if name in known}
        if self._request is not None and content_length(headers) is not None:
            length = str(len(self._request.body)).encode()
            headers = [*without(headers, b"content-length"), (b"content-length", length)]
        scope["headers"] = headers
        return scope

    async def _app_receive(self) -> Event:
        if self._replayed or self._request is None:
            if not self._gone.is_set():  # no checkpoint: some only look in, in a cancelled scope
                await self._gone.wait()
            return {"type": "http.disconnect"}
        self._replayed = True
        return {"type": "http.request", "body": self._request.body, "more_body": False}

    async def _app_send(self, message: Event) -> None:
        if self._complete:
            raise RuntimeError(f"The app sent {message.get('type')} after its response was over.")
        last = message.get("type") == "http.response.body" and not message.get("more_body", False)
        self._complete = last
        try:
            await self._outbox.send(dict(message))
        except anyio.BrokenResourceError:
            self._lost()
        if last:
            await self._answered.wait()

    def _lost(self) -> None:
        """Do what a server does when an app sends to a client that is gone.

        Raises:
            OSError: If the server's version of ASGI says so.
        """
        asgi = cast("Mapping[str, str]", self._scope.get("asgi") or {})
        version = asgi.get("spec_version", "2.0")
        if tuple(int(part) for part in version.split(".")) >= (2, 4):
            raise OSError("The client is gone.")
