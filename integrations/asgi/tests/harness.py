"""What tests serve apps with: a hand-made ASGI client, and a real server on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import uvicorn
from guardrail_sdk_asgi import GuardedRoute, GuardMiddleware
from guardrail_sdk_asgi._types import App, Event, Receive, Scope, Send

from guardrail_sdk import Guard
from guardrail_sdk.testing import FakeModel

BAD = "bomb"
SENTENCE = "The soup needs two carrots, an onion, a little salt and about forty minutes of time. "


def guarded(app: App, guard: Guard | None = None, **route: object) -> GuardMiddleware:
    """Return `app` with its path /chat guarded."""
    fields: dict[str, object] = {"path": "/chat", **route}
    return GuardMiddleware(
        app,
        guard or Guard(model=FakeModel([BAD])),
        [GuardedRoute(**fields)],  # type: ignore[arg-type]  # checked when it is made
    )


def asking(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def chunk(content: str) -> str:
    delta = {"choices": [{"index": 0, "delta": {"content": content}}]}
    return json.dumps(delta, ensure_ascii=False)


def sse(*contents: str) -> bytes:
    return "".join(f"data: {chunk(content)}\n\n" for content in contents).encode()


@dataclass
class Answered:
    """What a client got."""

    messages: list[Event] = field(default_factory=list["Event"])

    @property
    def status(self) -> object:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        found = self.messages[0]["headers"]
        assert isinstance(found, list)
        return {name.decode(): value.decode() for name, value in found}  # type: ignore[misc]

    @property
    def body(self) -> bytes:
        return b"".join(bytes(message.get("body", b"")) for message in self.messages[1:])  # type: ignore[arg-type]

    @property
    def error(self) -> dict[str, str | None]:
        """The error of a refusal, or of the last event or line of a stream."""
        last = re.split(r"\n", self.body.decode().strip())[-1].removeprefix("data: ")
        return json.loads(last)["error"]

    @property
    def complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False


@dataclass
class Client:
    """Asks an ASGI app once, without a server.

    `body` may come in portions. `hang_up` may be set at any time.
    """

    body: bytes | Sequence[bytes] = b'{"prompt": "What is for dinner?"}'
    method: str = "POST"
    path: str = "/chat"
    headers: Sequence[tuple[str, str]] = (("content-type", "application/json"),)
    scope: dict[str, object] = field(default_factory=dict[str, object])
    on_send: Callable[[Event], Awaitable[None]] | None = None
    hang_up: anyio.Event | None = None

    async def ask(self, app: App) -> Answered:
        portions = [self.body] if isinstance(self.body, bytes) else list(self.body)
        answered = Answered()
        over = self.hang_up or anyio.Event()

        async def receive() -> Event:
            if portions:
                portion = portions.pop(0)
                return {"type": "http.request", "body": portion, "more_body": bool(portions)}
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Event) -> None:
            if self.on_send is not None:
                await self.on_send(message)
            answered.messages.append(message)
            if message.get("more_body") is False:
                over.set()

        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in self.headers],
            **self.scope,
        }
        await app(scope, receive, send)
        return answered


def ask(app: App, client: Client | None = None) -> Answered:
    """Ask once, on an event loop of its own."""
    return asyncio.run((client or Client()).ask(app))


@dataclass
class Says:
    """An app that answers with these portions, and notes what came of it."""

    portions: Sequence[bytes] = ()
    media: str | None = "text/event-stream"
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    after: Callable[[], Awaitable[None]] | None = None
    scopes: list[Scope] = field(default_factory=list["Scope"])
    bodies: list[bytes] = field(default_factory=list[bytes])
    sent: int = 0
    cancelled: bool = False
    receive: Receive | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.receive = receive
        body, more = b"", True
        while more:
            message = await receive()
            body += bytes(message.get("body", b""))  # type: ignore[arg-type]
            more = bool(message.get("more_body"))
        self.bodies.append(body)
        media = [] if self.media is None else [("content-type", self.media)]
        headers = [(name.encode(), value.encode()) for name, value in [*media, *self.headers]]
        try:
            start: Event = {"type": "http.response.start", "status": self.status}
            await send({**start, "headers": headers})
            for portion in self.portions:
                await send({"type": "http.response.body", "body": portion, "more_body": True})
                self.sent += 1
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if self.after is not None:
                await self.after()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise


@asynccontextmanager
async def serving(app: object) -> AsyncGenerator[str, None]:
    """Serve `app` with uvicorn on this event loop; yield its URL."""
    config = uvicorn.Config(app, lifespan="off", log_level="critical")  # type: ignore[arg-type]
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await server.startup(sockets=[listening])
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[listening])
