"""Wrap a function with types of its own: a codec says where the text is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from guardrail_sdk import Guard, Message, MessageError

Args = tuple[object, ...]
Kwargs = Mapping[str, object]


@dataclass(frozen=True)
class Note:
    """What this app's model takes and returns."""

    text: str
    language: str


class NoteCodec:
    """Reads and redacts notes; what isn't a note is an error, never a silent pass."""

    def read_input(self, args: Args, kwargs: Kwargs) -> list[Message]:
        """Return the conversation in the call's arguments."""
        return [Message(role="user", content=_note(args[0]).text)]

    def write_input(self, args: Args, kwargs: Kwargs, text: str) -> tuple[Args, Kwargs]:
        """Return the arguments with the text replaced."""
        return (replace(_note(args[0]), text=text), *args[1:]), kwargs

    def read_output(self, value: object) -> str:
        """Return the text that the model wrote."""
        return _note(value).text

    def write_output(self, value: object, text: str) -> Note:
        """Return a copy that says `text`."""
        return replace(_note(value), text=text)


def _note(value: object) -> Note:
    if isinstance(value, Note):
        return value
    raise MessageError(f"Expected a Note, got {type(value).__name__}.")


def chat(note: Note) -> Note:
    """Stand for your language model."""
    return Note("The capital of France is Paris.", note.language)


safe_chat = Guard(codec=NoteCodec()).wrap(chat)
print(safe_chat(Note("What is the capital of France?", "en")))

# Output:
# Note(text='The capital of France is Paris.', language='en')
