"""Wrapped functions: the same kind comes back, and nothing unjudged goes in or comes out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from pathlib import Path
from threading import get_ident
from typing import cast

import anyio
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage

from guardrail_sdk import (
    Action,
    Blocked,
    Category,
    CategoryRule,
    CheckEvent,
    CheckResult,
    ConfigError,
    Decision,
    DefaultCodec,
    Guard,
    Hooks,
    Message,
    MessageError,
    Policy,
    Stage,
)
from guardrail_sdk._codec import Args, Kwargs
from guardrail_sdk._judge import Budget
from guardrail_sdk._local import LocalModel
from guardrail_sdk._policy import REDACTED
from guardrail_sdk._stream import GROWN_TAIL_CHARS, TAIL_CHARS
from guardrail_sdk.artifact import open_artifact
from guardrail_sdk.testing import FakeModel

guard = Guard(model=FakeModel(["bomb"]))
redacting = Guard(
    model=FakeModel(["bomb"]),
    policy=Policy(categories=(CategoryRule(id=Category.S2, action=Action.REDACT),)),
)


def plain(prompt: str, *, answer: str = "fine") -> str:
    """Answer plainly."""
    calls.append(prompt)
    return answer


async def coroutine(prompt: str, *, answer: str = "fine") -> str:
    """Answer later."""
    calls.append(prompt)
    return answer


def generator(prompt: str, *, answer: str = "fine") -> Iterator[str]:
    """Answer in pieces."""
    calls.append(prompt)
    yield from answer


async def async_generator(prompt: str, *, answer: str = "fine") -> AsyncIterator[str]:
    """Answer in pieces, later."""
    calls.append(prompt)
    for piece in answer:
        yield piece


FUNCTIONS = [plain, coroutine, generator, async_generator]
calls: list[str] = []


class Bot:
    """The four kinds as methods, under the names of the functions."""

    def plain(self, prompt: str, *, answer: str = "fine") -> str:
        return plain(prompt, answer=answer)

    async def coroutine(self, prompt: str, *, answer: str = "fine") -> str:
        return await coroutine(prompt, answer=answer)

    def generator(self, prompt: str, *, answer: str = "fine") -> Iterator[str]:
        yield from generator(prompt, answer=answer)

    async def async_generator(self, prompt: str, *, answer: str = "fine") -> AsyncIterator[str]:
        async for piece in async_generator(prompt, answer=answer):
            yield piece


def callable_object(method: str) -> object:
    """Return an object whose `__call__` is the method of that name."""
    return type("CallableBot", (), {"__call__": getattr(Bot, method), "state": "secret"})()


Chat = Callable[..., object]
SHAPES: dict[str, Callable[[Chat], Chat]] = {
    "function": lambda f: f,
    "bound method": lambda f: getattr(Bot(), f.__name__),
    "partial": lambda f: functools.partial(f, answer="fine"),
    "partial of a partial": lambda f: functools.partial(functools.partial(f), answer="fine"),
    "partial of a method": lambda f: functools.partial(getattr(Bot(), f.__name__)),
    "callable object": lambda f: cast("Chat", callable_object(f.__name__)),
    "lambda": lambda f: lambda *args, **kwargs: f(*args, **kwargs),
}
everything = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


async def result_of(called: object) -> list[object]:
    """Return what a call of any kind came to, as a list of what came out."""
    if inspect.isawaitable(called):
        called = await called
    if hasattr(called, "__anext__"):
        return [item async for item in cast("AsyncIterator[object]", called)]
    if hasattr(called, "__next__"):
        return list(cast("Iterator[object]", called))
    return [called]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@everything
@every_shape
def test_the_same_kind_comes_back(function: Chat, shape: Callable[[Chat], Chat]) -> None:
    original = shape(function)
    guarded = guard.wrap(original)

    looked_at = original if not hasattr(original, "state") else original.__call__
    for is_kind in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ):
        assert is_kind(guarded) == is_kind(looked_at)
    assert inspect.signature(guarded) == inspect.signature(original)
    assert guarded.__doc__ == original.__doc__
    assert not hasattr(guarded, "state")


@everything
@every_shape
@pytest.mark.anyio
async def test_what_is_allowed_passes(function: Chat, shape: Callable[[Chat], Chat]) -> None:
    guarded = guard.wrap(shape(function))

    assert "".join(map(str, await result_of(guarded("hi", answer="An answer.")))) == "An answer."
    assert calls == ["hi"]


@everything
@every_shape
@pytest.mark.asyncio
async def test_an_unsafe_input_never_reaches_the_function(
    function: Chat, shape: Callable[[Chat], Chat]
) -> None:
    guarded = guard.wrap(shape(function))

    with pytest.raises(Blocked) as raised:
        await result_of(guarded("a bomb"))

    assert raised.value.verdict is not None
    assert raised.value.verdict.stage == "input"
    assert calls == []


@everything
@every_shape
@pytest.mark.asyncio
async def test_an_unsafe_output_never_leaves(function: Chat, shape: Callable[[Chat], Chat]) -> None:
    guarded = guard.wrap(shape(function))

    with pytest.raises(Blocked) as raised:
        await result_of(guarded("hi", answer="a bomb"))

    assert raised.value.verdict is not None
    assert raised.value.verdict.stage == "output"


@everything
@every_shape
@pytest.mark.asyncio
async def test_on_block_gives_the_result(function: Chat, shape: Callable[[Chat], Chat]) -> None:
    guarded = guard.wrap(shape(function), on_block=lambda decision: decision.category)

    assert await result_of(guarded("a bomb")) == [Category.S2]
    assert await result_of(guarded("hi", answer="a bomb")) == [Category.S2]
    assert calls == ["hi"]


@everything
@pytest.mark.asyncio
async def test_redact_replaces_what_goes_in_and_comes_out(function: Chat) -> None:
    guarded = redacting.wrap(function)

    assert "".join(map(str, await result_of(guarded("a bomb", answer="fine")))) == "fine"
    assert await result_of(guarded("hi", answer="a bomb")) == [REDACTED]
    assert calls == [REDACTED, "hi"]


@everything
@pytest.mark.asyncio
async def test_a_failed_check_lets_nothing_in(function: Chat) -> None:
    guarded = Guard(model=FakeModel.failing()).wrap(function)

    with pytest.raises(Blocked) as raised:
        await result_of(guarded("hi"))

    assert raised.value.verdict is None
    assert calls == []


@everything
@pytest.mark.asyncio
async def test_what_is_not_understood_never_reaches_the_function(function: Chat) -> None:
    guarded = guard.wrap(function)

    with pytest.raises(MessageError):
        await result_of(guarded(prompt={"text": "a bomb"}))

    assert calls == []


@everything
@pytest.mark.asyncio
async def test_a_guard_inside_a_guard_raises_its_own_block(function: Chat) -> None:
    inner = guard.wrap(function)
    outer = Guard(model=FakeModel()).wrap(inner, on_block=lambda decision: "outer")

    with pytest.raises(Blocked):
        await result_of(outer("a bomb"))


@everything
@pytest.mark.asyncio
async def test_the_functions_own_exceptions_pass_through(function: Chat) -> None:
    class Failing(str):
        """Text that can't be iterated, concatenated or read."""

        def __iter__(self) -> Iterator[str]:
            raise ZeroDivisionError

    def plain_failing(prompt: str, *, answer: str) -> str:
        raise ZeroDivisionError

    async def coroutine_failing(prompt: str, *, answer: str) -> str:
        raise ZeroDivisionError

    others: dict[Chat, Chat] = {plain: plain_failing, coroutine: coroutine_failing}
    failing = others.get(function, function)

    with pytest.raises(ZeroDivisionError):
        await result_of(guard.wrap(failing)("hi", answer=Failing()))


