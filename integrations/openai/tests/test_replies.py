"""What a user of a guarded client gets: replies, streams, blocks and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

import openai
import pytest
from guardrail_sdk_openai import OnBlock, guard_client, verdicts
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from service import (
    Answer,
    Asked,
    Events,
    Json,
    Service,
    chunk,
    chunks,
    completion,
    message,
    plain,
    plain_async,
    response,
    response_events,
    said,
    serving,
    tool_call,
)

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

BAD = "zyxbombxyz"
REDACTED = "[redacted by guardrail]"
REDACT = Policy(categories=(CategoryRule(id=Category.S2, action=Action.REDACT),))
SENTENCE = "The soup needs two carrots, an onion, a little salt and about forty minutes of time. "
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@contextmanager
def guarded(
    answer: Answer, *, on_block: OnBlock = "raise", policy: Policy | None = None
) -> Generator[tuple[OpenAI, Service], None, None]:
    guard = Guard(model=FakeModel([BAD]), policy=policy)
    with serving(answer) as service, plain(service.url) as client:
        yield guard_client(client, guard, on_block=on_block), service


def never(asked: Asked) -> Json:
    raise AssertionError("nothing may be sent")


ASKS: list[Callable[[OpenAI], object]] = [
    lambda c: c.chat.completions.create(
        model="m", messages=[{"role": "user", "content": [{"type": "text", "text": BAD}]}]
    ),
    lambda c: c.chat.completions.create(
        model="m", messages=[*HELLO, {"role": "tool", "tool_call_id": "1", "content": BAD}]
    ),
    lambda c: c.chat.completions.create(
        model="m", messages=HELLO, extra_body={"messages": [{"role": "user", "content": BAD}]}
    ),
    lambda c: c.with_options(timeout=5).chat.completions.create(
        model="m", messages=[{"role": "user", "content": BAD}]
    ),
    lambda c: c.copy().with_raw_response.chat.completions.create(
        model="m", messages=[{"role": "user", "content": BAD}]
    ),
    lambda c: c.completions.create(model="m", prompt=["soup", BAD, "soup"]),
    lambda c: c.completions.create(model="m", prompt="soup", suffix=BAD),
    lambda c: c.responses.create(model="m", input=BAD),
    lambda c: c.responses.create(model="m", input=[{"role": "user", "content": BAD}]),
    lambda c: c.responses.create(
        model="m", input=[{"type": "function_call_output", "call_id": "1", "output": BAD}]
    ),
    lambda c: c.responses.create(model="m", prompt={"id": "1", "variables": {"city": BAD}}),
    lambda c: c.images.generate(prompt=BAD),
    lambda c: c.audio.speech.create(input=BAD, model="m", voice="alloy"),
    lambda c: c.post("/chat/completions", body={"messages": BAD}, cast_to=object),
]


@pytest.mark.parametrize("ask", ASKS)
def test_an_unsafe_input_is_not_sent(ask: Callable[[OpenAI], object]) -> None:
    with guarded(never) as (client, service):
        with pytest.raises(Blocked):
            ask(client)
        assert service.asked == []


def test_every_choice_is_judged() -> None:
    with (
        guarded(lambda _: completion("soup", f"a {BAD}")) as (client, _),
        pytest.raises(Blocked),
    ):
        client.chat.completions.create(model="m", messages=HELLO, n=2)


@pytest.mark.parametrize("field", ["refusal", "reasoning_content", "reasoning", "unheard_of"])
def test_every_field_of_a_message_is_judged(field: str) -> None:
    with (
        guarded(lambda _: completion("soup", **{field: BAD})) as (client, _),
        pytest.raises(Blocked),
    ):
        client.chat.completions.create(model="m", messages=HELLO)


def interleaved(*texts: str) -> Events:
    """Yield the choices of a stream in turn, a few characters each."""
    for at in range(0, max(map(len, texts)), 3):
        for index, text in enumerate(texts):
            if text[at : at + 3]:
                yield chunk({"content": text[at : at + 3]}, index=index)


def test_interleaved_choices_are_judged_each() -> None:
    told: list[str] = []
    with guarded(lambda _: interleaved(4 * SENTENCE, f"{3 * SENTENCE}{BAD}")) as (client, _):
        stream = client.chat.completions.create(model="m", messages=HELLO, n=2, stream=True)
        with pytest.raises(Blocked):
            told.extend(
                choice.delta.content or ""
                for event in stream
                for choice in event.choices
                if choice.index
            )
    assert (3 * SENTENCE).startswith("".join(told))
    assert told


def test_interleaved_tool_calls_are_judged_each() -> None:
    def calls(_: Asked) -> Events:
        yield chunk({"tool_calls": [tool_call("", "search"), tool_call("", "search", 1)]})
        for letter in f'{{"a": "{BAD}"}}':
            yield chunk({"tool_calls": [tool_call(letter)]})
            yield chunk({"tool_calls": [tool_call("x", index=1)]})

    with guarded(calls) as (client, _):
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(Blocked):
            list(stream)


def test_a_response_that_repeats_a_redacted_text_repeats_what_was_told() -> None:
    pieces = [SENTENCE, f"A {BAD}. ", SENTENCE]
    with (
        guarded(lambda _: response_events(pieces), policy=REDACT) as (client, _),
        client.responses.stream(model="m", input="hello") as events,
    ):
        told = [event.model_dump_json(warnings=False) for event in events]
        final = events.get_final_response()
    assert not any(BAD in event for event in told)
    assert REDACTED in final.output_text
    assert final.output_text.startswith(SENTENCE)


def test_the_events_that_repeat_are_judged_if_nothing_came_before() -> None:
    def only_the_end(_: Asked) -> Events:
        yield {"type": "response.created", "sequence_number": 0, "response": response()}
        done = response(message(f"a {BAD}"))
        yield {"type": "response.completed", "sequence_number": 1, "response": done}

    with guarded(only_the_end) as (client, _), pytest.raises(Blocked):
        list(client.responses.create(model="m", input="hello", stream=True))


def test_redaction_keeps_the_type() -> None:
    with guarded(lambda _: completion(f"a {BAD}"), policy=REDACT) as (client, _):
        reply = client.chat.completions.create(model="m", messages=HELLO)
    assert reply.choices[0].message.content == REDACTED
    with guarded(lambda _: response(message(BAD)), policy=REDACT) as (client, _):
        assert client.responses.create(model="m", input="hello").output_text == REDACTED


@pytest.mark.parametrize("prompt", ["hello", BAD])
def test_content_filter_takes_the_place_of_a_reply(prompt: str) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]

    def answer(asked: Asked) -> Json | Events:
        if "responses" in asked.path:
            return response_events([BAD]) if asked.streamed else response(message(BAD))
        return said(f"{4 * SENTENCE}{BAD}") if asked.streamed else completion(BAD)

    with guarded(answer, on_block="content_filter") as (client, _):
        whole = client.chat.completions.create(model="m", messages=messages)
        assert [choice.finish_reason for choice in whole.choices] == ["content_filter"]
        assert whole.choices[0].message.content == ""
        events = list(client.chat.completions.create(model="m", messages=messages, stream=True))
        assert events[-1].choices[0].finish_reason == "content_filter"
        assert BAD not in "".join(event.choices[0].delta.content or "" for event in events)
        with client.chat.completions.stream(model="m", messages=messages) as stream:
            stream.until_done()
            assert stream.current_completion_snapshot.choices[0].finish_reason == "content_filter"
        with pytest.raises(openai.ContentFilterFinishReasonError):
            client.chat.completions.parse(model="m", messages=messages)
        reply = client.responses.create(model="m", input=prompt)
        assert (reply.status, reply.output_text) == ("incomplete", "")
        assert reply.incomplete_details is not None
        assert reply.incomplete_details.reason == "content_filter"
        with client.responses.stream(model="m", input=prompt) as ending:
            assert [event.type for event in ending][-1] == "response.incomplete"


def test_verdicts_ride_along() -> None:
    with guarded(lambda a: said(2 * SENTENCE) if a.streamed else completion("soup")) as (client, _):
        reply = client.chat.completions.create(model="m", messages=HELLO)
        stages = [check.verdict.stage for check in verdicts(reply) if check.verdict]
        assert stages == ["input", "output"]
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        assert len(verdicts(stream)) == 1
        list(stream)
        assert len(verdicts(stream)) > 1
        with client.chat.completions.stream(model="m", messages=HELLO) as events:
            assert len(verdicts(events)) == 1
        with pytest.raises(ConfigError):
            verdicts(completion("soup"))


def test_a_raw_response_is_judged_and_a_raw_stream_refused() -> None:
    with guarded(lambda _: completion("soup")) as (client, _):
        raw = client.chat.completions.with_raw_response.create(model="m", messages=HELLO)
        assert raw.parse().choices[0].message.content == "soup"
        assert len(verdicts(raw)) == 2
    with guarded(lambda _: completion(BAD)) as (client, _), pytest.raises(Blocked):
        client.chat.completions.with_raw_response.create(model="m", messages=HELLO)
    with guarded(never) as (client, service):
        with pytest.raises(ConfigError):
            client.chat.completions.with_raw_response.create(model="m", messages=HELLO, stream=True)
        with (
            pytest.raises(ConfigError),
            client.chat.completions.with_streaming_response.create(model="m", messages=HELLO),
        ):
            pass
        assert service.asked == []


def test_stored_replies_are_judged() -> None:
    with guarded(lambda a: response(message(BAD)) if "resp" in a.path else completion(BAD)) as (
        client,
        _,
    ):
        with pytest.raises(Blocked):
            client.responses.retrieve("resp_1")
        with pytest.raises(Blocked):
            client.responses.cancel("resp_1")
        with pytest.raises(Blocked):
            client.chat.completions.retrieve("chatcmpl-1")


def test_the_body_of_a_stream_is_sealed() -> None:
    with guarded(lambda _: said(SENTENCE)) as (client, _):
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        assert stream.response.status_code == 200
        with pytest.raises(ConfigError):
            stream.response.read()
        with pytest.raises(ConfigError):
            next(stream.response.iter_lines())  # type: ignore[call-overload]
        stream.close()
        assert stream.response.is_closed


@pytest.mark.parametrize("data", ["{", "3", '{"choices": 3}', '{"choices": ["x"]}'])
def test_a_malformed_chunk_fails_closed(data: str) -> None:
    def events(_: Asked) -> Events:
        yield chunk({"content": BAD})
        yield data

    told: list[object] = []
    with guarded(events) as (client, _):
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises((MessageError, ValueError)):
            told.extend(stream)
    assert told == []


def test_an_error_status_stays_the_clients_own() -> None:
    error: Json = {"error": {"message": "slow down"}}
    with guarded(lambda _: (429, error)) as (client, _), pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="m", messages=HELLO)


def test_an_error_in_a_stream_tells_only_what_was_judged() -> None:
    def events(_: Asked) -> Events:
        yield chunk({"content": "not judged yet"})
        yield {"error": {"message": "broken"}}

    told: list[object] = []
    with guarded(events) as (client, _):
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="broken"):
            told.extend(stream)
    assert told == []


def test_images_are_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with guarded(never) as (client, service):
        with pytest.raises(MessageError):
            client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": [part]}],  # type: ignore[list-item]
            )
        assert service.asked == []


def test_what_carries_no_chat_passes() -> None:
    item = {"object": "embedding", "index": 0, "embedding": [0.5]}
    with guarded(lambda _: {"object": "list", "data": [item], "model": "m"}) as (client, service):
        assert client.embeddings.create(model="m", input=BAD).data[0].embedding == [0.5]
        client.models.list()
        assert [asked.path for asked in service.asked] == ["/v1/embeddings", "/v1/models"]


def test_a_client_is_guarded_once() -> None:
    with guarded(never) as (client, _):
        with pytest.raises(ConfigError):
            guard_client(client, Guard(model=FakeModel()))
        with pytest.raises(ConfigError):
            guard_client("client", Guard(model=FakeModel()))  # type: ignore[type-var]


def test_content_filter_in_async_streams() -> None:
    async def ask(url: str) -> list[str | None]:
        guard = Guard(model=FakeModel([BAD]))
        async with guard_client(plain_async(url), guard, on_block="content_filter") as client:
            whole = await client.chat.completions.create(model="m", messages=HELLO)
            stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
            events = [event async for event in stream]
            return [event.choices[0].finish_reason for event in (whole, events[-1])]

    with serving(lambda a: said(BAD) if a.streamed else completion(BAD)) as service:
        assert asyncio.run(ask(service.url)) == ["content_filter", "content_filter"]


def test_text_completions_are_judged_whole_and_streamed() -> None:
    def answer(asked: Asked) -> Json | Events:
        choice: Json = {"index": 0, "text": BAD, "finish_reason": "stop"}
        whole: Json = {"id": "1", "object": "text_completion", "choices": [choice]}
        return (part for part in [whole]) if asked.streamed else whole

    with guarded(answer) as (client, _):
        with pytest.raises(Blocked):
            client.completions.create(model="m", prompt="hello")
        with pytest.raises(Blocked):
            list(client.completions.create(model="m", prompt="hello", stream=True))


def test_reasoning_beside_content_is_judged_apart() -> None:
    deltas: list[Json] = [
        {"reasoning_content": f"Think. {BAD[:6]}", "content": "soup "},
        {"reasoning_content": BAD[6:], "content": "soup"},
    ]
    with guarded(lambda _: chunks(*deltas)) as (client, _):
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(Blocked):
            list(stream)
