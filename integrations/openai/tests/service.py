"""A server on loopback that speaks the API, and answers what a script says."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import cast

import httpx2
from openai import AsyncOpenAI, OpenAI

from guardrail_sdk.testing import ScriptedModel


# Without certificates, which nobody needs on loopback and which take long to load.
def plain(url: str) -> OpenAI:
    """Return a client of the service that isn't guarded."""
    http = httpx2.Client(verify=False)
    return OpenAI(api_key="k", base_url=url, max_retries=0, http_client=http)


def plain_async(url: str) -> AsyncOpenAI:
    """Return an async client of the service that isn't guarded."""
    http = httpx2.AsyncClient(verify=False)
    return AsyncOpenAI(api_key="k", base_url=url, max_retries=0, http_client=http)


Json = dict[str, object]
Events = Generator[Json | str, None, None]
Answer = Callable[["Asked"], "Json | Events | bytes | tuple[int, Json]"]


@dataclass
class Asked:
    """A request that arrived."""

    method: str
    path: str
    body: Json
    headers: Mapping[str, str]
    connection: socket.socket

    @property
    def gone(self) -> bool:
        """Whether who asked has hung up."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

    @property
    def streamed(self) -> bool:
        return self.body.get("stream") is True or "stream=true" in self.path


@dataclass
class Service:
    """Notes what it is asked; `url` is the base of its API."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list["Asked"])


@contextmanager
def serving(answer: Answer) -> Generator[Service, None, None]:
    """Serve until left: a dict as JSON, an iterator as an event stream, bytes as they are."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length)
            kind = self.headers.get("content-type", "")
            body = cast("Json", json.loads(raw)) if raw and "json" in kind else {}
            asked = Asked(self.command, self.path, body, dict(self.headers), self.connection)
            service.asked.append(asked)
            reply = answer(asked)
            if isinstance(reply, tuple):
                self.whole(json.dumps(reply[1]).encode(), status=reply[0])
            elif isinstance(reply, dict):
                self.whole(json.dumps(reply).encode())
            elif isinstance(reply, bytes):
                self.whole(reply, "text/plain")
            else:
                self.events(reply)

        do_GET = do_POST = do_DELETE = handle_one

        def whole(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # who asked has hung up
                self.wfile.write(body)

        def events(self, events: Events) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError), closing(events):
                for event in events:
                    data = event if isinstance(event, str) else json.dumps(event)
                    named = isinstance(event, dict) and str(event.get("type", "")).startswith(
                        "resp"
                    )
                    name = f"event: {event['type']}\n" if isinstance(event, dict) and named else ""
                    self.wfile.write(f"{name}data: {data}\n\n".encode())
                    self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# What a chat completion looks like.


def completion(*contents: str, **message: object) -> Json:
    """Return a completion with a choice for each content."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content, **message},
            "finish_reason": "stop",
        }
        for index, content in enumerate(contents)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def chunk(delta: Json, index: int = 0, finish_reason: str | None = None) -> Json:
    """Return a chunk of one choice."""
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
    }


def tool_call(arguments: str, name: str | None = None, index: int = 0) -> Json:
    """Return a piece of a tool call; the first has a name."""
    function = {"arguments": arguments, **({"name": name} if name else {})}
    first = {"id": f"call_{index}", "type": "function"} if name else {}
    return {"index": index, "function": function, **first}


def chunks(*deltas: Mapping[str, object]) -> Events:
    """Yield the chunks of one choice, from its role to its end."""
    yield chunk({"role": "assistant", "content": ""})
    for delta in deltas:
        yield chunk(dict(delta))
    yield chunk({}, finish_reason="stop")
    yield "[DONE]"


def said(text: str, size: int = 7) -> Events:
    """Yield a text as the chunks of one choice."""
    return chunks(*({"content": text[at : at + size]} for at in range(0, len(text), size)))


# What a response looks like.


def message(text: str) -> Json:
    """Return an output item that says a text."""
    part: Json = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def function_call(arguments: str) -> Json:
    """Return an output item that calls a function."""
    return {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "call_1",
        "name": "search",
        "arguments": arguments,
        "status": "completed",
    }


def response(*output: Json, status: str = "completed") -> Json:
    """Return a response."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1.0,
        "model": "m",
        "status": status,
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "incomplete_details": None,
        "instructions": "Answer briefly.",
    }


def response_events(pieces: Iterable[str], tool: bool = False) -> Events:
    """Yield the events of a response with one item, all those that repeat its text included."""
    number = -1

    def event(kind: str, **fields: object) -> Json:
        nonlocal number
        number += 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}

    at = {"output_index": 0, "item_id": "fc_1" if tool else "msg_1"}
    begun: Json = (
        {**function_call(""), "status": "in_progress"}
        if tool
        else {
            **message(""),
            "content": [],
            "status": "in_progress",
        }
    )
    yield event("created", response=response(status="in_progress"))
    yield event("output_item.added", output_index=0, item=begun)
    if not tool:
        part: Json = {"type": "output_text", "text": "", "annotations": []}
        yield event("content_part.added", **at, content_index=0, part=part)
    text = ""
    for piece in pieces:
        text += piece
        if tool:
            yield event("function_call_arguments.delta", **at, delta=piece)
        else:
            yield event("output_text.delta", **at, content_index=0, delta=piece, logprobs=[])
    if tool:
        yield event("function_call_arguments.done", **at, arguments=text, name="search")
    else:
        yield event("output_text.done", **at, content_index=0, text=text, logprobs=[])
        part = {"type": "output_text", "text": text, "annotations": []}
        yield event("content_part.done", **at, content_index=0, part=part)
    item = function_call(text) if tool else message(text)
    yield event("output_item.done", output_index=0, item=item)
    yield event("completed", response=response(item))


# The conformance kit's model, behind the API.


def scripted(model: ScriptedModel) -> Answer:
    """Return what answers chat completions and responses with what `model` says."""

    def answer(asked: Asked) -> Json | Events:
        model.begin()
        if "responses" in asked.path:
            if asked.streamed:
                return response_events(model.pieces(), tool=model.tool is not None)
            text = _whole(model, asked)
            return response(function_call(text) if model.tool else message(text))
        if asked.streamed:
            return _scripted_chunks(model)
        text = _whole(model, asked)
        if model.tool is None:
            return completion(text)
        call = {"id": "1", "type": "function", "function": {"name": model.tool, "arguments": text}}
        return completion("", tool_calls=[call])

    return answer


def _whole(model: ScriptedModel, asked: Asked) -> str:
    """Return all that the model says, unless who asked hangs up before."""
    text = ""
    with closing(model.pieces()) as pieces:
        for piece in pieces:
            text += piece
            if asked.gone:
                break
    return text


def _scripted_chunks(model: ScriptedModel) -> Events:
    yield chunk({"role": "assistant", "content": ""})
    for piece in model.pieces():
        if model.tool is None:
            yield chunk({"content": piece})
        else:
            name = None if model.sent else model.tool
            yield chunk({"tool_calls": [tool_call(piece, name)]})
    yield chunk({}, finish_reason="stop" if model.tool is None else "tool_calls")
    yield "[DONE]"
