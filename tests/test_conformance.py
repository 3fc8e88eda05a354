"""The conformance kit: `Guard.wrap` passes it, and adapters with a hole don't."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from guardrail_sdk import Blocked, Guard, Message
from guardrail_sdk.testing import Conformance, Mode, ScriptedModel, public_paths, unaccounted

Spoken = dict[str, list[dict[str, dict[str, str]]] | str | None]


def _reply(model: ScriptedModel, text: str) -> Spoken:
    """Return what an OpenAI-like client would give."""
    if model.tool is None:
        return {"role": "assistant", "content": text}
    call = {"function": {"name": model.tool, "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _piece(model: ScriptedModel, text: str) -> Spoken:
    """Return one chunk of it: only the first names the tool."""
    if model.tool is None:
        return {"content": text}
    function = {"arguments": text, **({} if model.sent else {"name": model.tool})}
    return {"tool_calls": [{"function": function}]}


def _said(reply: Spoken) -> str:
    calls = reply.get("tool_calls")
    if isinstance(calls, list):
        return calls[0]["function"]["arguments"]
    content = reply["content"]
    assert isinstance(content, str)
    return content


@dataclass
class Chat:
    """Four chat functions around a scripted model."""

    model: ScriptedModel

    def whole(self, prompt: str) -> Spoken:
        self.model.begin()
        return _reply(self.model, "".join(self.model.pieces()))

    def stream(self, prompt: str) -> Iterator[Spoken]:
        self.model.begin()
        for piece in self.model.pieces():
            yield _piece(self.model, piece)

    async def awhole(self, prompt: str) -> Spoken:
        self.model.begin()
        return _reply(self.model, "".join([piece async for piece in self.model.apieces()]))

    async def astream(self, prompt: str) -> AsyncIterator[Spoken]:
        self.model.begin()
        async for piece in self.model.apieces():
            yield _piece(self.model, piece)


class WrapConformance(Conformance):
    """`Guard.wrap` around plain functions."""

    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        return _said(guard.wrap(Chat(model).whole)(prompt))

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        for reply in guard.wrap(Chat(model).stream)(prompt):
            yield _said(reply)

    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        return _said(await guard.wrap(Chat(model).awhole)(prompt))

    async def stream_async(
        self, guard: Guard, model: ScriptedModel, prompt: str
    ) -> AsyncIterator[str]:
        async for reply in guard.wrap(Chat(model).astream)(prompt):
            yield _said(reply)

    def types(self, guard: Guard | None, model: ScriptedModel, mode: Mode) -> object:
        chat = Chat(model)
        function = {
            "whole": chat.whole,
            "stream": chat.stream,
            "async whole": chat.awhole,
            "async stream": chat.astream,
        }[mode]
        result = (guard.wrap(function) if guard else function)("hello")
        if inspect.iscoroutine(result):
            return "coroutine", type(asyncio.run(result))
        return type(result)


class TestWrap(WrapConformance):
    """Passes everything."""


class SkipsTheInput(WrapConformance):
    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        return super().ask(guard, model, "a harmless prompt")


class SkipsTheOutput(WrapConformance):
    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        if guard.check_sync(prompt).blocked:
            raise Blocked(guard.check_sync(prompt).decision, None)
        return _said(Chat(model).whole(prompt))


class Leaks(WrapConformance):
    """Releases each piece before its window is complete."""

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        self.ask(guard, ScriptedModel([]), prompt)
        said = ""
        for reply in Chat(model).stream(prompt):
            said += _said(reply)
            result = guard.check_sync([Message(role="assistant", content=said)])
            if result.blocked:
                raise Blocked(result.decision, result.verdict)
            yield _said(reply)


class Collects(WrapConformance):
    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        yield from list(super().stream(guard, model, prompt))


class EndsInSilence(WrapConformance):
    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        try:
            yield from super().stream(guard, model, prompt)
        except Blocked:
            return


class ForgetsToolCalls(WrapConformance):
    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        if model.tool is None:
            return super().ask(guard, model, prompt)
        return _said(Chat(model).whole(prompt))


class FailsOpen(WrapConformance):
    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        try:
            return await super().ask_async(guard, model, prompt)
        except Blocked as blocked:
            if blocked.verdict is None:
                return _said(await Chat(model).awhole(prompt))
            raise


class BlocksTheLoop(WrapConformance):
    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        return super().ask(guard, model, prompt)


class IgnoresWhoHangsUp(WrapConformance):
    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        return await asyncio.shield(super().ask_async(guard, model, prompt))


class ChangesTypes(WrapConformance):
    def types(self, guard: Guard | None, model: ScriptedModel, mode: Mode) -> object:
        return guard is None


class Babbles(WrapConformance):
    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        try:
            return super().ask(guard, model, prompt)
        except Blocked as blocked:
            error = Blocked(blocked.decision, blocked.verdict)
            error.add_note("blocked")
            raise error from ValueError(f"{prompt} {model.text}")


class IgnoresThePolicy(WrapConformance):
    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        return super().ask(Guard(model=guard.judge), model, prompt)


@pytest.mark.parametrize(
    ("adapter", "property_"),
    [
        (SkipsTheInput, "test_a_blocked_input_never_reaches_the_model"),
        (SkipsTheOutput, "test_a_blocked_output_is_not_told"),
        (Leaks, "test_a_short_unsafe_stream_tells_nothing"),
        (Leaks, "test_a_blocked_output_is_not_told"),
        (Collects, "test_a_stream_is_not_collected"),
        (EndsInSilence, "test_a_blocked_output_is_not_told"),
        (ForgetsToolCalls, "test_tool_calls_are_judged"),
        (FailsOpen, "test_a_failed_check_fails_closed"),
        (BlocksTheLoop, "test_the_event_loop_is_not_blocked"),
        (IgnoresWhoHangsUp, "test_who_hangs_up_ends_the_model"),
        (ChangesTypes, "test_types_stay_as_they_were"),
        (Babbles, "test_nothing_of_the_text_is_in_errors_or_logs"),
        (IgnoresThePolicy, "test_the_policy_decides"),
    ],
)
def test_a_hole_is_found(
    adapter: type[WrapConformance], property_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardrail_sdk.testing._scripted._PATIENCE_S", 0.3)
    with pytest.raises((AssertionError, TimeoutError)):
        getattr(adapter(), property_)()


@dataclass
class Inner:
    def create(self) -> None: ...


@dataclass
class Client:
    """An API client as they are built: resources below, settings beside."""

    url: str = "http://127.0.0.1"
    inner: Inner = field(default_factory=Inner)

    @property
    def refused(self) -> Inner:
        raise RuntimeError("not here")

    @property
    def again(self) -> Client:
        return self

    def copy(self) -> Client:
        return self


def test_every_public_path_is_listed() -> None:
    assert sorted(public_paths(Client())) == ["copy", "inner.create", "refused"]


def test_what_was_not_decided_upon_is_found() -> None:
    paths = ["chat.create", "chat.parse", "models.list"]
    assert unaccounted(paths, ["chat.*", "models.list"]) == []
    assert unaccounted(paths, ["chat.create", "models.list"]) == ["chat.parse is not accounted for"]
    assert unaccounted(paths, ["chat.*", "models.*", "audio.*"]) == ["audio.* matches nothing"]


def test_a_held_model_waits_for_its_sign() -> None:
    model = ScriptedModel(["one", "two"], hold=0)
    pieces = model.pieces()
    assert next(pieces) == "one"
    began = time.monotonic()
    model.go.set()
    assert list(pieces) == ["two"]
    assert time.monotonic() - began < 5
    assert model.ended.is_set()
    assert not model.cut


def test_a_closed_answer_was_cut() -> None:
    model = ScriptedModel(["one", "two"])
    pieces = model.pieces()
    next(pieces)
    pieces.close()
    assert model.cut
