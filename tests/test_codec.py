"""The shapes that the default codec reads, redacts and refuses."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from pydantic import BaseModel, ConfigDict

from guardrail_sdk import DefaultCodec, Message, MessageError

codec = DefaultCodec()
CANARY = "c4n4ry"


class Open(BaseModel):
    """Stands in for the OpenAI client's response models, which keep unknown fields, too."""

    model_config = ConfigDict(extra="allow")


def completion(*messages: dict[str, object], **extra: object) -> dict[str, object]:
    choices = [
        {"index": i, "message": message, "finish_reason": "stop"}
        for i, message in enumerate(messages)
    ]
    return {"id": "1", "object": "chat.completion", "choices": choices, **extra}


def chunk(delta: object, index: int = 0) -> dict[str, object]:
    return {"object": "chat.completion.chunk", "choices": [{"index": index, "delta": delta}]}


def call(name: str | None, arguments: str) -> dict[str, object]:
    function = {"name": name, "arguments": arguments}
    return {"id": "x", "type": "function", "function": function}


def with_defaults(value: dict[str, object]) -> dict[str, object]:
    """Return `value` with the content that a client's delta objects always have."""
    delta = value.get("delta")
    if not isinstance(delta, dict):
        return value
    return value | {"delta": {"content": None} | cast("dict[str, object]", delta)}


def objects(value: object) -> object:
    """Return JSON-like `value` with pydantic objects in place of dicts, as clients return them."""
    return converted(value, lambda fields: Open(**fields))


def namespaces(value: object) -> object:
    return converted(value, lambda fields: SimpleNamespace(**fields))


def same(value: object) -> object:
    return value


def converted(value: object, make: Callable[[dict[str, object]], object]) -> object:
    if isinstance(value, dict):
        fields = with_defaults(cast("dict[str, object]", value))
        return make({key: converted(item, make) for key, item in fields.items()})
    if isinstance(value, list):
        return [converted(item, make) for item in cast("list[object]", value)]
    return value


USER = [Message(role="user", content="hi")]
INPUTS: dict[str, object] = {
    "string": "hi",
    "dicts": [{"role": "user", "content": "hi"}],
    "one dict": {"role": "user", "content": "hi"},
    "tuple of dicts": ({"role": "user", "content": "hi"},),
    "ours": [Message(role="user", content="hi")],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "h"}, "i"]}],
    "input parts": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
    "langchain": [HumanMessage("hi")],
    "langchain parts": [HumanMessage([{"type": "text", "text": "hi"}])],
    "langchain by role": [ChatMessage(role="user", content="hi")],
    "langchain pair": [("human", "hi")],
    "langchain dict": [{"type": "human", "content": "hi"}],
    "one langchain message": HumanMessage("hi"),
    "chat prompt value": ChatPromptValue(messages=[HumanMessage("hi")]),
    "string prompt value": StringPromptValue(text="hi"),
    "objects": [SimpleNamespace(role="user", content="hi")],
}


@pytest.mark.parametrize("value", INPUTS.values(), ids=INPUTS.keys())
def test_inputs_are_read_wherever_they_stand(value: object) -> None:
    for args, kwargs in [
        ((value,), {}),
        ((len, value, 3), {"model": "x"}),
        ((), {"messages": value}),
        ((), {"prompt": value}),
        ((), {"input": value, "messages": None}),
    ]:
        assert codec.read_input(args, kwargs) == USER


@pytest.mark.parametrize("value", INPUTS.values(), ids=INPUTS.keys())
def test_inputs_are_redacted_in_a_copy(value: object) -> None:
    before = copy.deepcopy(value)

    args, kwargs = codec.write_input((1, value), {"model": "x"}, "gone")
    _, named = codec.write_input((), {"messages": value, "model": "x"}, "gone")

    assert codec.read_input(args, kwargs) == [Message(role="user", content="gone")]
    assert codec.read_input((), named) == [Message(role="user", content="gone")]
    assert (args[0], kwargs, named["model"]) == (1, {"model": "x"}, "x")
    assert value == before


