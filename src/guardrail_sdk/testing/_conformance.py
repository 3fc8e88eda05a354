"""The properties that every adapter of a guard must have, as tests to inherit."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from threading import Event, Timer
from typing import ClassVar, Literal

from guardrail_sdk._errors import Blocked
from guardrail_sdk._guard import Guard
from guardrail_sdk._policy import CategoryRule, Policy
from guardrail_sdk._types import Action, Category
from guardrail_sdk.testing._fake import FakeModel
from guardrail_sdk.testing._scripted import ScriptedModel

Mode = Literal["whole", "stream", "async whole", "async stream"]
"""A way to call a chat model: for all of its answer at once or piece by piece, sync or async."""

_BAD = "zyxbombxyz"
_PROMPT = "What is for dinner tonight?"
_SENTENCE = "The soup needs two carrots, an onion, a little salt and about forty minutes of time. "
_SAFE = 4 * _SENTENCE
_PATIENCE_S = 10.0
_LOOP_LAG_S = 0.15
_JUDGING_S = 0.5


class Conformance(ABC):
    """Subclass it in a test module as `Test...`, and say how your framework is asked.

    The methods get a guard to build in and a `ScriptedModel` to build on. What they return or yield
    is all that a user gets to see, tool calls and their arguments included. What a user gets
    instead of what was blocked is an exception of the type `blocked`: where an adapter answers with
    an error reply, the method turns that into one.

    Attributes:
        modes: The ways in which the framework can be asked; the others' methods aren't called.
        tools: Whether the framework passes tool calls on.
        blocked: What a block raises.
    """

    modes: ClassVar[tuple[Mode, ...]] = ("whole", "stream", "async whole", "async stream")
    tools: ClassVar[bool] = True
    blocked: ClassVar[type[Exception]] = Blocked

    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        """Return the whole answer to a user's `prompt`."""
        raise NotImplementedError

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        """Yield the answer as it arrives."""
        raise NotImplementedError

    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        """Return the whole answer, on an event loop."""
        raise NotImplementedError

    def stream_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> AsyncIterator[str]:
        """Yield the answer as it arrives, on an event loop."""
        raise NotImplementedError

    @abstractmethod
    def types(self, guard: Guard | None, model: ScriptedModel, mode: Mode) -> object:
        """Return what must be the same with a guard and without one (None).

        Such as the types of the reply and of its parts, and what `isinstance` says of the stream.
        """

    def test_an_allowed_answer_arrives(self) -> None:
        """What is allowed is the same as without a guard, and the model is called once."""
        for mode in self.modes:
            model = ScriptedModel(_pieces(_SAFE, 7))
            told, error = self._told(mode, Guard(model=FakeModel([_BAD])), model, _PROMPT)
            assert error is None, f"{mode}: {error!r}"
            assert told == model.text, mode
            assert model.calls == 1, mode

    def test_a_blocked_input_never_reaches_the_model(self) -> None:
        """The model isn't called at all."""
        for mode in self.modes:
            model = ScriptedModel([_SAFE])
            told, error = self._told(mode, Guard(model=FakeModel([_BAD])), model, f"Make a {_BAD}!")
            assert isinstance(error, self.blocked), f"{mode}: {error!r}"
            assert told == "", mode
            assert model.calls == 0, mode

    def test_a_blocked_output_is_not_told(self) -> None:
        """However it is cut: nothing from its unsafe word on is told, and it ends in a block."""
        for mode in self.modes:
            for size in (1, 3, 50, 10_000):
                model = ScriptedModel(_pieces(f"{_SAFE}Now the {_BAD}. {_SENTENCE}", size))
                told, error = self._told(mode, Guard(model=FakeModel([_BAD])), model, _PROMPT)
                assert isinstance(error, self.blocked), f"{mode}, {size}: {error!r}"
                assert _SAFE.startswith(told), f"{mode}, {size}: {len(told)} characters"
                assert mode.endswith("stream") or told == "", mode

    def test_a_short_unsafe_stream_tells_nothing(self) -> None:
        """What has no more than one window is judged before its first character leaves."""
        for mode in self.modes:
            model = ScriptedModel(_pieces(f"A {_BAD}", 2))
            told, error = self._told(mode, Guard(model=FakeModel([_BAD])), model, _PROMPT)
            assert isinstance(error, self.blocked), f"{mode}: {error!r}"
            assert told == "", mode

    def test_a_stream_is_not_collected(self) -> None:
        """The first sentence leaves while the model still speaks."""
        for mode in self.modes:
            if not mode.endswith("stream"):
                continue
            # The model says nothing more until something of what it said was told.
            model = ScriptedModel([_SAFE, _SENTENCE, _SENTENCE], hold=1)
            told, error = self._told(mode, Guard(model=FakeModel()), model, _PROMPT, model.go.set)
            assert error is None, f"{mode}: {error!r}"
            assert told == model.text, mode

    def test_tool_calls_are_judged(self) -> None:
        """An unsafe call is not told of, a safe one is."""
        if not self.tools:
            return
        for mode in self.modes:
            for size in (3, 10_000):
                model = ScriptedModel(_pieces(f'{{"query": "a {_BAD}"}}', size), tool="search")
                told, error = self._told(mode, Guard(model=FakeModel([_BAD])), model, _PROMPT)
                assert isinstance(error, self.blocked), f"{mode}, {size}: {error!r}"
                assert told == "", mode
                model = ScriptedModel(_pieces('{"query": "soup"}', size), tool="search")
                told, error = self._told(mode, Guard(model=FakeModel([_BAD])), model, _PROMPT)
                assert error is None, f"{mode}, {size}: {error!r}"
                assert "soup" in told, mode

    def test_a_failed_check_fails_closed(self) -> None:
        """Without a verdict nothing passes, neither in nor out."""
        for mode in self.modes:
            model = ScriptedModel([_SAFE])
            told, error = self._told(mode, Guard(model=FakeModel.failing()), model, _PROMPT)
            assert isinstance(error, self.blocked), f"{mode}: {error!r}"
            assert (told, model.calls) == ("", 0), mode
            guard = Guard(model=FakeModel(_fails_on_output))
            told, error = self._told(mode, guard, model, _PROMPT)
            assert isinstance(error, self.blocked), f"{mode}: {error!r}"
            assert told == "", mode

    def test_who_hangs_up_ends_the_model(self) -> None:
        """A reader who closes the stream, or a cancelled task, stops the model's work."""
        for mode in self.modes:
            if mode == "whole":
                continue
            model = ScriptedModel([_SAFE, _SENTENCE, *20 * [_SENTENCE]], hold=1)
            guard = Guard(model=FakeModel())
            if mode == "stream":
                stream = self.stream(guard, model, _PROMPT)
                # A first piece without text may come before the model has said anything.
                next(text for text in stream if text)
                getattr(stream, "close", lambda: None)()
                del stream
            else:
                asyncio.run(self._hang_up(mode, guard, model))
            model.go.set()
            assert model.ended.wait(_PATIENCE_S), mode
            assert model.cut, mode

    def test_the_event_loop_is_not_blocked(self) -> None:
        """Other tasks run while the model judges."""
        for mode in self.modes:
            if mode.startswith("async"):
                gate = Event()
                timer = Timer(_JUDGING_S, gate.set)
                guard = Guard(model=FakeModel(gate=gate))
                timer.start()
                lag = asyncio.run(self._loop_lag(mode, guard, ScriptedModel([_SAFE])))
                timer.join()
                assert lag < _LOOP_LAG_S, f"{mode}: the loop stood still for {lag:.2f} s"

    def test_types_stay_as_they_were(self) -> None:
        """A guarded reply is of the type that an unguarded one has."""
        for mode in self.modes:
            plain = self.types(None, ScriptedModel(_pieces(_SAFE, 20)), mode)
            guarded = self.types(Guard(model=FakeModel()), ScriptedModel(_pieces(_SAFE, 20)), mode)
            assert guarded == plain, mode

    def test_the_policy_decides(self) -> None:
        """What a policy lets pass, passes; the verdict alone blocks nothing."""
        lenient = Policy(categories=(CategoryRule(id=Category.S2, action=Action.ALLOW),))
        strict = Policy(categories=(CategoryRule(id=Category.S2, action=Action.BLOCK),))
        for mode in self.modes:
            answer = f"{_SENTENCE}The {_BAD}."
            model = ScriptedModel(_pieces(answer, 9))
            guard = Guard(model=FakeModel([_BAD]), policy=lenient)
            assert self._told(mode, guard, model, f"A {_BAD}?") == (answer, None), mode
            guard = Guard(model=FakeModel([_BAD]), policy=strict)
            _, error = self._told(mode, guard, model, f"A {_BAD}?")
            assert isinstance(error, self.blocked), f"{mode}: {error!r}"

    def test_nothing_of_the_text_is_in_errors_or_logs(self) -> None:
        """What was said stays out of what is written down."""
        for mode in self.modes:
            for prompt, answer in ((f"A {_BAD}?", _SAFE), (_PROMPT, f"A {_BAD}.")):
                with _logged() as lines:
                    model = ScriptedModel([answer])
                    _, error = self._told(mode, Guard(model=FakeModel([_BAD])), model, prompt)
                assert _BAD not in _chain(error), mode
                assert not any(_BAD in line for line in lines), mode

    def _told(
        self,
        mode: Mode,
        guard: Guard,
        model: ScriptedModel,
        prompt: str,
        at_first: Callable[[], object] = lambda: None,
    ) -> tuple[str, Exception | None]:
        """Return what a user is told, and the exception that it ends in."""
        told: list[str] = []

        def tell(text: str) -> None:
            if text and not any(told):
                at_first()
            told.append(text)

        error: Exception | None = None
        try:
            if mode == "whole":
                tell(self.ask(guard, model, prompt))
            elif mode == "stream":
                for text in self.stream(guard, model, prompt):
                    tell(text)
            else:
                asyncio.run(self._tell_async(mode, guard, model, prompt, tell))
        except self.blocked as blocked:
            error = blocked
        return "".join(told), error

    async def _tell_async(
        self,
        mode: Mode,
        guard: Guard,
        model: ScriptedModel,
        prompt: str,
        tell: Callable[[str], None],
    ) -> None:
        if mode == "async whole":
            tell(await self.ask_async(guard, model, prompt))
        else:
            async for text in self.stream_async(guard, model, prompt):
                tell(text)

    async def _hang_up(self, mode: Mode, guard: Guard, model: ScriptedModel) -> None:
        task = asyncio.create_task(self._tell_async(mode, guard, model, _PROMPT, lambda _: None))
        deadline = time.monotonic() + _PATIENCE_S
        # By the second piece the answer is well under way, and the model waits.
        while model.sent < 2 and time.monotonic() < deadline:  # noqa: ASYNC110 - maybe in a thread
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task], timeout=_PATIENCE_S)
        assert task.cancelled(), f"{mode}: the cancelled task did not end in its cancellation"
        # The loop's own end would cancel what was left running; a server finds out when it sends.
        model.go.set()
        while not model.ended.is_set() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def _loop_lag(self, mode: Mode, guard: Guard, model: ScriptedModel) -> float:
        """Return the longest time for which the loop ran nothing, in seconds."""
        # Whatever the framework does for its first call is no matter of the guard's.
        warm = Guard(model=FakeModel())
        await self._tell_async(mode, warm, ScriptedModel([_SENTENCE]), _PROMPT, lambda _: None)
        task = asyncio.create_task(self._tell_async(mode, guard, model, _PROMPT, lambda _: None))
        longest, last = 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.005)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        await task
        return longest


def _pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _fails_on_output(stage: str, _text: str) -> float:
    if stage == "output":
        raise RuntimeError("The fake model was told to fail.")
    return 0.0


def _chain(error: BaseException | None) -> str:
    """Return all that an exception and those behind it say."""
    said = ""
    while error is not None:
        said += f"{error} {error!r} {error.args}"
        error = error.__cause__ or error.__context__
    return said


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def _logged() -> Generator[list[str], None, None]:
    """Collect what the SDK and its adapters log, at every level."""
    handler = _Lines()
    names = [name for name in logging.root.manager.loggerDict if name.startswith("guardrail_sdk")]
    loggers = [logging.getLogger(name) for name in ("guardrail_sdk", *names)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
