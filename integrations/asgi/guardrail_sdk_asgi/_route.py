"""What is guarded, and where in its bodies the text is."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from guardrail_sdk import ConfigError
from guardrail_sdk_asgi._json import pointer
from guardrail_sdk_asgi._types import Scope

Where = str | Sequence[str] | Callable[[object], object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedRoute:
    """Requests that are guarded, and how to read them and what the app answers.

    Raises:
        ConfigError: If a field is wrong.
    """

    path: str
    """One path, such as `/chat`, or all below one: `/v1/*`. It doesn't count how many slashes
    stand between the parts or at the end, nor whether the path begins with the `root_path`."""
    methods: Collection[str] | None = None
    """The methods that are guarded; requests by another method pass unjudged. None for all."""
    messages: Where = None
    """Where the conversation is in the JSON of a request. None for the one of the fields
    `messages`, `prompt` and `input` that is there. Or the name or JSON pointer (`/chat/turns`) of
    a field, or several of them: lists of messages are read in order, and strings are the user's
    messages after them. Or a function from the parsed JSON to anything that `Guard.check` takes.

    A system message is judged as a user's, since a client sent it; one that a function returns is
    taken as the app's own and not judged.
    """
    text: Where = None
    """Where the text is in the JSON of a response or of a piece of a stream. None for the shapes
    of OpenAI's chat completions and their chunks. Or the name or JSON pointer of a field, or of
    several; JSON that has none of them is judged by all its strings. Or a function from the parsed
    JSON to the text, or to a message or chunk in a shape that the SDK knows."""
    websocket: bool = False
    """Whether websockets to this path pass, unjudged. They are refused otherwise."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"/[^*{}?#]*(?:(?<=/)\*)?", self.path):
            raise ConfigError(
                f"The path {self.path!r} can't be guarded: write /one/path, or /all/below/*. "
                "Parameters such as {id} are not known."
            )
        if isinstance(self.methods, str) or (self.methods is not None and not self.methods):
            raise ConfigError("methods is a list of names, such as ['POST'], or None for all.")
        for where in (self.messages, self.text):
            pointers(where)

    def guards(self, scope: Scope) -> bool:
        """Return whether a request or websocket is this route's to guard."""
        if scope["type"] == "http" and self.methods is not None:
            method = str(scope["method"]).upper()
            if method not in {known.upper() for known in self.methods}:
                return False
        path, root = str(scope.get("path", "")), str(scope.get("root_path") or "").rstrip("/")
        below = path.removeprefix(root)
        inner = below if not below or below.startswith("/") else path
        return self._covers(path) or self._covers(inner)

    def _covers(self, path: str) -> bool:
        asked, known = _parts(path), _parts(self.path)
        if known and known[-1] == "*":
            return asked[: len(known) - 1] == known[:-1]
        return asked == known


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def pointers(where: Where) -> list[tuple[str, ...]]:
    """Return the fields that are named, each as the steps that lead there.

    Raises:
        ConfigError: If one can't be a field.
    """
    if where is None or callable(where):
        return []
    named = [where] if isinstance(where, str) else list(where)
    if not named:
        raise ConfigError("A list of fields is empty: name one, or pass None.")
    return [pointer(name) for name in named]