def test_the_other_messages_and_their_types_survive_redaction() -> None:
    messages = [SystemMessage("be nice"), HumanMessage("old"), AIMessage("ok"), HumanMessage("hi")]

    (redacted,), _ = codec.write_input((messages,), {}, "gone")

    assert isinstance(redacted, list)
    assert redacted[:3] == messages[:3]
    assert redacted[3] == HumanMessage("gone")


def test_every_role_is_known_by_its_usual_names() -> None:
    roles = ["developer", "system", "human", "user", "ai", "assistant", "tool", "function"]

    conversation = codec.read_input(([{"role": role, "content": ""} for role in roles],), {})

    assert [message.role for message in conversation] == [
        *("system", "system", "user", "user", "assistant", "assistant", "tool", "tool")
    ]


def test_a_tool_call_in_a_message_is_text() -> None:
    openai = {"role": "assistant", "content": None, "tool_calls": [call("send", '{"to": "x"}')]}
    langchain = AIMessage("", tool_calls=[{"name": "send", "args": {"to": "x"}, "id": "1"}])
    anthropic = {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "1", "name": "send", "input": {"to": "x"}}],
    }
    result = ToolMessage("done", tool_call_id="1")

    conversation = codec.read_input(([openai, langchain, anthropic, result],), {})

    assert [message.content for message in conversation] == [*['send {"to": "x"}'] * 3, "done"]


IMAGE = {"type": "image_url", "image_url": {"url": CANARY}}
REFUSED_INPUTS: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
    "nothing": ((), {}),
    "unknown keyword": ((), {"text": CANARY}),
    "bytes": ((CANARY.encode(),), {}),
    "a number": ((3,), {}),
    "two strings": ((CANARY, CANARY), {}),
    "a string and a list": (("model", [{"role": "user", "content": CANARY}]), {}),
    "by position and by name": ((CANARY,), {"messages": [{"role": "user", "content": CANARY}]}),
    "an empty list": (([],), {}),
    "a list of strings": (([CANARY],), {}),
    "an unknown role": (([{"role": CANARY, "content": CANARY}],), {}),
    "no role": (([{"content": CANARY}],), {}),
    "text under an unknown key": (([{"role": "user", "parts": [{"text": CANARY}]}],), {}),
    "a tool's description": (([{"type": "function", "function": {"name": CANARY}}],), {}),
    "an image": (([{"role": "user", "content": [IMAGE]}],), {}),
    "an image beside text": (([{"role": "user", "content": ["hi", IMAGE]}],), {}),
    "images in a field": (([{"role": "user", "content": "hi", "images": [CANARY]}],), {}),
    "a langchain image": (([HumanMessage([{"type": "image", "base64": CANARY}])],), {}),
    "content that is a number": (([{"role": "user", "content": 3}],), {}),
    "content that is bytes": (([{"role": "user", "content": CANARY.encode()}],), {}),
    "a part that is a number": (([{"role": "user", "content": [3]}],), {}),
    "a part with a strange type": (([{"role": "user", "content": [{"type": ["text"]}]}],), {}),
    "a part with more than text": (
        ([{"role": "user", "content": [{"text": "hi", "inline_data": CANARY}]}],),
        {},
    ),
    "a dict of something else": (({"question": CANARY},), {}),
    "arguments that are no JSON": (
        ([AIMessage.model_construct(content="", tool_calls=[{"name": "x", "args": {CANARY}}])],),
        {},
    ),
}


