"""Responses, and the events of their streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import ClassVar, Final, cast

from openai import BaseModel
from openai.types.responses import (
    Response,
    ResponseCreatedEvent,
    ResponseIncompleteEvent,
    ResponseOutputMessage,
)

from guardrail_sdk import Message, MessageError, Stage
from guardrail_sdk_openai._endpoint import COMMON, Body, Endpoint, data_of, mapping, sequence

_KEPT: Final = ("id", "created_at", "model", "previous_response_id", "usage")
_INDEXED: Final = ("output", "content", "summary", "command")
_PLACE: Final = (
    "type",
    "item_id",
    "output_index",
    "content_index",
    "summary_index",
    "command_index",
)

# What a service says about an item, not what the item says.
# fmt: off
_INERT: Final = frozenset({
    "call_id", "container_id", "created_by", "encrypted_content", "file_id", "fingerprint", "id",
    "item_id", "logprobs", "model", "object", "obfuscation", "phase", "response_id", "role",
    "sequence_number", "status", "type",
})
_MEDIA: Final = frozenset({"file_data", "file_url", "image_url", "input_audio"})
# fmt: on


class Responses(Endpoint):
    """Responses: each part of each output item is judged for itself.

    The events at the end of a part, an item and a response repeat the text that came in pieces.
    What was judged piece by piece isn't judged again; if it was redacted, it is replaced there by
    what was told in its place.
    """

    types: ClassVar[Sequence[type[BaseModel]]] = (Response,)

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, object] = {}
        self._sequence = -1
        self._came: dict[Hashable, str] = {}
        self._told: dict[Hashable, str] = {}
        # By the identity of an event that waits: the texts that it repeats, and of which lane.
        self._repeats: dict[int, dict[str, Hashable]] = {}

    def messages(self, body: Body) -> Sequence[Message]:
        """Return the input, and before it the variables of a stored prompt, as a user's."""
        prompt = body.get("prompt")
        variables = mapping(prompt).get("variables") if prompt is not None else None
        texts = list(_leaves(variables, refuse=_MEDIA))
        conversation = [Message(role="user", content=text) for text in texts]
        given = body.get("input")
        if isinstance(given, str):
            conversation.append(Message(role="user", content=given))
        else:
            conversation += [_message(item) for item in sequence(given)]
        # All the text may be stored at the service.
        return conversation or [Message(role="system", content=str(body.get("instructions") or ""))]

    def redacted(self, body: Body, text: str) -> Body:
        """Return the input with the last item's text replaced."""
        given = body.get("input")
        if isinstance(given, str):
            return {"input": text}
        items = sequence(given)
        last = mapping(items[-1]) if items else {}
        name = "content" if "role" in last else "output"
        if name not in last:
            raise MessageError("The last item of the input can't be redacted, as the policy says.")
        return {"input": [*items[:-1], {**last, name: text}]}

    def texts(self, value: BaseModel) -> str | Mapping[Hashable, str]:
        """Return a response's text, or the pieces of an event."""
        data = data_of(value)
        self._note(data)
        if isinstance(value, Response):
            return "\n\n".join(_leaves(_spoken(data)))
        place = tuple(str(data.get(name)) for name in _PLACE)
        kind = data.get("type")
        if kind == "response.audio.delta":
            return {}
        if isinstance(kind, str) and kind.endswith(".delta"):
            return self._pieces(data, place)
        whole = {text: lane for lane, text in self._came.items()}
        texts = list(_leaves(_spoken(data)))
        self._repeats[id(value)] = {text: whole[text] for text in texts if text in whole}
        return {place: "\n".join(text for text in texts if text not in whole)}

    def _pieces(self, data: dict[str, object], place: Hashable) -> dict[Hashable, str]:
        delta = data.get("delta")
        parts = cast("dict[str, object]", delta) if isinstance(delta, dict) else {"": delta}
        pieces: dict[Hashable, str] = {(place, name): _joined(part) for name, part in parts.items()}
        rest = {name: item for name, item in data.items() if name != "delta"}
        for lane, piece in pieces.items():
            self._came[lane] = self._came.get(lane, "") + piece
        return {**pieces, "beside": _joined(rest)}

    def _note(self, data: dict[str, object]) -> None:
        response = data.get("response", data)
        if isinstance(response, dict):
            known = cast("dict[str, object]", response)
            if known.get("object") == "response":
                self._seen |= {name: known[name] for name in _KEPT if name in known}
        number = data.get("sequence_number")
        if isinstance(number, int):
            self._sequence = number

    def silenced(self, value: BaseModel, text: str) -> BaseModel:
        """Return a copy of a response or event that says `text`."""
        if isinstance(value, Response):
            part: dict[str, object] = {"type": "output_text", "text": text, "annotations": []}
            message: dict[str, object] = {
                "id": "msg_guardrail",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
            return value.model_copy(
                update={"output": [ResponseOutputMessage.construct(None, **message)]}
            )
        self._repeats.pop(id(value), None)
        rest = [text]
        return _rewritten(value, lambda _: rest.pop() if rest else "")

    def released(self, event: object) -> object:
        """Return the event; what it repeats of a redacted text is replaced by what was told."""
        if not isinstance(event, BaseModel):
            return event
        data = data_of(event)
        kind = data.get("type")
        if isinstance(kind, str) and kind.endswith(".delta"):
            place = tuple(str(data.get(name)) for name in _PLACE)
            delta = data.get("delta")
            parts = cast("dict[str, object]", delta) if isinstance(delta, dict) else {"": delta}
            for name, part in parts.items():
                lane = (place, name)
                self._told[lane] = self._told.get(lane, "") + _joined(part)
            return event
        lanes = self._repeats.pop(id(event), {})
        told = {text: self._told.get(lane, "") for text, lane in lanes.items()}
        if all(text == now for text, now in told.items()):
            return event
        return _rewritten(event, lambda text: told.get(text, text))

    def reply(self) -> BaseModel:
        """Return a response that is incomplete since its content was filtered."""
        return Response.construct(None, **self._frame("incomplete"))

    def ending(self) -> Iterator[BaseModel]:
        """Yield the last event, and before it the first one if there was none."""
        if self._sequence < 0:
            self._sequence = 0
            yield ResponseCreatedEvent.construct(
                type="response.created", sequence_number=0, response=self._frame("in_progress")
            )
        yield ResponseIncompleteEvent.construct(
            type="response.incomplete",
            sequence_number=self._sequence + 1,
            response=self._frame("incomplete"),
        )

    def _frame(self, status: str) -> dict[str, object]:
        reason = {"reason": "content_filter"} if status == "incomplete" else None
        return {
            "id": "resp_guardrail",
            "object": "response",
            "created_at": time.time(),
            "model": self.body.get("model", ""),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            **self._seen,
            "status": status,
            "incomplete_details": reason,
            "output": [],
        }


class StoredResponse(Responses):
    """A response that was made before: only what it says is judged."""

    stages: ClassVar[Sequence[Stage]] = ("output",)

    def messages(self, body: Body) -> Sequence[Message]:
        """Return nothing: the request holds none."""
        return ()


def _message(item: object) -> Message:
    """Return an item of an input as a message."""
    data = mapping(item)
    if "role" in data:
        (message,) = COMMON.read_input(([{**data, "content": data.get("content")}],), {})
        return message
    kind = data.get("type")
    result = isinstance(kind, str) and kind.endswith(("_output", "_response"))
    text = "\n".join(_leaves(data, refuse=_MEDIA))
    return Message(role="tool" if result else "assistant", content=text)


def _spoken(data: dict[str, object]) -> object:
    """Return the part of a response or event that the model wrote; the rest echoes the request."""
    response = data.get("response")
    if isinstance(response, dict):
        return cast("dict[str, object]", response).get("output")
    return data.get("output") if data.get("object") == "response" else data


def _joined(value: object) -> str:
    return "\n".join(_leaves(value))


def _leaves(value: object, refuse: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield every text in JSON-like `value`, but for what a service says about it and for images.

    Raises:
        MessageError: If it holds one of the keys `refuse`.
    """
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, list | tuple):
        for item in cast("Sequence[object]", value):
            yield from _leaves(item, refuse)
    elif isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        for name, item in fields.items():
            if name in refuse and item is not None:
                raise MessageError(f"An item of the input holds {name}, which can't be judged.")
            if not _is_inert(name, fields):
                yield from _leaves(item, refuse)


def _is_inert(name: str, holder: dict[str, object]) -> bool:
    kind = holder.get("type")
    image = name == "partial_image_b64" or (name == "result" and kind == "image_generation_call")
    return image or name in _INERT


def _rewritten(value: BaseModel, change: Callable[[str], str]) -> BaseModel:
    """Return a copy of an event whose texts, as `_leaves` finds them, are changed."""
    data = data_of(value)
    response = data.get("response")
    if isinstance(response, dict):
        known = cast("dict[str, object]", response)
        data["response"] = {**known, "output": _changed(known.get("output"), change)}
    else:
        data = cast("dict[str, object]", _changed(data, change))
    return type(value).construct(None, **data)


def _changed(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return change(value) if value else value
    if isinstance(value, list | tuple):
        return [_changed(item, change) for item in cast("Sequence[object]", value)]
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {
            name: item if _is_inert(name, fields) else _changed(item, change)
            for name, item in fields.items()
            if name != "logprobs"
        }
    return value
