"""Guards a chat function of any kind: the function that comes back is of the same kind."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, cast

from guardrail_sdk._drive import AsyncSource, Driver, SyncSource, in_event_loop
from guardrail_sdk._errors import ConfigError
from guardrail_sdk._flow import Flow, GuardedCall, Live
from guardrail_sdk._types import Conversation

Kind = Literal["sync", "async", "generator", "async generator"]

_NOT_PARALLEL = (
    "parallel=True needs an async function on an event loop: a sync one can't be cancelled when "
    "its input is blocked. Wrap an async function, or leave parallel out."
)


def kind_of(function: object) -> Kind:
    """Return how `function` must be called; partials and callable objects are looked into."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[object]", function).func
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = getattr(function, "__call__", function)  # noqa: B004 - read, not tested
    if inspect.iscoroutinefunction(function):
        return "async"
    if inspect.isgeneratorfunction(function):
        return "generator"
    if inspect.isasyncgenfunction(function):
        return "async generator"
    return "sync"


def _innermost(function: object) -> object:
    """Return what lies below partials, decorators that say what they wrap, and `__call__`."""
    while True:
        inner: object
        if isinstance(function, functools.partial):
            inner = cast("functools.partial[object]", function).func
        elif not inspect.isroutine(function) and not isinstance(function, type):
            inner = getattr(function, "__call__", function)  # noqa: B004 - read, not tested
        else:
            inner = inspect.unwrap(cast("Callable[..., object]", function))
        if inner == function:
            return cast("object", function)
        function = inner


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapping:
    """What every wrapper of one function shares."""

    chat_fn: Callable[..., object]
    call: GuardedCall
    driver: Driver

    def build(self) -> Callable[..., object]:
        """Return the guarded function, of the same kind, name and signature."""
        kind = kind_of(self.chat_fn)
        if self.call.parallel and not kind.startswith("async") and not self._hides_coroutine():
            raise ConfigError(_NOT_PARALLEL)
        if kind == "generator" or (kind == "sync" and not self._hides_coroutine()):
            self.call.checks.hooks.require_sync()
        wrapper = {
            "sync": self._sync,
            "async": self._async,
            "generator": self._generator,
            "async generator": self._async_generator,
        }[kind]()
        # Attributes stay behind: they may be other ways to call the function, unguarded.
        return functools.wraps(self.chat_fn, updated=())(wrapper)

    def _sync(self) -> Callable[..., object]:
        hides_coroutine = self._hides_coroutine()

        def wrapper(*args: object, **kwargs: object) -> object:
            if hides_coroutine and in_event_loop():
                return later(*args, **kwargs)
            if self.call.parallel:
                raise ConfigError(_NOT_PARALLEL)
            self.call.checks.hooks.require_sync()
            result = self.driver.run(self.call.converse(self.chat_fn, args, kwargs))
            return self._adopt(result) if isinstance(result, Live) else result

        later = self._async()
        return wrapper

    def _hides_coroutine(self) -> bool:
        """Return whether an async function hides behind a plain decorator of it.

        The methods of async client libraries often do. On an event loop they are judged as what
        they are, so that judging doesn't hold the loop up.
        """
        return inspect.iscoroutinefunction(_innermost(self.chat_fn))

    def _async(self) -> Callable[..., object]:
        async def wrapper(*args: object, **kwargs: object) -> object:
            flow = self.call.converse(self.chat_fn, args, kwargs)
            return self._adopt_async(await self.driver.run_async(flow))

        return wrapper

    def _generator(self) -> Callable[..., object]:
        def begin(*args: object, **kwargs: object) -> Flow[object]:
            return self.call.stream(self.chat_fn, SyncSource, args, kwargs)

        return self.driver.generator(begin)

    def _async_generator(self) -> Callable[..., object]:
        def begin(*args: object, **kwargs: object) -> Flow[object]:
            return self.call.stream(self.chat_fn, AsyncSource, args, kwargs)

        return self.driver.async_generator(begin)

    def _adopt(self, live: Live) -> object:
        """Guard a stream or awaitable that a sync function returned."""
        if hasattr(type(live.value), "__next__"):
            relay = self.call.relay(SyncSource(live.value), live.conversation)
            return self.driver.generator(lambda: relay)()
        if inspect.isawaitable(live.value):
            return self._settle(live.value, live.conversation)
        return self._adopt_async(live)

    async def _settle(self, value: Awaitable[object], conversation: Conversation) -> object:
        flow = self.call.settle(await value, conversation)
        return self._adopt_async(await self.driver.run_async(flow))

    def _adopt_async(self, result: object) -> object:
        """Guard an async stream that was returned; refuse what would have to block the loop."""
        if not isinstance(result, Live):
            return result
        if hasattr(type(result.value), "__aiter__"):
            relay = self.call.relay(AsyncSource(result.value), result.conversation)
            return self.driver.async_generator(lambda: relay)()
        close = getattr(result.value, "close", None)
        if callable(close):
            close()
        raise ConfigError(
            f"The wrapped async function returned {type(result.value).__name__}, which can't be "
            "guarded: return a value or an async iterator, or wrap a plain function."
        )
