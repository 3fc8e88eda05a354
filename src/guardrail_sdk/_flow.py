"""The course of a check, a guarded call and a guarded stream: written once for sync and async.

A flow is a generator without I/O. It yields effects; a driver (`_drive.py`) carries each one out,
sends back what came of it or throws in what it raised, and returns what the flow returns.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Hashable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeAlias, TypeVar

from guardrail_sdk._codec import Args, Codec, Kwargs
from guardrail_sdk._errors import Blocked, ConfigError, EngineError, GuardrailError, MessageError
from guardrail_sdk._hooks import CheckEvent, Hooks, async_hook, stricter
from guardrail_sdk._policy import REDACTED, Policy, decide
from guardrail_sdk._stream import GROWN_TAIL_CHARS, StreamWindow, Window
from guardrail_sdk._types import (
    Action,
    CheckResult,
    Conversation,
    Decision,
    Message,
    Span,
    Stage,
    Verdict,
)
from guardrail_sdk.prompt import stage_of

BOTH_STAGES: Final[tuple[Stage, Stage]] = ("input", "output")


@dataclass(frozen=True, slots=True)
class Ask:
    """Have the model judge; answered by its verdict."""

    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Call:
    """Call a user's function; answered by what it returns, awaited by an async driver."""

    function: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Emit:
    """Yield an item to the consumer of the stream; answered by what the consumer sends."""

    item: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Judge an input and call an async function at once; answered by `Raced`.

    What the function returns or raises is held until the input was judged. If it is blocked, the
    function is cancelled, and what it returned is closed and dropped.

    Attributes:
        admit: The flow that judges the input.
        call: What calls the function on that input.
    """

    admit: Flow[Admitted | Blocked]
    call: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raced:
    """What came of a race; `value` means nothing if the input was blocked."""

    admission: Admitted | Blocked
    value: object


class Stopped(BaseException):
    """Thrown into a flow whose consumer wants no more items.

    It stands for `GeneratorExit`, which would forbid the flow to yield the effect that closes its
    source.
    """


Effect: TypeAlias = "Ask | Call | Emit | Race"
ResultT = TypeVar("ResultT")
Flow = Generator[Effect, object, ResultT]
OnBlock = Callable[[Decision], object]


@dataclass(frozen=True, slots=True)
class Ended:
    """What a source answers when it has no more chunks; `value` is what a generator returned."""

    value: object = None


class Source(Protocol):
    """A stream of chunks, sync or async: each method returns a chunk or `Ended`, or awaits one."""

    def next(self) -> object: ...
    def send(self, value: object) -> object: ...
    def throw(self, error: BaseException) -> object: ...
    def close(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Live:
    """A stream or awaitable that a function returned: still to be guarded by the caller."""

    value: object
    conversation: Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """How one guard checks a conversation.

    Attributes:
        policy: What a verdict or a failure leads to.
        hooks: The user's functions around each check.
        on_check: What is told each outcome; None for nobody.
        extends: Whether the judge reads only what is new of a text that grew.
    """

    policy: Policy
    hooks: Hooks
    on_check: Callable[[CheckResult], object] | None = None
    extends: bool = False

    def check(self, conversation: Conversation, *, offset: int = 0) -> Flow[CheckResult]:
        """Check the last message, which begins `offset` characters into what it is part of."""
        result = yield from self._decide(conversation, offset)
        if self.on_check is not None:
            self.on_check(result)
        return result

    def _decide(self, conversation: Conversation, offset: int) -> Flow[CheckResult]:
        stage = stage_of(conversation)
        event = CheckEvent(stage=stage, conversation=tuple(conversation))
        before, after = self.hooks.before(stage), self.hooks.after(stage)
        if before is not None:
            yield from _hook(partial(before, event), f"before_{stage}")
        result = yield from self._judge(event.conversation, offset)
        if after is None:
            return result
        change = yield from _hook(partial(after, event, result), f"after_{stage}")
        return replace(result, decision=stricter(result.decision, change, f"after_{stage}"))

    def _judge(self, conversation: Conversation, offset: int) -> Flow[CheckResult]:
        try:
            verdict = yield Ask(conversation)
            if not isinstance(verdict, Verdict):
                raise TypeError("A judge must return a Verdict.")
            verdict = _shifted(verdict, offset)
            return CheckResult(decision=decide(verdict, self.policy), verdict=verdict)
        except Exception as error:
            if isinstance(error, GuardrailError) and not isinstance(error, EngineError):
                raise
            return CheckResult(decision=self._failed(type(error).__name__), verdict=None)

    def _failed(self, error: str) -> Decision:
        if self.policy.on_error == "allow":
            reason = f"Failed open: the check ended in {error}, and the policy's on_error is allow."
            return Decision(action=Action.ALLOW, category=None, reason=reason)
        reason = f"Failed closed: the check ended in {error}, so nothing is let through."
        return Decision(action=Action.BLOCK, category=None, reason=reason)


def _shifted(verdict: Verdict, offset: int) -> Verdict:
    if not offset:
        return verdict
    span = Span(start=verdict.span.start + offset, end=verdict.span.end + offset)
    return replace(verdict, span=span)


def _hook(call: Callable[[], object], name: str) -> Flow[object]:
    answer = yield Call(call)
    _refuse_awaitable(answer, async_hook(name))
    return answer


def _refuse_awaitable(value: object, message: str) -> None:
    """Raise ConfigError if `value` is awaitable: only a sync driver leaves one so."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedCall:
    """How one wrapped function is called.

    Attributes:
        checks: The checks of its input and output.
        codec: What reads and redacts them.
        on_block: What gives the value in place of a blocked one; None to raise `Blocked`.
        parallel: Whether to call the function while its input is judged.
        stages: What is judged.
    """

    checks: Checks
    codec: Codec
    on_block: OnBlock | None
    parallel: bool = False
    stages: Collection[Stage] = BOTH_STAGES

    def converse(self, chat_fn: Callable[..., object], args: Args, kwargs: Kwargs) -> Flow[object]:
        """Judge the input, call `chat_fn`, judge what it returns."""
        admit = self._admit(args, kwargs)
        if self.parallel:
            raced = _raced((yield Race(admit=admit, call=partial(chat_fn, *args, **kwargs))))
            admitted, value = raced.admission, raced.value
        else:
            admitted, value = (yield from admit), None
        if isinstance(admitted, Blocked):
            return (yield from self._denied(admitted))
        if not self.parallel:
            value = yield Call(partial(chat_fn, *admitted.args, **admitted.kwargs))
        return (yield from self.settle(value, admitted.conversation))

    def settle(self, value: object, conversation: Conversation) -> Flow[object]:
        """Judge what the function returned; give back a stream or awaitable for guarding."""
        if is_live(value):
            return Live(value, conversation)
        outcome = yield from self._release(value, conversation)
        if isinstance(outcome, Blocked):
            return (yield from self._denied(outcome))
        return outcome

    def stream(
        self,
        chat_fn: Callable[..., object],
        open_source: Callable[[object], Source],
        args: Args,
        kwargs: Kwargs,
    ) -> Flow[object]:
        """Judge the input, start the generator `chat_fn`, relay its chunks."""
        admit = self._admit(args, kwargs)
        if self.parallel:
            source = open_source(chat_fn(*args, **kwargs))
            admitted, source = yield from self._race_first(source, admit)
        else:
            admitted = yield from admit
            source = None
        if isinstance(admitted, Blocked):
            yield Emit((yield from self._denied(admitted)))
            return None
        source = source or open_source(chat_fn(*admitted.args, **admitted.kwargs))
        return (yield from self.relay(source, admitted.conversation))

    def _race_first(
        self, source: Source, admit: Flow[Admitted | Blocked]
    ) -> Flow[tuple[Admitted | Blocked, Source]]:
        """Judge the input while the first chunk is made; close the source unless it is admitted."""
        try:
            raced = _raced((yield Race(admit=admit, call=source.next)))
        except BaseException:
            yield from _close(source, quietly=True)
            raise
        if isinstance(raced.admission, Blocked):
            yield from _close(source, quietly=True)
        return raced.admission, _Begun(source, raced.value)

    def relay(self, source: Source, conversation: Conversation) -> Flow[object]:
        """Emit the chunks of `source`, each once its window was judged; close it at the end."""
        outcome: object = None
        try:
            outcome = yield from self._relay(source, conversation)
        finally:
            yield from _close(source, quietly=isinstance(outcome, Blocked))
        if isinstance(outcome, Ended):
            if outcome.value is None:
                return None
            outcome = yield from self._release(outcome.value, conversation)
        if isinstance(outcome, Blocked):
            yield Emit((yield from self._denied(outcome)))
            return None
        return outcome

    def _relay(self, source: Source, conversation: Conversation) -> Flow[Ended | Blocked]:
        mode = self.checks.policy.stream
        window: StreamWindow[object] = StreamWindow(
            delayed=mode == "lookbehind",
            most_tail_chars=GROWN_TAIL_CHARS if self.checks.extends else 0,
        )
        ready: deque[object] = deque()
        ended: Ended | None = None
        try:
            while True:
                step: Callable[[], object] | None = None
                while ready and step is None:
                    step = yield from _emit(ready.popleft(), source, over=ended is not None)
                if ended is not None and step is None:
                    return ended
                chunk = yield Call(step or source.next)
                ended = chunk if isinstance(chunk, Ended) else None
                closed = window.flush() if ended else window.push(self._texts(chunk), chunk)
                if mode == "flag":
                    yield from self._report(closed, window, conversation)
                    ready.extend(() if ended else (chunk,))
                    continue
                blocked = yield from self._judge(closed, window, conversation)
                if blocked is not None:
                    return blocked
                ready.extend(self._leaving(window))
        finally:
            # What has left is reported, also where the reader hangs up or the source fails.
            if mode == "flag":
                yield from self._report(window.flush(), window, conversation)

    def _report(
        self, closed: Sequence[Window], window: StreamWindow[object], conversation: Conversation
    ) -> Flow[None]:
        """Judge windows whose chunks have left, or leave whatever the verdict."""
        for each in closed:
            yield from self._check_window(each, conversation)
            window.passed(each)
        for _ in window.leaving():
            pass

    def _judge(
        self, closed: Sequence[Window], window: StreamWindow[object], conversation: Conversation
    ) -> Flow[Blocked | None]:
        """Judge windows, and note what becomes of each; return the first block."""
        for each in closed:
            result = yield from self._check_window(each, conversation)
            if result.blocked:
                return Blocked(result.decision, result.verdict)
            if result.decision.action is Action.REDACT:
                window.replaced(each, REDACTED)
            else:
                window.passed(each)
        return None

    def _check_window(self, window: Window, conversation: Conversation) -> Flow[CheckResult]:
        judged = [*conversation, Message(role="assistant", content=window.judged)]
        return (yield from self.checks.check(judged, offset=window.start))

    def _leaving(self, window: StreamWindow[object]) -> Iterator[object]:
        """Yield the chunks that may leave, redacted where they must be."""
        for chunk, redaction in window.leaving():
            released = chunk if redaction is None else self.codec.write_output(chunk, redaction)
            # Of a stream of strings, nothing is left of those whose text was replaced before.
            if redaction is None or released != "" or not isinstance(released, str):
                yield released

    def _texts(self, chunk: object) -> Mapping[Hashable, str]:
        """Return a chunk's piece of each text of its stream; where there is but one, by None."""
        if chunk is None or "output" not in self.stages:
            return {}
        read = self.codec.read_output(chunk)
        if not isinstance(read, Mapping):
            return {None: _checked_text(read)}
        return {key: _checked_text(text) for key, text in read.items()}

    def _admit(self, args: Args, kwargs: Kwargs) -> Flow[Admitted | Blocked]:
        """Read the input now, and return the flow that judges it."""
        return self._admission(list(self.codec.read_input(args, kwargs)), args, kwargs)

    def _admission(
        self, conversation: list[Message], args: Args, kwargs: Kwargs
    ) -> Flow[Admitted | Blocked]:
        """Judge every message that is new to the model: those since an assistant last spoke."""
        if "input" not in self.stages:
            return Admitted(args, kwargs, tuple(conversation))
        last = len(conversation) - 1
        for index in _new_messages(conversation):
            asked = replace(conversation[index], role="user")
            result = yield from self.checks.check([*conversation[:index], asked])
            decision = result.decision
            if decision.action is Action.REDACT and index == last and not self.parallel:
                args, kwargs = self.codec.write_input(args, kwargs, REDACTED)
                conversation[index] = replace(conversation[index], content=REDACTED)
            elif decision.action is Action.REDACT:
                # In parallel, the function has it already.
                which = "No input of a parallel call" if self.parallel else "Only the last message"
                reason = f"{decision.reason} {which} can be redacted: blocked."
                decision = replace(decision, action=Action.BLOCK, reason=reason)
            if decision.action is Action.BLOCK:
                return Blocked(decision, result.verdict)
        return Admitted(args, kwargs, tuple(conversation))

    def _release(self, value: object, conversation: Conversation) -> Flow[object]:
        """Judge a whole output; return it, its redacted copy, or the block."""
        if "output" not in self.stages:
            return value
        read = self.codec.read_output(value)
        texts = map(_checked_text, read.values() if isinstance(read, Mapping) else (read,))
        text = "\n\n".join(filter(None, texts))
        judged = [*conversation, Message(role="assistant", content=text)]
        result = yield from self.checks.check(judged)
        if result.blocked:
            return Blocked(result.decision, result.verdict)
        if result.decision.action is Action.REDACT:
            return self.codec.write_output(value, REDACTED)
        return value

    def _denied(self, blocked: Blocked) -> Flow[object]:
        if self.on_block is None:
            raise blocked
        value = yield Call(partial(self.on_block, blocked.decision))
        _refuse_awaitable(
            value, "on_block is async, but the wrapped function is sync: make it a plain function."
        )
        return value


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call whose input was judged, redacted where the policy says so."""

    args: Args
    kwargs: Mapping[str, object]
    conversation: Conversation


def _close(source: Source, *, quietly: bool) -> Flow[None]:
    """Close `source`; after a block, what that fails with must not take the block's place."""
    try:
        yield Call(source.close)
    except Exception:
        if not quietly:
            raise


