"""The adapter has the properties that every adapter must have, over real connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from guardrail_sdk_asgi import GuardedRoute, GuardMiddleware
from harness import serving

from guardrail_sdk import Guard
from guardrail_sdk.testing import Conformance, Mode, ScriptedModel


class Refused(Exception):
    """The reply or the stream ended in an error."""


def app_on(model: ScriptedModel, guard: Guard | None) -> FastAPI:
    """Return an app that speaks the API of chat completions."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await request.json()
        model.begin()
        if body["stream"]:
            return StreamingResponse(events(model), media_type="text/event-stream")
        text = await unless_gone(request, model)
        if model.tool is None:
            message = {"role": "assistant", "content": text}
        else:
            function = {"name": model.tool, "arguments": text}
            call = {"id": "1", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return JSONResponse({"choices": [{"index": 0, "message": message}]})

    if guard is not None:
        app.add_middleware(GuardMiddleware, guard, [GuardedRoute(path="/v1/*")])
    return app


async def unless_gone(request: Request, model: ScriptedModel) -> str:
    """Return the whole answer; stop asking for it when the client hangs up."""
    text = ""
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            assert (await request.receive())["type"] == "http.disconnect"
            group.cancel_scope.cancel()

        group.start_soon(watch)
        async for piece in model.apieces():
            text += piece
        group.cancel_scope.cancel()
    return text


async def events(model: ScriptedModel) -> AsyncIterator[str]:
    first = True
    async for piece in model.apieces():
        delta: dict[str, object] = {"content": piece}
        if model.tool is not None:
            named = {"name": model.tool} if first else {}
            delta = {"tool_calls": [{"index": 0, "function": {**named, "arguments": piece}}]}
        first = False
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
    yield "data: [DONE]\n\n"


def request_of(prompt: str, *, stream: bool) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": prompt}], "stream": stream}


def said(reply: object, part: str) -> str:
    """Return what a completion or chunk says or calls."""
    choices = cast("Mapping[str, list[dict[str, dict[str, object]]]]", reply)["choices"]
    message = choices[0][part]
    calls = cast("list[dict[str, dict[str, str]]]", message.get("tool_calls") or [])
    return str(message.get("content") or "") + "".join(c["function"]["arguments"] for c in calls)


def told(line: str) -> str:
    """Return what a line of an event stream tells."""
    data = line.removeprefix("data: ")
    if not line.startswith("data: ") or data == "[DONE]":
        return ""
    event = json.loads(data)
    if "error" in event:
        raise Refused(event["error"]["message"])
    return said(event, "delta")


def checked(response: httpx.Response) -> httpx.Response:
    if response.status_code != 200:
        raise Refused(response.json()["error"]["message"])
    return response


@contextmanager
def sync_client(guard: Guard | None, model: ScriptedModel) -> Generator[httpx.Client, None, None]:
    with start_blocking_portal() as portal:
        server = portal.wrap_async_context_manager(serving(app_on(model, guard)))
        with server as url, httpx.Client(base_url=url, timeout=20, verify=False) as client:
            yield client


@asynccontextmanager
async def async_client(
    guard: Guard | None, model: ScriptedModel
) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with (
        serving(app_on(model, guard)) as url,
        httpx.AsyncClient(base_url=url, timeout=20, verify=False) as client,
    ):
        yield client


PATH = "/v1/chat/completions"


class TestAsgi(Conformance):
    blocked = Refused

    def ask(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        with sync_client(guard, model) as client:
            response = checked(client.post(PATH, json=request_of(prompt, stream=False)))
            return said(response.json(), "message")

    def stream(self, guard: Guard, model: ScriptedModel, prompt: str) -> Iterator[str]:
        body = request_of(prompt, stream=True)
        with sync_client(guard, model) as client, client.stream("POST", PATH, json=body) as reply:
            if reply.status_code != 200:
                reply.read()
            for line in checked(reply).iter_lines():
                yield told(line)

    async def ask_async(self, guard: Guard, model: ScriptedModel, prompt: str) -> str:
        async with async_client(guard, model) as client:
            response = checked(await client.post(PATH, json=request_of(prompt, stream=False)))
            return said(response.json(), "message")

    async def stream_async(
        self, guard: Guard, model: ScriptedModel, prompt: str
    ) -> AsyncIterator[str]:
        body = request_of(prompt, stream=True)
        async with (
            async_client(guard, model) as client,
            client.stream("POST", PATH, json=body) as reply,
        ):
            if reply.status_code != 200:
                await reply.aread()
            async for line in checked(reply).aiter_lines():
                yield told(line)

    def types(self, guard: Guard | None, model: ScriptedModel, mode: Mode) -> object:
        async def reply() -> httpx.Response:
            async with async_client(guard, model) as client:
                return await client.post(PATH, json=request_of("Hi", stream="stream" in mode))

        response = asyncio.run(reply())
        response.headers.pop("date", None)
        return response.status_code, response.headers.multi_items(), response.content
