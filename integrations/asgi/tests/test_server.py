"""Real frameworks behind a real server: FastAPI and Starlette on uvicorn."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from guardrail_sdk_asgi import GuardedRoute, GuardMiddleware
from harness import BAD, SENTENCE, serving, sse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from guardrail_sdk import Guard
from guardrail_sdk.testing import FakeModel

GUARD = Guard(model=FakeModel([BAD]))
ROUTES = [GuardedRoute(path="/chat"), GuardedRoute(path="/files/*", methods=["POST"])]
ASK = {"prompt": "What is for dinner?"}


class Question(BaseModel):
    prompt: str


def fastapi_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(GuardMiddleware, GUARD, ROUTES)

    @app.post("/chat")
    async def chat(question: Question) -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        return {"answer": question.prompt.replace("*", "bo" + "mb")}

    return app


async def post(app: object, path: str, **request: object) -> httpx.Response:
    async with serving(app) as url, httpx.AsyncClient(base_url=url, verify=False) as client:
        return await client.request("POST", path, **request)  # type: ignore[arg-type]


def test_fastapi() -> None:
    def answer(prompt: object) -> httpx.Response:
        return asyncio.run(post(fastapi_app(), "/chat", json={"prompt": prompt}))

    assert answer("Soup?").json() == {"answer": "Soup?"}
    assert answer(BAD).json()["error"]["stage"] == "input"
    assert answer("*").json()["error"]["stage"] == "output"


def test_what_fastapi_says_of_a_wrong_request_is_judged_and_told() -> None:
    def answer(extra: str) -> httpx.Response:
        body = {"input": "Hi", "x": extra}
        return asyncio.run(post(fastapi_app(), "/chat", json=body))

    assert answer("soup").status_code == 422
    assert answer("soup").json()["detail"][0]["input"] == {"input": "Hi", "x": "soup"}
    assert answer(BAD).json()["error"]["stage"] == "output"


def test_a_chunked_request() -> None:
    async def portions() -> AsyncIterator[bytes]:
        for byte in json.dumps(ASK).encode():
            yield bytes([byte])

    headers = {"content-type": "application/json"}
    response = asyncio.run(post(fastapi_app(), "/chat", content=portions(), headers=headers))
    assert response.json() == {"answer": ASK["prompt"]}


async def answer(request: Request) -> Response:
    await request.json()
    return JSONResponse({"answer": SENTENCE * 20})


def test_compression_inside_is_not_asked_for_and_outside_works() -> None:
    guard = Middleware(GuardMiddleware, GUARD, ROUTES)
    zipped = Middleware(GZipMiddleware)
    for stack, encoding in (([guard, zipped], None), ([zipped, guard], "gzip")):
        app = Starlette(routes=[Route("/chat", answer, methods=["POST"])], middleware=stack)
        response = asyncio.run(post(app, "/chat", json=ASK))
        assert response.json() == {"answer": SENTENCE * 20}
        assert response.headers.get("content-encoding") == encoding


def test_compression_that_is_not_asked_for_is_withheld() -> None:
    async def zipped(request: Request) -> Response:
        body = gzip.compress(sse("Hi"))
        return Response(body, headers={"content-encoding": "gzip"}, media_type="text/event-stream")

    app = Starlette(routes=[Route("/chat", zipped, methods=["POST"])])
    response = asyncio.run(post(GuardMiddleware(app, GUARD, ROUTES), "/chat", json=ASK))
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "guardrail_unreadable"


def test_a_file_is_judged_and_no_range_of_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("A soup.")
    (tmp_path / "bad.txt").write_text(f"A {BAD}.")

    async def file(request: Request) -> Response:
        return FileResponse(tmp_path / request.path_params["name"])

    files = Mount("/files", routes=[Route("/{name}", file, methods=["GET", "POST"])])
    app = GuardMiddleware(Starlette(routes=[files]), GUARD, ROUTES)
    headers = {"range": "bytes=0-3"}
    good = asyncio.run(post(app, "/files/good.txt", json=ASK, headers=headers))
    assert (good.status_code, good.text) == (200, "A soup.")
    assert good.headers["content-length"] == "7"
    assert good.headers["etag"]
    bad = asyncio.run(post(app, "/files/bad.txt", json=ASK, headers=headers))
    assert bad.status_code == 400


@pytest.mark.parametrize(("word", "stored"), [("soup", True), (BAD, False)])
def test_a_background_task_is_run_after_what_was_let_through(word: str, stored: bool) -> None:
    done: list[bool] = []

    async def store() -> None:
        done.append(True)

    async def words() -> AsyncIterator[bytes]:
        yield sse(SENTENCE)
        yield sse(word)

    async def stream(request: Request) -> Response:
        task = BackgroundTask(store)
        return StreamingResponse(words(), media_type="text/event-stream", background=task)

    app = Starlette(
        routes=[Route("/chat", stream, methods=["POST"])],
        middleware=[Middleware(GuardMiddleware, GUARD, ROUTES)],
    )
    response = asyncio.run(post(app, "/chat", json=ASK))
    assert response.content.startswith(sse(SENTENCE))
    assert (b"event: error" in response.content) is not stored
    assert bool(done) is stored


def test_text_that_has_begun_breaks_off() -> None:
    async def words() -> AsyncIterator[str]:
        yield SENTENCE
        yield BAD

    async def stream(request: Request) -> Response:
        return StreamingResponse(words(), media_type="text/plain")

    app = Starlette(routes=[Route("/chat", stream, methods=["POST"])])
    got: list[str] = []

    async def run() -> None:
        async with (
            serving(GuardMiddleware(app, GUARD, ROUTES)) as url,
            httpx.AsyncClient(verify=False) as client,
            client.stream("POST", f"{url}/chat", json=ASK) as response,
        ):
            async for text in response.aiter_text():
                got.append(text)  # noqa: PERF401 - what came before it broke off counts

    with pytest.raises(httpx.RemoteProtocolError):
        asyncio.run(run())
    assert "".join(got) == SENTENCE