def _raced(answer: object) -> Raced:
    if not isinstance(answer, Raced):
        raise TypeError("A race must be answered by what came of it.")
    return answer


class _Begun:
    """A source whose first chunk was fetched already."""

    def __init__(self, source: Source, first: object) -> None:
        self._first = [first]
        self._source = source
        self.send, self.throw, self.close = source.send, source.throw, source.close

    def next(self) -> object:
        """Return the first chunk, then those of the source."""
        return self._first.pop() if self._first else self._source.next()


def _new_messages(conversation: Sequence[Message]) -> list[int]:
    """Return the indices of the messages since the last assistant's, system messages left out.

    In an agent's loop these are the results of several tool calls, and each may be an attack.

    Raises:
        MessageError: If there is none.
    """
    new: list[int] = []
    for index, message in enumerate(conversation):
        if message.role == "assistant":
            new = []
        elif message.role != "system":
            new.append(index)
    if new:
        return new
    if conversation and conversation[-1].role == "system":
        return [len(conversation) - 1]
    raise MessageError(
        "The input has no message after the last assistant's: end it with a user's or a tool's "
        "message, or pass a codec that says what to judge."
    )


def _emit(item: object, source: Source, *, over: bool) -> Flow[Callable[[], object] | None]:
    """Emit `item`; return the step that the consumer asks of `source` by `send` or `throw`.

    What is sent to a source that is over already reaches nobody.
    """
    try:
        sent = yield Emit(item)
    except Stopped:
        raise
    except BaseException as error:
        return partial(source.throw, error)
    return None if sent is None or over else partial(source.send, sent)


def _checked_text(text: object) -> str:
    if isinstance(text, str):
        return text
    raise MessageError(
        f"The codec read {type(text).__name__}: read_output must return a string, or a mapping "
        "to strings."
    )


def is_live(value: object) -> bool:
    """Return whether `value` is a stream or an awaitable rather than a finished output."""
    kind = type(value)
    return any(hasattr(kind, name) for name in ("__next__", "__await__", "__anext__", "__aiter__"))