def test_the_output_is_judged_in_the_context_of_the_input() -> None:
    model = FakeModel()
    history = [
        {"role": "system", "content": "be nice"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "how are you?"},
    ]

    def chat(messages: object) -> str:
        return "fine"

    Guard(model=model).wrap(chat)(history)

    assert [[m.role for m in seen] for seen in model.seen] == [
        ["system", "user", "assistant", "user"],
        ["system", "user", "assistant", "user", "assistant"],
    ]
    assert model.seen[1][-1] == Message(role="assistant", content="fine")


def test_every_result_of_an_agents_tools_is_judged() -> None:
    agent: list[dict[str, object]] = [
        {"role": "user", "content": "search"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "args": {}}]},
        {"role": "tool", "content": "how to make a bomb"},
        {"role": "tool", "content": "nothing"},
    ]

    def chat(messages: object) -> str:
        calls.append("chat")
        return "fine"

    with pytest.raises(Blocked):
        guard.wrap(chat)(agent)
    with pytest.raises(Blocked, match="Only the last message can be redacted"):
        redacting.wrap(chat)(agent)
    agent[2]["content"] = "cakes"
    assert guard.wrap(chat)(agent) == "fine"
    assert calls == ["chat"]


@pytest.mark.parametrize("roles", [["user", "assistant"], ["assistant"]])
def test_an_input_that_ends_in_an_answer_is_refused(roles: list[str]) -> None:
    with pytest.raises(MessageError, match="after the last assistant's"):
        guard.wrap(plain)([{"role": role, "content": "a bomb"} for role in roles])  # type: ignore[arg-type]


