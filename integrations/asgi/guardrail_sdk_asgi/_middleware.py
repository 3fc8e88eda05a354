"""The middleware: which requests are guarded, and what is refused before anything is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from guardrail_sdk import ConfigError, Guard
from guardrail_sdk_asgi._codec import BodyCodec, Request
from guardrail_sdk_asgi._exchange import Exchange, Guarded
from guardrail_sdk_asgi._refusal import Refusal
from guardrail_sdk_asgi._route import GuardedRoute
from guardrail_sdk_asgi._types import (
    App,
    Headers,
    Receive,
    Scope,
    Send,
    content_length,
    headers_of,
    media_types,
    values,
)

_MIB: Final = 1 << 20
_POLICY_VIOLATION: Final = 1008


class GuardMiddleware:
    """ASGI middleware that guards the chat endpoints of an app.

    A request to a guarded route is judged before the app sees it, and its response before the
    client does; a stream is judged and released window by window. All other requests pass as if
    there were no guard. It is pure ASGI: nothing is collected that needn't be.

    What is blocked or can't be judged is answered by an error, as JSON with a status of 400 and
    more; in a stream that has begun, by a last event `error` or a last line. A stream of plain text
    has no place for an error: there, `Blocked` is raised, and the server breaks the connection.
    The app is cancelled.

    Examples:
        >>> from fastapi import FastAPI
        >>> from guardrail_sdk import Guard
        >>> app = FastAPI()
        >>> app.add_middleware(GuardMiddleware, Guard(), [GuardedRoute(path="/chat")])

    Args:
        app: The app to guard.
        guard: What judges.
        routes: What is guarded. The first route that fits a request counts.
        max_request_bytes: The most bytes that the body of a guarded request may have.
        max_response_bytes: The most bytes of a response that may be held back: of all of it if it
            is JSON, of what waits for its verdict if it is a stream. More is withheld.

    Raises:
        ConfigError: If no route is given, or the policy's `stream` is `flag` and the guard has no
            hook `after_output`.
    """

    def __init__(
        self,
        app: App,
        guard: Guard,
        routes: Sequence[GuardedRoute],
        *,
        max_request_bytes: int = _MIB,
        max_response_bytes: int = 4 * _MIB,
    ) -> None:
        if not routes:
            raise ConfigError("No route is guarded: pass GuardedRoute(path=...), or no guard.")
        self.app = app
        self._max_request_bytes = max_request_bytes
        self._max_response_bytes = max_response_bytes
        self._guarded: list[tuple[GuardedRoute, Guarded]] = [
            (route, guard.wrap(Exchange.respond, codec=BodyCodec(route, guard.codec)))
            for route in routes
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, websocket or lifespan."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        for route, guarded in self._guarded:
            if route.guards(scope):
                await self._serve(route, guarded, scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _serve(
        self, route: GuardedRoute, guarded: Guarded, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            if route.websocket:
                await self.app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if scope["type"] != "http":
            raise ConfigError(f"A guarded path was asked for by {scope['type']}: it's not known.")
        refusal = self._unread(headers_of(scope))
        body = b"" if refusal else await self._body(receive)
        if body is None:
            return  # the client is gone
        if len(body) > self._max_request_bytes:
            refusal = self._too_large()
        if refusal is not None:
            await refusal.send(send)
            return
        exchange = Exchange(self.app, scope, receive, send, self._max_response_bytes)
        await exchange.run(guarded, Request(body))

    def _unread(self, headers: Headers) -> Refusal | None:
        """Return why a request with these headers is refused; None if its body is to be read."""
        if (content_length(headers) or 0) > self._max_request_bytes:
            return self._too_large()
        if any(value not in ("", "identity") for value in values(headers, b"content-encoding")):
            return _unsupported("Its body is compressed: send it as it is.")
        types = media_types(headers)
        if not types or not all(
            (media == "application/json" or media.endswith("+json"))
            and charset in ("", "utf-8", "utf8")
            for media, charset in types
        ):
            return _unsupported("Send JSON in UTF-8, with the content type application/json.")
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the body, or a bit more of it than is allowed; None if the client hung up."""
        body = bytearray()
        more = True
        while more and len(body) <= self._max_request_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            portion = message.get("body") or b""
            if isinstance(portion, bytes | bytearray | memoryview):
                body += portion
            more = bool(message.get("more_body", False))
        return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal(
            status=413,
            type="guardrail_too_large",
            message=f"The request has more than {self._max_request_bytes} bytes.",
            stage="input",
        )


def _unsupported(problem: str) -> Refusal:
    return Refusal(
        status=415,
        type="guardrail_unreadable",
        message=f"The request can't be judged, so it is refused. {problem}",
        stage="input",
    )