@pytest.mark.parametrize(("args", "kwargs"), REFUSED_INPUTS.values(), ids=REFUSED_INPUTS.keys())
def test_what_is_not_understood_is_refused_without_its_text(
    args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    with pytest.raises(MessageError) as raised:
        codec.read_input(args, kwargs)

    assert CANARY not in str(raised.value)


@dataclass
class Reply:
    """A user's own message class."""

    content: str
    model: str


OUTPUTS: dict[str, tuple[object, str]] = {
    "string": ("said", "said"),
    "dict": ({"role": "assistant", "content": "said"}, "said"),
    "content alone": ({"content": "said"}, "said"),
    "ours": (Message(role="assistant", content="said"), "said"),
    "a dataclass": (Reply("said", "m"), "said"),
    "langchain": (AIMessage("said"), "said"),
    "langchain chunk": (AIMessageChunk(content="said"), "said"),
    "langchain tool call": (
        AIMessage("say", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}]),
        'say\nf {"a": 1}',
    ),
    "langchain broken tool call": (
        AIMessage("", invalid_tool_calls=[{"name": "f", "args": "{", "id": "1", "error": None}]),
        "f {",
    ),
    "langchain tool call chunk": (
        AIMessageChunk(
            content="", tool_call_chunks=[{"name": None, "args": '{"a', "id": None, "index": 0}]
        ),
        '{"a',
    ),
    "langchain reasoning": (
        AIMessage("say", additional_kwargs={"reasoning_content": "think"}),
        "think\nsay",
    ),
    "langchain thinking part": (
        AIMessage([{"type": "thinking", "thinking": "think"}, {"type": "text", "text": "say"}]),
        "thinksay",
    ),
    "completion": (completion({"role": "assistant", "content": "said"}), "said"),
    "all choices": (completion({"content": "one"}, {"content": "two"}), "one\n\ntwo"),
    "refusal": (completion({"content": None, "refusal": "no"}), "no"),
    "reasoning": (completion({"content": "say", "reasoning_content": "think"}), "think\nsay"),
    "tool calls": (
        completion({"content": None, "tool_calls": [call("f", "{}"), call("g", "[]")]}),
        "f {}\ng []",
    ),
    "custom tool call": (
        completion({"content": None, "tool_calls": [{"custom": {"name": "f", "input": "x"}}]}),
        "f x",
    ),
    "function call": (
        completion({"content": None, "function_call": {"name": "f", "arguments": "{}"}}),
        "f {}",
    ),
    "old completion": ({"choices": [{"index": 0, "text": "said"}]}, "said"),
    "delta": (chunk({"content": "said"}), "said"),
    "delta with a role": (chunk({"role": "assistant", "content": ""}), ""),
    "delta of a role only": (chunk({"role": "assistant"}), ""),
    "empty delta": (chunk({}), ""),
    "usage": ({"choices": [], "usage": {"total_tokens": 3}}, ""),
    "delta of a call": (chunk({"tool_calls": [call("f", "")]}), "f "),
    "delta of arguments": (chunk({"tool_calls": [call(None, '{"a')]}), '{"a'),
    "delta of reasoning": (chunk({"reasoning": "think"}), "think"),
}


@pytest.mark.parametrize(("value", "text"), OUTPUTS.values(), ids=OUTPUTS.keys())
@pytest.mark.parametrize("convert", [same, objects, namespaces], ids=["", "models", "any"])
def test_outputs_are_read_and_redacted_in_a_copy(
    value: object, text: str, convert: Callable[[object], object]
) -> None:
    original = convert(value)
    before = repr(original)

    redacted = codec.write_output(original, "gone")

    assert codec.read_output(original) == text
    assert type(redacted) is type(original)
    if text:
        gone = codec.read_output(redacted)
        assert isinstance(gone, str)
        assert set(gone.split("\n\n")) == {"gone"}
        for word in ("said", "one", "two", "think", "say", '{"a'):
            assert word not in text or word not in repr(redacted).replace("gone", "")
    assert repr(original) == before