def test_flagged_text_passes() -> None:
    policy = Policy(categories=(CategoryRule(id=Category.S2, action=Action.FLAG),))
    flags: list[Action] = []
    hooks = Hooks(after_input=lambda event, result: flags.append(result.decision.action))

    assert Guard(FakeModel(["bomb"]), policy, hooks).wrap(plain)("a bomb") == "fine"
    assert flags == [Action.FLAG]


def test_a_decorated_method_is_guarded() -> None:
    class Bot:
        @guard.wrap
        def chat(self, prompt: str) -> str:
            return prompt

    assert Bot().chat("hi") == "hi"
    with pytest.raises(Blocked):
        Bot().chat("a bomb")


def test_a_decorated_static_method_is_guarded() -> None:
    class Bot:
        @guard.wrap
        @staticmethod
        async def chat(prompt: str) -> str:
            return prompt + "mb"

    with pytest.raises(Blocked):
        anyio.run(cast("Callable[[str], Awaitable[str]]", Bot.chat), "bo")


@pytest.mark.asyncio
async def test_an_async_function_that_returns_a_stream_is_guarded() -> None:
    async def chat(prompt: str, *, answer: str) -> AsyncIterator[str]:
        return async_generator(prompt, answer=answer)

    assert [c async for c in await guard.wrap(chat)("hi", answer="fine")] == [*"fine"]
    with pytest.raises(Blocked):
        [c async for c in await guard.wrap(chat)("hi", answer="bomb")]


@pytest.mark.asyncio
async def test_a_plain_function_that_returns_a_coroutine_of_a_stream_is_guarded() -> None:
    async def chat(prompt: str, *, answer: str) -> AsyncIterator[str]:
        return async_generator(prompt, answer=answer)

    def delegate(prompt: str, answer: str) -> Awaitable[AsyncIterator[str]]:
        return chat(prompt, answer=answer)

    guarded = guard.wrap(delegate)

    assert [c async for c in await guarded("hi", answer="fine")] == [*"fine"]
    with pytest.raises(Blocked):
        [c async for c in await guarded("hi", answer="bomb")]


def decorated(function: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    """Hide an async function behind a plain one, as client libraries' decorators do."""

    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> Awaitable[str]:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.anyio
async def test_a_decorated_async_function_is_judged_off_the_event_loop() -> None:
    threads: list[int] = []

    def scores(stage: str, text: str) -> float:
        threads.append(get_ident())
        return float("bomb" in text)

    guarded = Guard(model=FakeModel(scores)).wrap(decorated(coroutine))

    assert not inspect.iscoroutinefunction(guarded)
    assert await guarded("hi") == "fine"
    with pytest.raises(Blocked):
        await guarded("a bomb")
    assert get_ident() not in threads


def test_a_decorated_async_function_is_guarded_without_an_event_loop() -> None:
    guarded = guard.wrap(decorated(coroutine))

    async def run(pending: Awaitable[str]) -> str:
        return await pending

    assert anyio.run(run, guarded("hi")) == "fine"
    with pytest.raises(Blocked):
        guarded("a bomb")


@pytest.mark.asyncio
async def test_an_async_function_that_returns_a_blocking_stream_is_refused() -> None:
    async def chat(prompt: str) -> Iterator[str]:
        return generator(prompt)

    with pytest.raises(ConfigError, match="returned generator"):
        await guard.wrap(chat)("hi")


@pytest.mark.asyncio
async def test_an_async_iterable_that_is_no_generator_is_guarded_and_closed() -> None:
    class Stream:
        """As client libraries write them: closed by an async `close`."""

        def __init__(self) -> None:
            self.chunks = iter(["a ", "bomb"])
            self.closed = False

        def __aiter__(self) -> Stream:
            return self

        async def __anext__(self) -> str:
            try:
                return next(self.chunks)
            except StopIteration:
                raise StopAsyncIteration from None

        async def close(self) -> None:
            self.closed = True

    stream = Stream()

    async def chat(prompt: str) -> Stream:
        return stream

    with pytest.raises(Blocked):
        async for _ in await guard.wrap(chat)("hi"):
            pass
    assert stream.closed


def test_on_block_may_not_be_async_under_a_sync_function() -> None:
    async def on_block(decision: object) -> str:
        return "no"

    with pytest.raises(ConfigError, match="on_block is async"):
        guard.wrap(plain, on_block=on_block)("a bomb")


def test_an_own_codec_reads_and_redacts_own_types() -> None:
    class Upside:
        def read_input(
            self, args: tuple[object, ...], kwargs: Mapping[str, object]
        ) -> list[Message]:
            return [Message(role="user", content=str(args[1])[::-1])]

        def write_input(
            self, args: tuple[object, ...], kwargs: Mapping[str, object], text: str
        ) -> tuple[tuple[object, ...], Mapping[str, object]]:
            return (args[0], text[::-1]), kwargs

        def read_output(self, value: object) -> str:
            return str(value)[::-1]

        def write_output(self, value: object, text: str) -> object:
            return text[::-1]

    def chat(number: int, prompt: str) -> str:
        return prompt if number else "bmob"

    guarded = redacting.wrap(chat, codec=Upside())

    assert guarded(1, "bmob") == REDACTED[::-1]
    assert guarded(1, "bomb") == "bomb"
    assert guarded(0, "hi") == REDACTED[::-1]


def chat_model(answer: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(answer)]))


