"""Every public way to call a client is guarded, refused, or known to carry no chat."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import cast

import pytest
from guardrail_sdk_openai import guard_client
from guardrail_sdk_openai._routes import endpoint_of
from openai import AsyncOpenAI, OpenAI
from service import plain, plain_async, response, serving

from guardrail_sdk import ConfigError, Guard
from guardrail_sdk.testing import FakeModel, public_paths, unaccounted

GUARDED = [
    *("chat.completions.create", "chat.completions.parse", "chat.completions.stream"),
    *("chat.completions.retrieve", "chat.completions.update", "completions.create"),
    *("responses.create", "responses.parse", "responses.stream"),
    *("responses.retrieve", "responses.cancel"),
    *("images.generate", "images.edit", "audio.speech.create"),
    *("videos.create", "videos.create_and_poll", "videos.remix"),
    *("get", "post", "patch", "put", "delete", "get_api_list", "request"),
    *("copy", "with_options", "with_*_response.*", "*.with_*_response.*"),
]
PASSED = [
    *("chat.completions.delete", "responses.delete", "responses.input_tokens.count"),
    *("embeddings.create", "moderations.create", "models.*"),
    *("audio.transcriptions.create", "audio.translations.create", "images.create_variation"),
    *("videos.list", "videos.retrieve", "videos.poll", "videos.delete", "videos.download_content"),
    *("files.create", "files.list", "files.retrieve", "files.delete", "files.wait_for_processing"),
    *("uploads.*", "vector_stores.*", "fine_tuning.jobs.*"),
    # These send nothing.
    *("close", "is_closed", "platform_headers", "qs.*", "timeout.as_dict"),
    *("webhooks.unwrap", "webhooks.verify_signature"),
]
REFUSED = [
    *("chat.completions.list", "chat.completions.messages.list"),
    *("responses.compact", "responses.connect", "responses.input_items.list"),
    *("beta", "live", "realtime"),
    *("admin.*", "audio.voice_consents.*", "audio.voices.*", "batches.*", "containers.*"),
    *("content_provenance_checks.create", "conversations.*", "decisions.create", "evals.*"),
    *("files.content", "files.retrieve_content", "fine_tuning.alpha.*"),
    *("fine_tuning.checkpoints.*", "safety.*", "skills.*"),
    *("videos.create_character", "videos.edit", "videos.extend", "videos.get_character"),
    *("webhooks.create", "webhooks.delete", "webhooks.event_types.list", "webhooks.list"),
    *("webhooks.retrieve", "webhooks.rotate_secret", "webhooks.test", "webhooks.update"),
]


@pytest.fixture
def client() -> Iterator[OpenAI]:
    with plain("http://127.0.0.1:9/v1") as bare:
        yield guard_client(bare, Guard(model=FakeModel()))


def test_every_way_is_decided_upon(client: OpenAI) -> None:
    paths = list(public_paths(client))

    assert unaccounted(paths, [*GUARDED, *PASSED, *REFUSED]) == []


@pytest.mark.asyncio
async def test_an_async_client_has_the_same_ways(client: OpenAI) -> None:
    async with plain_async("http://127.0.0.1:9/v1") as bare:
        guarded = guard_client(bare, Guard(model=FakeModel()))
        paths = list(public_paths(guarded))

        assert unaccounted(paths, [*GUARDED, *PASSED, *REFUSED]) == []


def _reached(client: OpenAI, path: str) -> object:
    value: object = client
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _called(client: OpenAI, path: str) -> object:
    """Call what is at `path` with strings for all that it takes."""
    method = _reached(client, path)
    assert callable(method)
    plain_names = [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in ("timeout", "stream", "files")
        and not name.startswith("extra_")
    ]
    files = ("recording", "audio_sample", "video", "file")
    value: object = method(**{name: b"x" if name in files else "x" for name in plain_names})
    if isinstance(value, AbstractContextManager):  # it sends nothing until it is entered
        value.__enter__()
    return cast("object", value)


def _refused(client: OpenAI, path: str) -> bool:
    try:
        _called(client, path)
    except ConfigError:
        return True
    return False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of methods that the client renamed
def test_what_is_refused_sends_nothing() -> None:
    """Called for real: an error of our own, and no request."""
    with serving(lambda asked: response()) as service, plain(service.url) as bare:
        client = guard_client(bare, Guard(model=FakeModel()))
        refused = [
            path
            for path in public_paths(client)
            if any(fnmatchcase(path, pattern) for pattern in REFUSED)
        ]
        assert len(refused) > 100
        for path in refused:
            assert _refused(client, path), path
        assert service.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "/unknown",
        "/chat/completions/x/messages",
        "/models/../chat/completions",
        "/models/%2e%2e",
        "/models//x",
        "http://elsewhere/v1/models",
        "http://here/models",
    ],
)
def test_an_unknown_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        endpoint_of("POST", url, "http://here/v1/")


@pytest.mark.parametrize(
    "url",
    [
        "/chat/completions",
        "chat/completions/",
        "/chat/completions?a=b",
        "http://here/v1/chat/completions",
    ],
)
def test_a_guarded_path_is_known_however_it_is_written(url: str) -> None:
    assert endpoint_of("post", url, "http://here/v1/") is not None


def test_the_types_hold() -> None:
    with plain("http://127.0.0.1:9/v1") as bare:
        before = dict(vars(bare))
        guarded = guard_client(bare, Guard(model=FakeModel()))

        assert isinstance(guarded, OpenAI)
        assert not isinstance(guarded, AsyncOpenAI)
        assert vars(bare) == before
        assert type(bare) is OpenAI
