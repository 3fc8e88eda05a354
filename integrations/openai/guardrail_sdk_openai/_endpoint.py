"""What the guard of each kind of request is: a codec of one call, and the replies that end it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import ClassVar, Final, TypeAlias, cast

from openai import BaseModel
from openai._legacy_response import LegacyAPIResponse

from guardrail_sdk import ConfigError, DefaultCodec, Message, MessageError, Stage

Body: TypeAlias = Mapping[str, object]
Args: TypeAlias = tuple[object, ...]
Kwargs: TypeAlias = Mapping[str, object]

COMMON: Final = DefaultCodec()


class Endpoint(ABC):
    """Reads and redacts one call, whose only argument is the body of its request.

    It may remember what came of the call so far: each call has its own.

    Attributes:
        stages: What is judged.
        types: The types of a reply that can take the place of a blocked one.
    """

    stages: ClassVar[Sequence[Stage]] = ("input", "output")
    types: ClassVar[Sequence[type[BaseModel]]] = ()

    def __init__(self) -> None:
        self.body: Body = {}

    def read_input(self, args: Args, kwargs: Kwargs) -> Sequence[Message]:
        """Return the conversation in a request's body."""
        self.body = body_of(args)
        return self.messages(self.body)

    def write_input(self, args: Args, kwargs: Kwargs, text: str) -> tuple[Args, Kwargs]:
        """Return the body with the last message's text replaced."""
        return ({**self.body, **self.redacted(self.body, text)},), kwargs

    def read_output(self, value: object) -> str | Mapping[Hashable, str]:
        """Return the text of a reply, or of an event of a stream."""
        if isinstance(value, LegacyAPIResponse):
            value = cast("LegacyAPIResponse[object]", value).parse()
        if isinstance(value, str):
            return value
        if not isinstance(value, BaseModel):
            raise MessageError(f"A reply of type {type(value).__name__} can't be judged.")
        return self.texts(value)

    def write_output(self, value: object, text: str) -> object:
        """Return a reply or event with its text replaced."""
        if isinstance(value, str):
            return text
        if not isinstance(value, BaseModel):
            raise ConfigError(
                "A raw response can't be redacted, as the policy says: call the method itself."
            )
        return self.silenced(value, text)

    def released(self, event: object) -> object:
        """Return what is told of an event that may leave a stream."""
        return event

    @abstractmethod
    def messages(self, body: Body) -> Sequence[Message]:
        """Return the conversation in a body."""

    @abstractmethod
    def redacted(self, body: Body, text: str) -> Body:
        """Return the fields of the body that change if its last message says `text`."""

    @abstractmethod
    def texts(self, value: BaseModel) -> str | Mapping[Hashable, str]:
        """Return the texts of a reply or event."""

    @abstractmethod
    def silenced(self, value: BaseModel, text: str) -> BaseModel:
        """Return a copy of a reply or event that says `text`."""

    def reply(self) -> BaseModel:
        """Return a whole reply that says that the content was filtered."""
        raise NotImplementedError

    def ending(self) -> Iterator[BaseModel]:
        """Yield the events that end a stream in that way."""
        raise NotImplementedError


class Prompt(Endpoint):
    """A prompt for something that isn't text: what comes of it isn't judged."""

    stages: ClassVar[Sequence[Stage]] = ("input",)
    _NAMES: ClassVar = ("instructions", "input", "prompt")

    def messages(self, body: Body) -> Sequence[Message]:
        """Return each of the prompt's texts as a user's."""
        texts = [(name, body[name]) for name in self._NAMES if body.get(name) is not None]
        for name, text in texts:
            if not isinstance(text, str):
                raise MessageError(f"The {name} of a request is {type(text).__name__}, not text.")
        return [Message(role="user", content=str(text)) for _, text in texts]

    def redacted(self, body: Body, text: str) -> Body:
        """Return the prompt, replaced."""
        return {next(name for name in reversed(self._NAMES) if body.get(name) is not None): text}

    def texts(self, value: BaseModel) -> str:
        """Return nothing."""
        return ""

    def silenced(self, value: BaseModel, text: str) -> BaseModel:
        """Return the value as it is."""
        return value


def body_of(args: Args) -> Body:
    """Return the only argument of a guarded call."""
    (body,) = args
    return cast("Body", body) if isinstance(body, Mapping) else {}


def data_of(value: BaseModel) -> dict[str, object]:
    """Return all that a reply holds, as it came."""
    return value.to_dict(warnings=False)


def mapping(value: object) -> dict[str, object]:
    """Return a part of a reply that must be an object.

    Raises:
        MessageError: If it is none.
    """
    if isinstance(value, dict):
        return cast("dict[str, object]", value)
    raise MessageError(f"A reply holds {type(value).__name__} where an object belongs.")


def sequence(value: object) -> list[object]:
    """Return a part of a reply that must be an array, if it is there.

    Raises:
        MessageError: If it is none.
    """
    if value is None or isinstance(value, list):
        return cast("list[object]", value or [])
    raise MessageError(f"A reply holds {type(value).__name__} where an array belongs.")


def said(value: object) -> str:
    """Return what the SDK's own codec reads in a reply, in one piece."""
    read = COMMON.read_output(value)
    return read if isinstance(read, str) else "\n\n".join(filter(None, read.values()))
