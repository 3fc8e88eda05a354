"""Carries out the effects of a flow: in the calling thread, or on an event loop (asyncio, trio)."""

from __future__ import annotations

import inspect
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
)
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar, cast

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar, checkpoint, current_token

from guardrail_sdk._errors import Blocked, ConfigError, EngineTimeout
from guardrail_sdk._flow import (
    Admitted,
    Ask,
    Effect,
    Emit,
    Ended,
    Flow,
    Race,
    Raced,
    Stopped,
    is_live,
)
from guardrail_sdk._judge import Budget, Judge
from guardrail_sdk._policy import Policy
from guardrail_sdk._types import Conversation, Verdict

ResultT = TypeVar("ResultT")

# Enough for their rows to run in batches. Each works in Python for a moment, too, and the more
# there are, the longer the event loop waits for its turn.
_MOST_THREADS: Final = max(8, 2 * (os.cpu_count() or 1))
_CLOSING_S: Final = 10.0
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("guardrail_sdk.limiter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Runs flows whose questions `judge` answers under `policy`."""

    judge: Judge
    policy: Policy

    def run(self, flow: Flow[ResultT]) -> ResultT:
        """Run a flow that emits nothing, in this thread."""
        step: Callable[[], Effect] = partial(next, flow)
        while True:
            try:
                effect = step()
            except StopIteration as stop:
                return cast("ResultT", stop.value)
            try:
                answer = self._perform(effect)
            except BaseException as error:
                step = partial(flow.throw, error)
            else:
                step = partial(flow.send, answer)

    async def run_async(self, flow: Flow[ResultT]) -> ResultT:
        """Run a flow that emits nothing; the model works in a worker thread."""
        step: Callable[[], Effect] = partial(next, flow)
        while True:
            try:
                effect = step()
            except StopIteration as stop:
                return cast("ResultT", stop.value)
            try:
                answer = await self._perform_async(effect)
            except BaseException as error:
                step = partial(flow.throw, error)
            else:
                step = partial(flow.send, answer)

    def generator(
        self, begin: Callable[..., Flow[object]]
    ) -> Callable[..., Generator[object, object, object]]:
        """Return a generator function that runs the flow begun by its call, in its thread."""

        def generate(*args: object, **kwargs: object) -> Generator[object, object, object]:
            flow = begin(*args, **kwargs)
            step: Callable[[], Effect] = partial(next, flow)
            while True:
                try:
                    effect = step()
                except StopIteration as stop:
                    return stop.value
                except Stopped:
                    raise GeneratorExit from None
                try:
                    if isinstance(effect, Emit):
                        answer = yield effect.item
                    else:
                        answer = self._perform(effect)
                except GeneratorExit:
                    step = partial(flow.throw, Stopped())
                except BaseException as error:
                    step = partial(flow.throw, error)
                else:
                    step = partial(flow.send, answer)

        return generate

    def async_generator(
        self, begin: Callable[..., Flow[object]]
    ) -> Callable[..., AsyncGenerator[object, object]]:
        """Return an async generator function that runs the flow begun by its call."""

        async def generate(*args: object, **kwargs: object) -> AsyncGenerator[object, object]:
            flow = begin(*args, **kwargs)
            step: Callable[[], Effect] = partial(next, flow)
            closing = False
            while True:
                try:
                    effect = step()
                except StopIteration:
                    return
                except Stopped:
                    raise GeneratorExit from None
                try:
                    if isinstance(effect, Emit):
                        answer = yield effect.item
                    elif closing:
                        answer = await _finished(self._perform_async(effect))
                    else:
                        answer = await self._perform_async(effect)
                except GeneratorExit:
                    closing = True
                    step = partial(flow.throw, Stopped())
                except BaseException as error:
                    closing = _is_cancellation(error)
                    step = partial(flow.throw, error)
                else:
                    step = partial(flow.send, answer)

        return generate

    def _perform(self, effect: Effect) -> object:
        if isinstance(effect, Ask):
            budget = Budget.of(self.policy)
            verdict = self.judge.judge(effect.conversation, self.policy, budget)
            budget.spend()
            return verdict
        return _only_call(effect)()

    async def _perform_async(self, effect: Effect) -> object:
        if isinstance(effect, Ask):
            return await self._ask_in_thread(effect.conversation)
        if isinstance(effect, Race):
            return await self._race(effect)
        answer = _only_call(effect)()
        return await answer if inspect.isawaitable(answer) else answer

    async def _race(self, race: Race) -> Raced:
        """Judge the input in a task of its own while this one calls the function.

        It is this task that calls, so that a generator is only ever run by its consumer's task.
        """
        check, call = _Outcome[Admitted | Blocked](), _Outcome[object]()
        handed_over = False
        try:
            async with anyio.create_task_group() as group:

                async def admit() -> None:
                    await check.of(partial(self.run_async, race.admit))
                    if not isinstance(check.value, Admitted):
                        group.cancel_scope.cancel()

                group.start_soon(admit)
                # The check goes first, also where the function does much before it waits.
                await checkpoint()
                await call.of(race.call)
            if isinstance(check.value, Blocked):
                return Raced(admission=check.value, value=None)
            admitted = check.result()
            raced = Raced(admission=admitted, value=call.result())
            handed_over = True
            return raced
        finally:
            if not handed_over:
                await _discard(call.value)

    async def _ask_in_thread(self, conversation: Conversation) -> Verdict:
        budget = Budget.of(self.policy)
        judge = partial(self.judge.judge, conversation, self.policy, budget)
        try:
            with anyio.move_on_after(budget.remaining_s()):
                return await anyio.to_thread.run_sync(
                    judge, abandon_on_cancel=True, limiter=_thread_limiter()
                )
            raise EngineTimeout("No verdict within the policy's deadline_ms, waiting included.")
        finally:
            budget.cancelled.set()


def in_event_loop() -> bool:
    """Return whether this thread runs an event loop now."""
    try:
        current_token()
    except RuntimeError:
        return False
    return True


def _only_call(effect: Effect) -> Callable[[], object]:
    if isinstance(effect, Ask | Emit | Race):
        raise TypeError(f"{type(effect).__name__} can't be carried out here.")
    return effect.function


async def _finished(work: Awaitable[ResultT]) -> ResultT:
    """Await what ends a stream, for a while also where its task was cancelled."""
    if not in_event_loop():
        return await work
    with anyio.move_on_after(_CLOSING_S, shield=True):
        return await work
    raise EngineTimeout("A stream could not be closed in time.")


def _is_cancellation(error: BaseException) -> bool:
    return in_event_loop() and isinstance(error, anyio.get_cancelled_exc_class())


class _Outcome(Generic[ResultT]):
    """What an async call came to: a value, an error, or an end by cancellation."""

    value: ResultT | None = None
    _error: BaseException | None = None
    _ended: bool = False

    async def of(self, call: Callable[[], object]) -> None:
        """Await `call()` and keep what comes of it; only a cancellation is raised at once."""
        try:
            value = call()
            self.value = cast("ResultT", await value if inspect.isawaitable(value) else value)
            self._ended = True
        except anyio.get_cancelled_exc_class() as error:
            self._error = error
            raise
        except BaseException as error:
            self._error = error

    def result(self) -> ResultT:
        """Return the value.

        Raises:
            BaseException: What the call raised, a cancellation from elsewhere included.
        """
        if self._ended:
            return cast("ResultT", self.value)
        raise self._error or EngineTimeout("The check was cancelled before a verdict.")


async def _discard(value: object) -> None:
    """Close a stream, coroutine or task that nobody will read, whatever that fails with."""
    if not is_live(value):
        return
    for name in ("aclose", "close", "cancel"):
        close = getattr(value, name, None)
        if callable(close):
            with anyio.move_on_after(_CLOSING_S, shield=True), suppress(Exception):
                done = close()
                if inspect.isawaitable(done):
                    await done
            return


def _thread_limiter() -> anyio.CapacityLimiter:
    """Return this event loop's bound on threads that judge."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_MOST_THREADS)
        _limiter.set(limiter)
        return limiter


class SyncSource:
    """A sync iterator as a source of chunks."""

    def __init__(self, chunks: object) -> None:
        self._chunks = _iterator(chunks)

    def next(self) -> object:
        """Return the next chunk."""
        return self._step(partial(next, self._chunks))

    def send(self, value: object) -> object:
        """Send `value` to a generator; return its next chunk."""
        return self._step(partial(_method(self._chunks, "send"), value))

    def throw(self, error: BaseException) -> object:
        """Throw `error` into a generator; return its next chunk if it goes on."""
        if not hasattr(self._chunks, "throw"):
            raise error
        return self._step(partial(_method(self._chunks, "throw"), error))

    def close(self) -> object:
        """Close the iterator if it can be closed."""
        return _method(self._chunks, "close")() if hasattr(self._chunks, "close") else None

    def _step(self, step: Callable[[], object]) -> object:
        try:
            return step()
        except StopIteration as stop:
            return Ended(stop.value)


class AsyncSource:
    """An async iterator as a source of chunks."""

    def __init__(self, chunks: object) -> None:
        self._chunks = _async_iterator(chunks)

    async def next(self) -> object:
        """Return the next chunk."""
        return await self._step(self._chunks.__anext__)

    async def send(self, value: object) -> object:
        """Send `value` to an async generator; return its next chunk."""
        return await self._step(partial(_method(self._chunks, "asend"), value))

    async def throw(self, error: BaseException) -> object:
        """Throw `error` into an async generator; return its next chunk if it goes on."""
        if not hasattr(self._chunks, "athrow"):
            raise error
        return await self._step(partial(_method(self._chunks, "athrow"), error))

    async def close(self) -> None:
        """Close the iterator by `aclose`, or by `close`, if it can be closed."""
        for name in ("aclose", "close"):
            if hasattr(self._chunks, name):
                done = _method(self._chunks, name)()
                if inspect.isawaitable(done):
                    await done
                return

    async def _step(self, step: Callable[[], object]) -> object:
        try:
            chunk = step()
            return await chunk if inspect.isawaitable(chunk) else chunk
        except StopAsyncIteration:
            return Ended()


def _iterator(chunks: object) -> Iterator[object]:
    if not hasattr(type(chunks), "__next__"):
        raise ConfigError(f"{type(chunks).__name__} is not an iterator.")
    return cast("Iterator[object]", chunks)


def _async_iterator(chunks: object) -> AsyncIterator[object]:
    if hasattr(type(chunks), "__anext__"):
        return cast("AsyncIterator[object]", chunks)
    return aiter(cast("AsyncIterator[object]", chunks))


def _method(chunks: object, name: str) -> Callable[..., object]:
    method: object = getattr(chunks, name, None)
    if not callable(method):
        raise ConfigError(f"The wrapped stream ({type(chunks).__name__}) has no {name}.")
    return method
