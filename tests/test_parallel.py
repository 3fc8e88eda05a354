"""Parallel calls: the function runs while its input is judged, and nothing of it leaves before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from threading import Event

import anyio
import anyio.lowlevel
import pytest

from guardrail_sdk import (
    Action,
    Blocked,
    Category,
    CategoryRule,
    ConfigError,
    Guard,
    MessageError,
    Policy,
)
from guardrail_sdk.testing import FakeModel

PATIENCE_S = 5


class Bot:
    """A chat function that notes what happens to it, and never answers a bad prompt."""

    def __init__(self, started: Event | None = None) -> None:
        self.prompts: list[str] = []
        self.cancelled = False
        self.closed = False
        self._started = started or Event()

    async def __call__(self, prompt: str) -> str:
        await self._begin(prompt)
        return "fine"

    async def stream(self, prompt: str) -> AsyncIterator[str]:
        try:
            await self._begin(prompt)
            yield "fine. " * 20
            yield "and more"
        finally:
            self.closed = True

    async def _begin(self, prompt: str) -> None:
        self.prompts.append(prompt)
        self._started.set()
        try:
            await anyio.sleep(3600 if "bomb" in prompt else 0.01)
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise


class Unread:
    """A stream that was returned, and that nobody may read."""

    def __init__(self) -> None:
        self.closed = 0

    def __aiter__(self) -> Unread:
        return self

    async def __anext__(self) -> str:
        raise AssertionError("nobody may read it")

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1


@pytest.mark.anyio
async def test_the_call_and_the_check_run_at_once() -> None:
    started = Event()
    bot = Bot(started)
    # The check of the input ends only once the function has begun.
    guard = Guard(model=FakeModel(["bomb"], gate=started))
    with anyio.fail_after(PATIENCE_S):
        assert await guard.wrap(bot.__call__, parallel=True)("hello") == "fine"
        chunks = [chunk async for chunk in guard.wrap(bot.stream, parallel=True)("hello")]
    assert "".join(chunks) == "fine. " * 20 + "and more"
    assert bot.prompts == ["hello", "hello"]


@pytest.mark.anyio
async def test_a_blocked_input_cancels_the_call() -> None:
    bot = Bot()
    safe = Guard(model=FakeModel(["bomb"])).wrap(bot.__call__, parallel=True)
    with anyio.fail_after(PATIENCE_S), pytest.raises(Blocked):
        await safe("a bomb")
    assert bot.cancelled


@pytest.mark.anyio
async def test_a_blocked_input_closes_the_stream() -> None:
    bot = Bot()
    safe = Guard(model=FakeModel(["bomb"])).wrap(bot.stream, parallel=True)
    with anyio.fail_after(PATIENCE_S), pytest.raises(Blocked):
        await anext(safe("a bomb"))
    assert bot.cancelled
    assert bot.closed


@pytest.mark.anyio
async def test_on_block_replaces_a_cancelled_call() -> None:
    bot = Bot()
    guard = Guard(model=FakeModel(["bomb"]))
    safe = guard.wrap(bot.__call__, parallel=True, on_block=lambda decision: "no")
    stream = guard.wrap(bot.stream, parallel=True, on_block=lambda decision: "no")
    with anyio.fail_after(PATIENCE_S):
        assert await safe("a bomb") == "no"
        assert [chunk async for chunk in stream("a bomb")] == ["no"]


@pytest.mark.anyio
async def test_nothing_leaves_before_the_verdict() -> None:
    gate = Event()
    bot = Bot()
    guard = Guard(model=FakeModel(["bomb"], gate=gate))
    left: list[str] = []

    async def read() -> None:
        left.append(await guard.wrap(bot.__call__, parallel=True)("hello"))

    async def read_stream() -> None:
        left.extend([chunk async for chunk in guard.wrap(bot.stream, parallel=True)("hello")])

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        group.start_soon(read_stream)
        await anyio.sleep(0.1)
        assert bot.prompts == ["hello", "hello"]
        assert not left
        gate.set()
    assert sorted(left) == ["and more", "fine", "fine. " * 20]


@pytest.mark.anyio
async def test_a_block_goes_before_the_calls_own_failure() -> None:
    async def fails(prompt: str) -> str:
        raise LookupError(prompt)

    safe = Guard(model=FakeModel(["bomb"])).wrap(fails, parallel=True)
    with pytest.raises(Blocked):
        await safe("a bomb")
    with pytest.raises(LookupError):
        await safe("hello")


@pytest.mark.anyio
async def test_a_check_that_fails_lets_nothing_out() -> None:
    bot = Bot()
    with pytest.raises(Blocked):
        await Guard(model=FakeModel.failing()).wrap(bot.__call__, parallel=True)("hello")
    with anyio.fail_after(PATIENCE_S), pytest.raises(MessageError):
        await Guard(model=FakeModel()).wrap(bot.__call__, parallel=True)(7)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_an_input_to_redact_is_blocked() -> None:
    redact = Policy(categories=(CategoryRule(id=Category.S2, action=Action.REDACT),))
    guard = Guard(model=FakeModel(["bomb"]), policy=redact)
    bot = Bot()
    with anyio.fail_after(PATIENCE_S):
        with pytest.raises(Blocked, match="No input of a parallel call can be redacted"):
            await guard.wrap(bot.__call__, parallel=True)("a bomb")
        with pytest.raises(Blocked):
            await anext(guard.wrap(bot.stream, parallel=True)("a bomb"))
    assert bot.cancelled


@pytest.mark.anyio
@pytest.mark.parametrize("change", ["clear", "pop", "append", "replace"])
async def test_what_the_function_does_to_its_messages_hides_nothing(change: str) -> None:
    async def agent(messages: list[dict[str, str]]) -> str:
        if change == "clear":
            messages.clear()
        elif change == "pop":
            messages.pop()
        elif change == "append":
            messages.append({"role": "user", "content": "Answer briefly."})
        else:
            messages[-1]["content"] = "hello"
        return "fine"

    safe = Guard(model=FakeModel(["bomb"])).wrap(agent, parallel=True)
    for _ in range(10):
        with pytest.raises(Blocked):
            await safe([{"role": "user", "content": "a bomb"}])


class Quit(BaseException):
    """What is no `Exception`, such as KeyboardInterrupt."""


@pytest.mark.anyio
@pytest.mark.parametrize("error", [Quit, SystemExit, LookupError])
async def test_what_the_function_raises_comes_out_as_it_is(error: type[BaseException]) -> None:
    async def fails(prompt: str) -> str:
        raise error

    async def fails_midway(prompt: str) -> AsyncIterator[str]:
        raise error
        yield ""

    guard = Guard(model=FakeModel(["bomb"]))
    with pytest.raises(error):
        await guard.wrap(fails, parallel=True)("hello")
    with pytest.raises(error):
        await anext(guard.wrap(fails_midway, parallel=True)("hello"))
    with pytest.raises(Blocked):
        await guard.wrap(fails, parallel=True)("a bomb")


@pytest.mark.anyio
async def test_a_function_that_fails_while_it_is_cancelled_takes_no_blocks_place() -> None:
    async def fails_in_a_group(prompt: str) -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 3600)
            try:
                await anyio.sleep(3600)
            finally:
                raise OSError("secret")
        return "never"

    async def fails_to_close(prompt: str) -> AsyncIterator[str]:
        try:
            await anyio.sleep(3600)
            yield ""
        finally:
            raise OSError("secret")

    guard = Guard(model=FakeModel(["bomb"]))
    with anyio.fail_after(PATIENCE_S):
        with pytest.raises(Blocked):
            await guard.wrap(fails_in_a_group, parallel=True)("a bomb")
        with pytest.raises(Blocked):
            await anext(guard.wrap(fails_to_close, parallel=True)("a bomb"))


@pytest.mark.anyio
async def test_a_stream_that_was_returned_is_closed_if_the_caller_is_cancelled() -> None:
    stream = Unread()

    async def begin(prompt: str) -> Unread:
        return stream

    safe = Guard(model=FakeModel(gate=Event())).wrap(begin, parallel=True)
    with anyio.move_on_after(0.1):
        await safe("hello")
    assert stream.closed == 1


@pytest.mark.anyio
async def test_a_cancellation_from_elsewhere_is_not_an_answer() -> None:
    async def cancelled(prompt: str) -> str:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep(1)
            except anyio.get_cancelled_exc_class() as error:
                kept.append(error)
                raise
        raise kept[0]

    kept: list[BaseException] = []
    safe = Guard(model=FakeModel()).wrap(cancelled, parallel=True)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever a backend makes of it
        await safe("hello")
    assert not isinstance(caught.value, MessageError)


@pytest.mark.anyio
async def test_a_stream_that_was_returned_already_is_closed_on_a_block() -> None:
    stream = Unread()

    returned = Event()

    async def begin(prompt: str) -> Unread:
        returned.set()
        return stream

    safe = Guard(model=FakeModel(["bomb"], gate=returned)).wrap(begin, parallel=True)
    with pytest.raises(Blocked):
        await safe("a bomb")
    assert stream.closed == 1


@pytest.mark.anyio
async def test_cancelling_the_guarded_call_cancels_the_function_and_its_check() -> None:
    bot = Bot()
    model = FakeModel(["bomb"], gate=Event())
    safe = Guard(model=model).wrap(bot.__call__, parallel=True)
    with anyio.move_on_after(0.1) as scope:
        await safe("a bomb")
    assert scope.cancelled_caught
    assert bot.cancelled
    assert len(model.seen) == 1


@pytest.mark.asyncio
async def test_cancelling_a_task_while_its_blocked_call_cleans_up_is_not_lost() -> None:
    cleaning = asyncio.Event()

    async def slow_to_end(prompt: str) -> str:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)
        return "never"

    safe = Guard(model=FakeModel(["bomb"])).wrap(slow_to_end, parallel=True)
    task = asyncio.create_task(safe("a bomb"))
    await asyncio.wait_for(cleaning.wait(), PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_the_output_is_judged_as_ever() -> None:
    async def bad(prompt: str) -> str:
        return "a bomb"

    async def bad_stream(prompt: str) -> AsyncIterator[str]:
        yield "a bomb"

    guard = Guard(model=FakeModel(["bomb"]))
    with pytest.raises(Blocked):
        await guard.wrap(bad, parallel=True)("hello")
    with pytest.raises(Blocked):
        await anext(guard.wrap(bad_stream, parallel=True)("hello"))


@pytest.mark.anyio
async def test_a_generator_runs_in_its_consumers_task_alone() -> None:
    """What a generator holds open across a yield, such as a timeout, often belongs to a task."""
    tasks: set[int] = {anyio.get_current_task().id}

    async def noting(prompt: str) -> AsyncIterator[str]:
        for chunk in ("one. ", "two."):
            tasks.add(anyio.get_current_task().id)
            yield chunk

    safe = Guard(model=FakeModel()).wrap(noting, parallel=True)
    assert [chunk async for chunk in safe("hello")] == ["one. ", "two."]
    assert len(tasks) == 1


@pytest.mark.anyio
async def test_sync_functions_are_refused() -> None:
    def plain(prompt: str) -> str:
        return prompt

    def generator(prompt: str) -> Iterator[str]:
        yield prompt

    for function in (plain, generator):
        with pytest.raises(ConfigError, match="needs an async function"):
            Guard(model=FakeModel()).wrap(function, parallel=True)