@pytest.mark.asyncio
async def test_the_methods_of_a_langchain_model_are_guarded() -> None:
    question = [HumanMessage("hi")]

    assert guard.wrap(chat_model("a cake").invoke)(question).content == "a cake"
    assert (await guard.wrap(chat_model("a cake").ainvoke)("hi")).content == "a cake"
    with pytest.raises(Blocked):
        guard.wrap(chat_model("a bomb").invoke)(question)
    with pytest.raises(Blocked):
        await guard.wrap(chat_model("a bomb").ainvoke)(question)
    redacted = redacting.wrap(chat_model("a bomb").invoke)(question)
    assert (type(redacted), redacted.content) == (AIMessage, REDACTED)


@pytest.mark.asyncio
async def test_the_streams_of_a_langchain_model_are_guarded() -> None:
    chunks = list(guard.wrap(chat_model("a big cake").stream)("hi"))

    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert "".join(str(chunk.content) for chunk in chunks) == "a big cake"
    with pytest.raises(Blocked):
        list(guard.wrap(chat_model("a big bomb").stream)("hi"))
    with pytest.raises(Blocked):
        [chunk async for chunk in guard.wrap(chat_model("a big bomb").astream)("hi")]
    redacted = list(redacting.wrap(chat_model("a big bomb").stream)("hi"))
    assert "".join(str(chunk.content) for chunk in redacted) == REDACTED


def test_tool_calls_that_stream_in_pieces_are_judged() -> None:
    def chat(prompt: str) -> Iterator[dict[str, object]]:
        for piece in ("", '{"what": "a ', "bo", 'mb"}'):
            function = {"name": None if piece else "make", "arguments": piece}
            delta = {"content": None, "tool_calls": [{"index": 0, "function": function}]}
            yield {"choices": [{"index": 0, "delta": delta}]}

    released: list[object] = []
    with pytest.raises(Blocked):
        released.extend(guard.wrap(chat)("hi"))

    assert released == []


def test_the_wrapped_generator_takes_part_in_yield_from() -> None:
    def chat(prompt: str) -> Generator[str, None, None]:
        yield prompt

    async def chat_async(prompt: str) -> AsyncGenerator[str, None]:
        yield prompt

    assert inspect.isgenerator(guard.wrap(chat)("hi"))
    assert inspect.isasyncgen(guard.wrap(chat_async)("hi"))


def test_other_ways_to_call_the_function_are_not_copied_to_the_guarded_one() -> None:
    def chat(prompt: str) -> str:
        return prompt

    chat.stream = lambda prompt: f"unguarded {prompt}"  # type: ignore[attr-defined]

    assert not hasattr(Guard(model=FakeModel()).wrap(chat), "stream")


def test_what_is_sent_after_the_source_ended_does_not_lose_its_return_value() -> None:
    def chat(prompt: str) -> Generator[str, str, str]:
        yield "a"
        yield "b"
        return "ret"

    stream = Guard(model=FakeModel()).wrap(chat)("hi")
    next(stream)
    stream.send("x")
    with pytest.raises(StopIteration) as stop:
        stream.send("y")

    assert stop.value.value == "ret"


def test_an_async_function_below_a_partial_and_a_decorator_takes_async_hooks() -> None:
    async def chat(prompt: str, model: str) -> str:
        return prompt + model

    @functools.wraps(chat)
    def decorated(*args: str, **kwargs: str) -> object:
        return chat(*args, **kwargs)

    async def hook(event: CheckEvent) -> None:
        seen.append(event.stage)

    seen: list[str] = []
    guard = Guard(model=FakeModel(), hooks=Hooks(before_input=hook))
    safe = guard.wrap(functools.partial(decorated, model="m"))

    assert anyio.run(cast("Callable[[str], Awaitable[object]]", safe), "hi") == "him"
    assert seen == ["input"]


