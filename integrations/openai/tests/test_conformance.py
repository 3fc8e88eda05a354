"""The SDK's conformance kit, against every way to ask for a chat completion or a response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from typing import cast

from guardrail_sdk_openai import guard_client
from openai import AsyncOpenAI, AsyncStream, BaseModel, OpenAI, Stream
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from service import plain, plain_async, scripted, serving

from guardrail_sdk import Guard
from guardrail_sdk.testing import Conformance, Mode, ScriptedModel


@contextmanager
def client_of(guard: Guard | None, model: ScriptedModel) -> Generator[OpenAI, None, None]:
    with serving(scripted(model)) as service, plain(service.url) as client:
        yield guard_client(client, guard) if guard else client


def is_a(value: object, kind: type[object]) -> bool:
    return isinstance(value, kind)


def completion_text(reply: ChatCompletion) -> str:
    message = reply.choices[0].message
    calls = message.tool_calls or []
    return (message.content or "") + "".join(
        call.function.arguments for call in calls if call.type == "function"
    )


def chunk_text(chunk: ChatCompletionChunk) -> str:
    said = ""
    for choice in chunk.choices:
        said += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            said += (call.function and call.function.arguments) or ""
    return said


def response_text(reply: Response) -> str:
    calls = [item.arguments for item in reply.output if item.type == "function_call"]
    return reply.output_text + "".join(calls)


def event_text(event: object) -> str:
    """Return the text of a delta; what repeats it is not counted twice, but must not be longer."""
    kind = str(getattr(event, "type", ""))
    return str(getattr(event, "delta", "")) if kind.endswith(".delta") else ""


class TestChatCompletions(Conformance):
    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        with client_of(guard, model) as client:
            return completion_text(self.create(client, prompt))

    def create(self, client: OpenAI, prompt: str) -> ChatCompletion:
        return client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": prompt}]
        )

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        with client_of(guard, model) as client, self.chunks(client, prompt) as chunks:
            for chunk in chunks:
                yield chunk_text(chunk)

    def chunks(self, client: OpenAI, prompt: str) -> Stream[ChatCompletionChunk]:
        return client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": prompt}], stream=True
        )

    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        with serving(scripted(model)) as service:
            async with guard_client(plain_async(service.url), guard) as client:
                return completion_text(await self.create_async(client, prompt))

    async def create_async(self, client: AsyncOpenAI, prompt: str) -> ChatCompletion:
        return await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": prompt}]
        )

    async def stream_async(
        self, guard: Guard, model: ScriptedModel, prompt: str
    ) -> AsyncIterator[str]:
        with serving(scripted(model)) as service:
            client = guard_client(plain_async(service.url), guard)
            async with client, await self.chunks_async(client, prompt) as chunks:
                async for chunk in chunks:
                    yield chunk_text(chunk)

    async def chunks_async(
        self, client: AsyncOpenAI, prompt: str
    ) -> AsyncStream[ChatCompletionChunk]:
        return await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": prompt}], stream=True
        )

    def types(self, guard: Guard | None, model: ScriptedModel, mode: Mode) -> object:
        if mode.startswith("async"):
            return asyncio.run(self.types_async(guard, model, mode))
        with client_of(guard, model) as client:
            if mode == "whole":
                reply = self.create(client, "hello")
                return is_a(client, OpenAI), type(reply), type(reply.choices[0].message)
            with self.chunks(client, "hello") as stream:
                kinds = [type(chunk) for chunk in stream]
                return is_a(stream, Stream), kinds

    async def types_async(self, guard: Guard | None, model: ScriptedModel, mode: Mode) -> object:
        with serving(scripted(model)) as service:
            bare = plain_async(service.url)
            async with guard_client(bare, guard) if guard else bare as client:
                if mode == "async whole":
                    reply = await self.create_async(client, "hello")
                    return is_a(client, AsyncOpenAI), type(reply)
                async with await self.chunks_async(client, "hello") as stream:
                    kinds = [type(chunk) async for chunk in stream]
                    return is_a(stream, AsyncStream), kinds


class TestChatHelpers(TestChatCompletions):
    """`parse` and `stream`: their events and snapshots are made of what was let through."""

    def create(self, client: OpenAI, prompt: str) -> ChatCompletion:
        messages = [{"role": "user", "content": prompt}]
        return client.chat.completions.parse(model="m", messages=messages)  # type: ignore[arg-type]

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        with client_of(guard, model) as client:
            messages = [{"role": "user", "content": prompt}]
            with client.chat.completions.stream(model="m", messages=messages) as events:  # type: ignore[arg-type]
                told = ""
                for event in events:
                    text = chunk_text(event.chunk) if event.type == "chunk" else ""
                    told += text
                    assert completion_text(events.current_completion_snapshot) == told  # type: ignore[arg-type]
                    yield text
                assert completion_text(events.get_final_completion()) == told

    async def create_async(self, client: AsyncOpenAI, prompt: str) -> ChatCompletion:
        messages = [{"role": "user", "content": prompt}]
        return await client.chat.completions.parse(model="m", messages=messages)  # type: ignore[arg-type]

    async def stream_async(
        self, guard: Guard, model: ScriptedModel, prompt: str
    ) -> AsyncIterator[str]:
        with serving(scripted(model)) as service:
            async with guard_client(plain_async(service.url), guard) as client:
                messages = [{"role": "user", "content": prompt}]
                manager = client.chat.completions.stream(model="m", messages=messages)  # type: ignore[arg-type]
                async with manager as events:
                    async for event in events:
                        if event.type == "chunk":
                            yield chunk_text(event.chunk)


class TestResponses(Conformance):
    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        with client_of(guard, model) as client:
            return response_text(client.responses.create(model="m", input=prompt))

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        with (
            client_of(guard, model) as client,
            client.responses.create(model="m", input=prompt, stream=True) as events,
        ):
            for event in events:
                yield event_text(event)

    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        with serving(scripted(model)) as service:
            async with guard_client(plain_async(service.url), guard) as client:
                return response_text(await client.responses.create(model="m", input=prompt))

    async def stream_async(
        self, guard: Guard, model: ScriptedModel, prompt: str
    ) -> AsyncIterator[str]:
        with serving(scripted(model)) as service:
            async with guard_client(plain_async(service.url), guard) as client:
                events = await client.responses.create(model="m", input=prompt, stream=True)
                async with events:
                    async for event in events:
                        yield event_text(event)

    def types(self, guard: Guard | None, model: ScriptedModel, mode: Mode) -> object:
        if mode.startswith("async"):
            return None  # as sync: it is the same class of reply
        with client_of(guard, model) as client:
            if mode == "whole":
                reply = client.responses.create(model="m", input="hello")
                return type(reply), [type(item) for item in reply.output]
            with client.responses.create(model="m", input="hello", stream=True) as events:
                return is_a(events, Stream), [type(event) for event in events]


class TestResponseHelpers(TestResponses):
    """`parse` and `stream`."""

    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        with client_of(guard, model) as client:
            reply: BaseModel = client.responses.parse(model="m", input=prompt)
            return response_text(cast("Response", reply))

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        with (
            client_of(guard, model) as client,
            client.responses.stream(model="m", input=prompt) as events,
        ):
            told = ""
            for event in events:
                told += event_text(event)
                assert getattr(event, "snapshot", told) == told
                yield event_text(event)
            assert response_text(cast("Response", events.get_final_response())) == told

    async def stream_async(
        self, guard: Guard, model: ScriptedModel, prompt: str
    ) -> AsyncIterator[str]:
        with serving(scripted(model)) as service:
            client = guard_client(plain_async(service.url), guard)
            async with client, client.responses.stream(model="m", input=prompt) as events:
                async for event in events:
                    yield event_text(event)
