"""Labelled rows: the JSON Lines format in which examples are kept (docs/data-format.md)."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guardrail_sdk._errors import DataError
from guardrail_sdk._types import Category, Message


class Row(BaseModel):
    """One labelled conversation: a line of a data file."""

    # Rows hold people's texts, so that pydantic must not quote them in its errors.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    id: Annotated[str, Field(min_length=1)]
    """Names the row in reports; stable, and free of the row's text."""
    source: str
    """The data set that the row comes from."""
    lang: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
    """Language of the judged message: an ISO 639 code, in two letters where there is one."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1)] = Field(repr=False)
    """The conversation; the last message is the one that the label is about."""
    target: Literal["user", "assistant"]
    """Whose message the last one is."""
    unsafe: bool | None
    """The label; None where the source gives none."""
    categories: tuple[Category, ...] = ()
    """The hazards of an unsafe row, where the source names them."""
    note: str | None = Field(default=None, repr=False)
    """A remark about this row."""

    @model_validator(mode="after")
    def _target_is_last(self) -> Self:
        if self.messages[-1].role != self.target:
            raise ValueError("the last message's role must be the target")
        return self


_KEYS: Final = frozenset({*Row.model_fields, "role", "content"})


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of `path` (`.jsonl` or `.jsonl.gz`) in order; blank lines are passed over.

    Raises:
        DataError: If the file can't be read, or a line isn't a row; the message names the file,
            the line and the key, and quotes nothing of the line.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if content.strip():
                    yield _parse(content, path, number)
    except (EOFError, zlib.error, OSError) as error:
        why = getattr(error, "strerror", None) or "damaged or not gzip"
        raise DataError(
            f"{path} can't be read after line {number} ({why}). Check the path, or fetch it again."
        ) from error


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".jsonl.gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.endswith(".jsonl"):
        return path.open("rb")
    raise DataError(
        f"{path} is neither .jsonl nor .jsonl.gz. Convert it (see docs/data-format.md)."
    )


def _parse(line: bytes, path: Path, number: int) -> Row:
    try:
        return Row.model_validate_json(line)
    except ValidationError as error:
        problem = _describe(error)
    # Raised out here since a chained ValidationError would carry the row's text along.
    raise DataError(f"{path}, line {number}: {problem}. Correct the line or leave it out.")


def _describe(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        return "not a JSON object in UTF-8"
    if any(isinstance(part, str) and part not in _KEYS for part in problem["loc"]):
        return f"a key that is none of {', '.join(sorted(_KEYS))}"
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