SENTENCES = [
    f"Sentence number {number} of this answer is {how} long enough to be a window of its own. "
    for number, how in enumerate(("quite", "just", "surely", "hardly", "nearly", "about", "well"))
]


def said_by_a_model(prompt: str) -> Iterator[str]:
    yield from SENTENCES


async def said_by_a_model_later(prompt: str) -> AsyncIterator[str]:
    for sentence in SENTENCES:
        yield sentence


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["tiny", "tiny-encoder"])
@pytest.mark.parametrize("chat", [said_by_a_model, said_by_a_model_later])
async def test_a_real_models_stream_ends_before_the_window_that_it_blocks(
    name: str, chat: Chat
) -> None:
    model = LocalModel(open_artifact(Path(__file__).parent / "data" / name))
    asked = Message(role="user", content="What do you think?")
    text = "".join(SENTENCES)
    assert TAIL_CHARS < len(text) < GROWN_TAIL_CHARS
    ends = [len("".join(SENTENCES[: count + 1])) for count in range(len(SENTENCES))]
    probabilities: list[float] = []
    for sentence, end in zip(SENTENCES, ends, strict=True):
        # A decoder is shown all from the same place on, up to three times as much.
        start = 0 if model.extends else max(0, end - len(sentence) - TAIL_CHARS)
        seen = text[start:end]
        answer = Message(role="assistant", content=seen)
        verdict = model.judge([asked, answer], Policy(), Budget())
        probabilities.append(verdict.unsafe_probability)
    worst = next(
        place
        for place in range(1, len(SENTENCES))
        if probabilities[place] > max(probabilities[:place])
    )
    threshold = (max(probabilities[:worst]) + probabilities[worst]) / 2
    policy = Policy(input_threshold=1.0, output_threshold=threshold)
    decisions: list[Decision] = []
    guarded = Guard(model, policy).wrap(chat, on_block=decisions.append)

    released = await result_of(guarded("What do you think?"))

    assert released == [*SENTENCES[:worst], None]
    assert [decision.action for decision in decisions] == [Action.BLOCK]
    unguarded = Guard(model, Policy(input_threshold=1.0, output_threshold=1.0)).wrap(chat)
    assert await result_of(unguarded("What do you think?")) == SENTENCES


@everything
@pytest.mark.asyncio
async def test_a_stage_that_is_not_asked_for_is_not_judged(function: Chat) -> None:
    model = FakeModel(["bomb"])
    asked = Guard(model=model).wrap(function, stages=("input",))
    answered = Guard(model=model).wrap(function, stages=("output",))

    assert "".join(map(str, await result_of(asked("hello", answer="a bomb")))) == "a bomb"
    assert "".join(map(str, await result_of(answered("a bomb", answer="fine")))) == "fine"
    judged = [[message.content for message in seen] for seen in model.seen]
    assert judged == [["hello"], ["a bomb", "fine"]]
    with pytest.raises(Blocked):
        await result_of(asked("a bomb"))
    with pytest.raises(Blocked):
        await result_of(answered("hello", answer="a bomb"))


def test_an_output_alone_needs_no_input() -> None:
    class Alone(DefaultCodec):
        def read_input(self, args: Args, kwargs: Kwargs) -> list[Message]:
            return []

    def answers() -> Iterator[str]:
        yield from ("fine. ", "A bomb.")

    with pytest.raises(Blocked):
        list(guard.wrap(answers, codec=Alone(), stages=("output",))())
    with pytest.raises(MessageError):
        list(guard.wrap(answers, codec=Alone())())


@pytest.mark.parametrize("stages", [(), ("inputs",), ("input", "tool")])
def test_stages_are_known(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(ConfigError, match="stages"):
        guard.wrap(plain, stages=stages)


@everything
@pytest.mark.asyncio
async def test_each_outcome_is_told(function: Chat) -> None:
    told: list[CheckResult] = []
    flagged = Decision(action=Action.FLAG, category=None, reason="hook")
    hooks = Hooks(after_input=lambda event, result: flagged)
    guarded = Guard(model=FakeModel(["bomb"]), hooks=hooks).wrap(function, on_check=told.append)

    with pytest.raises(Blocked):
        await result_of(guarded("hello", answer="a bomb"))
    assert [result.decision.action for result in told] == [Action.FLAG, Action.BLOCK]
