"""Guards a client where every request of all its resources comes together: in `request`."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Mapping,
)
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast

from openai import AsyncOpenAI, AsyncStream, OpenAI, Stream
from openai._models import FinalRequestOptions

from guardrail_sdk import CheckResult, ConfigError, Decision, Guard
from guardrail_sdk_openai._endpoint import Endpoint
from guardrail_sdk_openai._routes import endpoint_of
from guardrail_sdk_openai._streams import GuardedAsyncStream, GuardedStream
from guardrail_sdk_openai._verdicts import attach

ClientT = TypeVar("ClientT", OpenAI, AsyncOpenAI)
OnBlock = Literal["raise", "content_filter"]
"""What a block leads to: the exception `Blocked`, or a reply that the content was filtered."""

_RAW_HEADER = "x-stainless-raw-response"


def guard_client(client: ClientT, guard: Guard, *, on_block: OnBlock = "raise") -> ClientT:
    """Return a client of the same kind whose calls are guarded; `client` itself isn't changed.

    What is sent is judged before it leaves, and what comes back before it is returned; a stream's
    events are held until the text in them was judged. Requests that can't be guarded are refused
    with a `ConfigError`, and so are those that aren't known. The two share their connections: to
    close one closes both.

    Args:
        client: An `OpenAI` or `AsyncOpenAI`, or a client of a class derived from these.
        guard: What judges.
        on_block: `raise` to raise `Blocked`; `content_filter` to return a reply without text
            whose finish reason is `content_filter` (of a response: which is incomplete for that
            reason), and to end a stream with it. Where such a reply has no place, as in a raw
            response, `Blocked` is raised all the same.

    Raises:
        ConfigError: If an argument is wrong.
    """
    given = cast("object", client)
    if not isinstance(given, OpenAI | AsyncOpenAI):
        raise ConfigError(f"client is {type(given).__name__}: pass an OpenAI or AsyncOpenAI.")
    if isinstance(given, _Guarded):
        raise ConfigError("This client is guarded already.")
    if on_block not in ("raise", "content_filter"):
        raise ConfigError("on_block must be `raise` or `content_filter`.")
    clone: ClientT = object.__new__(_guarded_class(type(client)))
    vars(clone).update(vars(client.copy()), _guarding=_Guarding(guard, on_block))
    return clone


@dataclass(frozen=True, slots=True)
class _Guarding:
    guard: Guard
    on_block: OnBlock


@dataclass(frozen=True, slots=True)
class _Withheld:
    """Stands for a blocked reply until it is known what takes its place."""

    decision: Decision


@dataclass(slots=True, kw_only=True)
class _Call:
    """One guarded request, and what came of it so far."""

    guarding: _Guarding
    endpoint: Endpoint
    cast_to: object
    options: FinalRequestOptions
    stream: bool
    checks: list[CheckResult] = field(default_factory=list[CheckResult])
    source: object = None

    def guarded(self, send: Callable[..., object]) -> Callable[..., object]:
        """Return a function of the request's body that sends it if it may, and judges the reply."""
        return self.guarding.guard.wrap(
            send,
            codec=self.endpoint,
            on_block=_Withheld if self._can_replace() else None,
            stages=self.endpoint.stages,
            on_check=self.checks.append,
        )

    def _can_replace(self) -> bool:
        raw = _RAW_HEADER in _header_names(self.options)
        known = self.stream or self.cast_to in self.endpoint.types
        types = self.endpoint.types
        return self.guarding.on_block == "content_filter" and bool(types) and known and not raw

    def with_body(self, body: object) -> FinalRequestOptions:
        """Return the request's options with another body."""
        return self.options.model_copy(update={"json_data": body})

    def received(self, reply: object) -> object:
        """Take what the client returned; refuse a stream that isn't one."""
        if self.stream and not isinstance(reply, Stream | AsyncStream):
            raise ConfigError(f"A stream of type {type(reply).__name__} can't be guarded.")
        self.source = cast("object", reply)
        return self.source

    def whole(self, reply: object) -> object:
        """Return a reply that may be told, with its checks."""
        if isinstance(reply, _Withheld):
            reply = self.endpoint.reply()
            parse = self.options.post_parser
            reply = cast("object", parse(reply)) if callable(parse) else reply
        attach(reply, self.checks)
        return reply

    def told(self, events: object) -> Generator[object, None, None]:
        """Yield the events that may be told."""
        if isinstance(events, _Withheld):
            yield from self.endpoint.ending()
            return
        with closing(cast("Generator[object, None, None]", events)) as held:
            for event in held:
                if isinstance(event, _Withheld):
                    yield from self.endpoint.ending()
                else:
                    yield self.endpoint.released(event)

    async def told_async(self, events: object) -> AsyncGenerator[object, None]:
        """Yield the events that may be told."""
        if isinstance(events, _Withheld):
            for event in self.endpoint.ending():
                yield event
            return
        async with aclosing(cast("AsyncGenerator[object, None]", events)) as held:
            async for event in held:
                if isinstance(event, _Withheld):
                    for last in self.endpoint.ending():
                        yield last
                else:
                    yield self.endpoint.released(event)