CHOICES: dict[str, tuple[object, dict[int | None, str]]] = {
    "a second choice": (chunk({"content": "said"}, index=1), {None: "", 1: "said"}),
    "an old stream": ({"choices": [{"index": 2, "text": "said"}]}, {None: "", 2: "said"}),
    "two choices": (
        {"choices": [{"index": 0, "text": "first"}, {"index": 1, "delta": {"refusal": "second"}}]},
        {None: "first", 1: "second"},
    ),
    "one choice twice": (
        {"choices": [{"index": 1, "text": "first"}, {"index": 1, "text": "second"}]},
        {None: "", 1: "firstsecond"},
    ),
    "beside a choice": (
        {"choices": [{"index": 1, "text": "first"}], "citations": "second"},
        {None: "second", 1: "first"},
    ),
}


@pytest.mark.parametrize(("value", "texts"), CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize("convert", [same, objects, namespaces], ids=["", "models", "any"])
def test_the_choices_of_a_chunk_are_read_apart(
    value: object, texts: dict[int | None, str], convert: Callable[[object], object]
) -> None:
    original = convert(value)

    assert codec.read_output(original) == texts
    redacted = repr(codec.write_output(original, "gone"))
    assert not any(text in redacted for text in filter(None, texts.values()))


def test_redacting_clears_the_tokens_and_the_reason_to_call() -> None:
    value = completion({"content": "say", "tool_calls": [call("f", "{}")]})
    (choice,) = cast("list[dict[str, object]]", value["choices"])
    choice |= {"finish_reason": "tool_calls", "logprobs": {"content": [{"token": "say"}]}}

    redacted = codec.write_output(value, "gone")

    assert redacted == completion({"content": "gone", "tool_calls": []}) | {
        "choices": [
            {
                "index": 0,
                "message": {"content": "gone", "tool_calls": []},
                "finish_reason": "content_filter",
                "logprobs": None,
            }
        ]
    }


REFUSED_OUTPUTS: dict[str, object] = {
    "None": None,
    "bytes": CANARY.encode(),
    "a number": 3,
    "a list": [CANARY],
    "a dict of something else": {"answer": CANARY},
    "an object of something else": SimpleNamespace(answer=CANARY),
    "audio": completion({"content": None, "audio": {"data": CANARY}}),
    "a strange choice": {"choices": [{"index": 0, "content": CANARY}]},
    "a strange delta": chunk({"speech": CANARY}),
    "a strange index": {"choices": [{"index": CANARY, "delta": {}}]},
    "content of something else": {"content": {"text": CANARY}},
    "an image": AIMessage([{"type": "image_url", "image_url": {"url": CANARY}}]),
    "tool calls that are no list": {"content": "hi", "tool_calls": CANARY},
}


@pytest.mark.parametrize("value", REFUSED_OUTPUTS.values(), ids=REFUSED_OUTPUTS.keys())
def test_outputs_that_are_not_understood_are_refused_without_their_text(value: object) -> None:
    with pytest.raises(MessageError) as raised:
        codec.read_output(value)

    assert CANARY not in str(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("role", "type", "content", "text", "choices", "message", "delta", "index"),
                    *("tool_calls", "function", "name", "arguments", "reasoning", "refusal"),
                ]
            ),
            inner | st.sampled_from(["user", "assistant", "text", "tool_use", "thinking"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(value=json_values)
def test_anything_is_either_text_or_a_message_error(value: object) -> None:
    before = json.dumps(value)

    for read in (
        lambda: codec.read_output(value),
        lambda: codec.read_input((value,), {}),
        lambda: codec.write_output(value, "gone"),
    ):
        with contextlib.suppress(MessageError):
            read()

    assert json.dumps(value) == before


def test_something_that_can_not_be_copied_is_refused() -> None:
    class Sealed:
        __slots__ = ()

        @property
        def content(self) -> str:
            return CANARY

    with pytest.raises(MessageError, match="can't be copied"):
        codec.write_output(Sealed(), "gone")


HIDDEN: dict[str, object] = {
    "reasoning part": {
        "content": [{"type": "reasoning", "text": CANARY}, {"type": "text", "text": "ok"}]
    },
    "reasoning item": {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": CANARY}],
    },
    "beside a text part": {"content": [{"type": "text", "text": "ok", "more": [CANARY]}]},
    "reasoning details": {"content": "ok", "reasoning_details": [{"text": CANARY}]},
    "parsed": {"content": "ok", "parsed": {"a": CANARY}},
    "parsed key": {"content": "ok", "parsed": {CANARY: 1}},
    "annotations": {"content": "ok", "annotations": [{"url_citation": {"title": CANARY}}]},
    "beside no choices": {"choices": [], "content": CANARY},
    "beside choices": completion({"content": "ok"}, citations=[CANARY]),
    "text beside a delta": {"choices": [{"delta": {}, "text": CANARY}]},
    "text beside a message": {"choices": [{"message": {"content": "ok"}, "text": CANARY}]},
    "delta field": chunk({"content": "", "thoughts": CANARY}),
    "second arguments": completion(
        {"content": "", "tool_calls": [{"name": "x", "arguments": "", "input": {"a": CANARY}}]}
    ),
    "arguments beside the function": completion(
        {"content": "", "tool_calls": [{"function": {"name": "x"}, "args": {"a": CANARY}}]}
    ),
    "calls beside pieces": {
        "content": "",
        "tool_call_chunks": [{"name": "x", "args": "{}"}],
        "tool_calls": [{"name": "x", "args": {"a": CANARY}}],
    },
    "calls in extras": {
        "content": "",
        "tool_calls": [{"name": "x", "args": {}}],
        "additional_kwargs": {"tool_calls": [call("x", CANARY)]},
    },
    "extras": {"content": "ok", "additional_kwargs": {"parsed": {"a": CANARY}}},
}


@pytest.mark.parametrize("value", HIDDEN.values(), ids=HIDDEN.keys())
@pytest.mark.parametrize("convert", [same, objects, namespaces], ids=["", "models", "any"])
def test_no_field_of_an_output_escapes(value: object, convert: Callable[[object], object]) -> None:
    original = convert(value)
    try:
        text = codec.read_output(original)
    except MessageError:
        return
    assert CANARY in text
    assert CANARY not in repr(codec.write_output(original, "gone"))


@pytest.mark.parametrize(
    "extra",
    [
        {"parts": [{"text": CANARY}]},
        {"attachments": [CANARY]},
        {"tool_calls": [CANARY]},
        {"function_call": CANARY},
        {"image_url": CANARY},
        {"videos": [CANARY]},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_no_field_of_an_input_escapes(extra: dict[str, object]) -> None:
    message = {"role": "user", "content": "hi", **extra}
    try:
        (read,) = codec.read_input(([message],), {})
    except MessageError:
        return
    assert CANARY in read.content
    assert CANARY not in repr(codec.write_input(([message],), {}, "gone"))


def test_inert_fields_are_neither_judged_nor_lost() -> None:
    value = completion({"content": "said", "role": "assistant"}, model="m", usage={"details": "x"})

    assert codec.read_output(value) == "said"
    assert codec.write_output(value, "gone") == completion(
        {"content": "gone", "role": "assistant"}, model="m", usage={"details": "x"}
    )


@pytest.mark.parametrize(
    "other",
    [{"a": CANARY}, bytearray(b"x"), memoryview(b"x"), {CANARY}, iter([CANARY]), object()],
    ids=lambda other: type(other).__name__,
)
def test_only_inert_values_stand_beside_the_messages(other: object) -> None:
    for args in ((other, "hi"), ("hi", other)):
        with pytest.raises(MessageError, match="only one would be judged"):
            codec.read_input(args, {})


def test_an_unknown_object_after_the_messages_is_refused() -> None:
    with pytest.raises(MessageError, match="only one would be judged"):
        codec.read_input(("hi", SimpleNamespace(text=CANARY)), {})
