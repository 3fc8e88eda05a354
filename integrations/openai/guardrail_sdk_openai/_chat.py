"""Chat completions, stored ones, and the older completions of a text."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import ClassVar, Final, cast

from openai import BaseModel
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from guardrail_sdk import Message, MessageError, Stage
from guardrail_sdk_openai._endpoint import (
    COMMON,
    Body,
    Endpoint,
    data_of,
    mapping,
    said,
    sequence,
)

_REASONING: Final = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_KEPT: Final = ("id", "created", "model", "service_tier", "system_fingerprint", "usage")


class ChatCompletions(Endpoint):
    """Chat completions: each choice's content, reasoning and tool calls are judged each."""

    types: ClassVar[Sequence[type[BaseModel]]] = (ChatCompletion, ChatCompletionChunk)

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, object] = {}

    def messages(self, body: Body) -> Sequence[Message]:
        """Return the messages."""
        return COMMON.read_input((), {"messages": body.get("messages")})

    def redacted(self, body: Body, text: str) -> Body:
        """Return the messages with the last one's text replaced."""
        _, written = COMMON.write_input((), {"messages": body.get("messages")}, text)
        return written

    def texts(self, value: BaseModel) -> str | Mapping[Hashable, str]:
        """Return a reply's text, or the pieces of a chunk: by choice, field and tool call."""
        data = data_of(value)
        data.pop("moderation", None)
        self._seen |= {name: data[name] for name in _KEPT if name in data}
        if isinstance(value, ChatCompletionChunk):
            return self._pieces(data)
        return said(data)

    def _pieces(self, data: dict[str, object]) -> dict[Hashable, str]:
        pieces: dict[Hashable, str] = {}
        for item in sequence(data.pop("choices", None)):
            choice = dict(mapping(item))
            index = choice.pop("index", None)
            if not isinstance(index, int):
                raise MessageError("A choice of a chunk has no index.")
            delta = dict(mapping(choice.get("delta") or {}))
            for name in _REASONING:
                if delta.get(name):
                    _add(pieces, (index, "reasoning"), _delta_text({name: delta.pop(name)}))
            for number, call in enumerate(sequence(delta.pop("tool_calls", None))):
                which = mapping(call).get("index", number)
                if not isinstance(which, int):
                    raise MessageError("A tool call of a chunk has no index.")
                _add(pieces, (index, "tool call", which), _delta_text({"tool_calls": [call]}))
            rest = {**choice, "delta": {"content": None, **delta}}
            _add(pieces, (index, "content"), said({"choices": [rest]}))
        _add(pieces, "chunk", said({"choices": [], **data}))
        return pieces

    def silenced(self, value: BaseModel, text: str) -> BaseModel:
        """Return a copy that says `text`."""
        return cast("BaseModel", COMMON.write_output(value, text))

    def reply(self) -> BaseModel:
        """Return a completion all of whose choices were filtered."""
        message = {"role": "assistant", "content": "", "refusal": None}
        choices = [
            {
                "index": index,
                "message": message,
                "finish_reason": "content_filter",
                "logprobs": None,
            }
            for index in range(self._n)
        ]
        data = {**self._frame(), "object": "chat.completion", "choices": choices}
        return ChatCompletion.construct(None, **data)

    def ending(self) -> Iterator[BaseModel]:
        """Yield the last chunk of each choice."""
        delta: dict[str, object] = {}
        if "id" not in self._seen:
            delta = {"role": "assistant", "content": ""}
        for index in range(self._n):
            choice = {"index": index, "delta": delta, "finish_reason": "content_filter"}
            data = {**self._frame(), "object": "chat.completion.chunk", "choices": [choice]}
            yield ChatCompletionChunk.construct(None, **data)

    @property
    def _n(self) -> int:
        n = self.body.get("n")
        return n if isinstance(n, int) else 1

    def _frame(self) -> dict[str, object]:
        made = {"id": "chatcmpl-guardrail", "created": int(time.time())}
        return {**made, "model": self.body.get("model", ""), **self._seen}


class StoredChatCompletion(ChatCompletions):
    """A completion that was made before: only what it says is judged."""

    stages: ClassVar[Sequence[Stage]] = ("output",)

    def messages(self, body: Body) -> Sequence[Message]:
        """Return nothing: the request holds none."""
        return ()


class TextCompletions(ChatCompletions):
    """The older completions, of a prompt or several."""

    types: ClassVar[Sequence[type[BaseModel]]] = (Completion,)

    def messages(self, body: Body) -> Sequence[Message]:
        """Return the suffix and each prompt as a user's."""
        prompt = body.get("prompt")
        prompts = cast("list[object]", prompt) if isinstance(prompt, list) else [prompt]
        suffix = body.get("suffix")
        texts = [*prompts] if suffix is None else [suffix, *prompts]
        if not all(isinstance(text, str) for text in texts):
            raise MessageError("A prompt is not text, so it can't be judged: pass strings.")
        return [Message(role="user", content=str(text)) for text in texts]

    def redacted(self, body: Body, text: str) -> Body:
        """Return the prompts with the last one replaced."""
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            return {"prompt": [*cast("list[object]", prompt)[:-1], text]}
        return {"prompt": text}

    def texts(self, value: BaseModel) -> str | Mapping[Hashable, str]:
        """Return the text of each choice."""
        data = data_of(value)
        self._seen |= {name: data[name] for name in _KEPT if name in data}
        return COMMON.read_output(data)

    def reply(self) -> BaseModel:
        """Return a completion all of whose choices were filtered."""
        choices = [
            {"index": index, "text": "", "finish_reason": "content_filter", "logprobs": None}
            for index in range(self._n)
        ]
        data = {**self._frame(), "object": "text_completion", "choices": choices}
        return Completion.construct(None, **data)

    def ending(self) -> Iterator[BaseModel]:
        """Yield the same: a chunk has the shape of a whole reply."""
        yield self.reply()

    @property
    def _n(self) -> int:
        prompt = self.body.get("prompt")
        prompts = len(cast("list[object]", prompt)) if isinstance(prompt, list) else 1
        return prompts * super()._n


def _delta_text(delta: dict[str, object]) -> str:
    return said({"choices": [{"delta": delta}]})


def _add(pieces: dict[Hashable, str], key: Hashable, text: str) -> None:
    pieces[key] = pieces.get(key, "") + text