if TYPE_CHECKING:

    class _Client:
        """What the classes below find in the client's own class, which is mixed in later."""

        base_url: object
        responses: object

        def request(self, cast_to: object, options: FinalRequestOptions, **how: object) -> Any: ...
        def copy(self, **changes: object) -> Any: ...

else:
    _Client = object


class _Guarded(_Client):
    """What guarded clients of both kinds share."""

    _guarding: _Guarding

    def _call(self, cast_to: object, options: FinalRequestOptions, stream: bool) -> _Call | None:
        endpoint = endpoint_of(options.method, options.url, str(self.base_url))
        if endpoint is None:
            return None
        raw = _header_names(options).get(_RAW_HEADER)
        if "output" in endpoint.stages and (raw == "stream" or (raw and stream)):
            raise ConfigError(
                "with_streaming_response, and a stream of with_raw_response, hand out a body that "
                "nobody has judged: call the method itself, or with_raw_response without stream."
            )
        return _Call(
            guarding=self._guarding,
            endpoint=endpoint,
            cast_to=cast_to,
            options=_merged(options),
            stream=stream,
        )

    def copy(self, **changes: object) -> Any:
        """Return a guarded copy of this client."""
        clone = super().copy(**changes)
        vars(clone)["_guarding"] = self._guarding
        return clone

    with_options = copy

    @property
    def responses(self) -> Any:
        """The responses, but for their connections."""
        resource: Any = super().responses

        def connect(*_: object, **__: object) -> NoReturn:
            """Refuse."""
            _refuse("responses.connect")

        vars(resource)["connect"] = connect
        return resource

    @property
    def beta(self) -> NoReturn:
        """Refused."""
        _refuse("beta")

    @property
    def live(self) -> NoReturn:
        """Refused."""
        _refuse("live")

    @property
    def realtime(self) -> NoReturn:
        """Refused."""
        _refuse("realtime")


class _GuardedSync(_Guarded):
    def request(self, cast_to: object, options: FinalRequestOptions, **how: object) -> object:
        """Send a request if it may be sent; return what may be told of the reply."""
        call = self._call(cast_to, options, bool(how.get("stream")))
        send = partial(super().request, cast_to)
        if call is None:
            return send(options, **how)

        def chat(body: object) -> object:
            return call.received(send(call.with_body(body), **how))

        reply = call.guarded(chat)(call.options.json_data)
        if not call.stream:
            return call.whole(reply)
        source = cast("Stream[object] | None", call.source)
        stream = GuardedStream(call.told(reply), source)
        attach(stream, call.checks)
        return stream


class _GuardedAsync(_Guarded):
    async def request(self, cast_to: object, options: FinalRequestOptions, **how: object) -> object:
        """Send a request if it may be sent; return what may be told of the reply."""
        call = self._call(cast_to, options, bool(how.get("stream")))
        send = partial(super().request, cast_to)
        if call is None:
            return await send(options, **how)

        async def chat(body: object) -> object:
            return call.received(await send(call.with_body(body), **how))

        reply: Any = await cast("Any", call.guarded(chat)(call.options.json_data))
        if not call.stream:
            return call.whole(reply)
        source = cast("AsyncStream[object] | None", call.source)
        stream = GuardedAsyncStream(call.told_async(reply), source)
        attach(stream, call.checks)
        return stream


@cache
def _guarded_class(kind: type[Any]) -> type[Any]:
    mixin = _GuardedAsync if issubclass(kind, AsyncOpenAI) else _GuardedSync
    return type(f"Guarded{kind.__name__}", (mixin, kind), {"__module__": kind.__module__})


def _refuse(name: str) -> NoReturn:
    raise ConfigError(
        f"{name} goes around the guard, so a guarded client doesn't offer it: use the client that "
        "isn't guarded, and guard what you do with it."
    )


def _header_names(options: FinalRequestOptions) -> Mapping[str, object]:
    headers = options.headers
    if not isinstance(headers, Mapping):
        return {}
    return {name.lower(): value for name, value in headers.items()}


def _merged(options: FinalRequestOptions) -> FinalRequestOptions:
    """Return the options with the body that is really sent, `extra_body` included."""
    body: object = options.json_data
    if options.content is not None or not (body is None or isinstance(body, Mapping)):
        raise ConfigError("A guarded request must have a JSON object as its body.")
    if options.extra_json is not None:
        body = {**cast("Mapping[str, object]", body or {}), **options.extra_json}
    return options.model_copy(update={"json_data": body, "extra_json": None})
