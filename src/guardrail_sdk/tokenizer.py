"""Turns template pieces into token ids, such that text can never become template.

With `prompt` and `artifact`, this is the contract between build and runtime: the pipeline trains
on exactly the ids that the runtime judges.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from guardrail_sdk._errors import ArtifactError, EngineError
from guardrail_sdk._types import Span
from guardrail_sdk.prompt import Piece, Special

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# `Tokenizer.encode` holds the interpreter's lock, so that an event loop in another thread waits
# for it: short texts only. `encode_batch` releases it, but is slower to start.
_BLOCK: Final = 2048
# A text to be shortened is looked at this many characters per wanted token from its end: more
# than any language needs, and it bounds the work on a text of any length.
_TAIL_CHARACTERS: Final = 16
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Boundary(NamedTuple):
    """A place between two tokens of a text that share no character.

    Attributes:
        position: In characters from the text's start.
        tokens: How many tokens precede it.
    """

    position: int
    tokens: int


class PromptTokenizer:
    """A model's tokenizer, in which special tokens come from the template alone.

    Args:
        source: A `tokenizer.json` in Hugging Face's format: its path, or its bytes. Its truncation
            and padding are switched off, and every token that was added to its vocabulary counts
            as special.

    Raises:
        ArtifactError: If it can't be read, or the tokenizer would make an added token of
            text even so.
    """

    def __init__(self, source: Path | bytes) -> None:
        name = _name(source)
        self._tokenizer = _load(source)
        added = self._tokenizer.get_added_tokens_decoder()
        self._reserved = frozenset(added) - _unknown(self._tokenizer)
        for token in added.values():
            content = token.content
            for text in (content, f" {content}", f"\n{content}", f"a{content}b", content * 2):
                if not self._reserved.isdisjoint(self._encode(text).ids):
                    raise ArtifactError(
                        f"{name} turns the text of the special token {content!r} into that "
                        "token. Rebuild the model with another tokenizer."
                    )

    @property
    def largest_id(self) -> int:
        """The largest token id there is."""
        return max(self._tokenizer.get_vocab().values())

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the token ids of `pieces`: one per `Special`, ordinary ones for each `Text`.

        Raises:
            ArtifactError: If the tokenizer lacks a special token.
            EngineError: If a text yields a special token, against all precautions.
        """
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, Special):
                ids.append(self._special(piece.token))
                continue
            found = self._encode(piece.text).ids
            if not self._reserved.isdisjoint(found):
                raise EngineError("A text was tokenised into special tokens, so it is not judged.")
            ids += found
        return ids

    def output_id(self, output: str) -> int:
        """Return the id of the one token that spells `output`, which may be special.

        Raises:
            ArtifactError: If there is no such token.
        """
        token = self._tokenizer.token_to_id(output)
        if token is not None:
            return token
        ids = self._encode(output).ids
        if len(ids) != 1:
            raise ArtifactError(
                f"The model's tokenizer has no single token for the output {output!r}. "
                "Rebuild the model."
            )
        return ids[0]

    def windows(self, text: str, max_tokens: int, overlap: int) -> Iterator[Span]:
        """Yield the spans of overlapping windows that together cover every character of `text`.

        Tokens are counted as they come, so that a caller who stops early pays for no more; the
        whole takes time linear in the length of `text`. A window begins and ends where a token
        does (in a run of thousands of characters without a space, where a block of them does).

        Args:
            text: What to cut; if empty, one empty span is yielded.
            max_tokens: The most tokens of a window, as `text` is tokenised whole; only a
                single character that takes more may exceed it.
            overlap: About how many tokens neighbours share, less than `max_tokens`.
        """
        held = deque([Boundary(0, 0)])
        for boundary in self._boundaries(text):
            if len(held) > 1 and boundary.tokens - held[0].tokens > max_tokens:
                end = held[-1]
                yield Span(start=held[0].position, end=end.position)
                while len(held) > 1 and (
                    end.tokens - held[0].tokens > overlap
                    or boundary.tokens - held[0].tokens > max_tokens
                ):
                    held.popleft()
            held.append(boundary)
        yield Span(start=held[0].position, end=held[-1].position)

    def count(self, text: str, at_most: int) -> int:
        """Return how many tokens `text` has, or a number above `at_most` if it has more."""
        tokens = 0
        for boundary in self._boundaries(text):
            tokens = boundary.tokens
            if tokens > at_most:
                break
        return tokens

    def tail(self, text: str, max_tokens: int) -> str:
        """Return the end of `text`, at most `max_tokens` tokens of it, from a token's start."""
        if max_tokens < 1:
            return ""
        end = text[-max_tokens * _TAIL_CHARACTERS :]
        boundaries = [Boundary(0, 0), *self._boundaries(end)]
        total = boundaries[-1].tokens
        start = next(place for place in boundaries if total - place.tokens <= max_tokens)
        return end[start.position :]

    def _boundaries(self, text: str) -> Iterator[Boundary]:
        """Yield every boundary but the first, in order; the last is at the end of `text`."""
        tokens = 0
        for block in _blocks(text):
            offsets = self._encode(text[block.start : block.end]).offsets
            reached = 0
            for index in range(1, len(offsets)):
                reached = max(reached, offsets[index - 1][1])
                if 0 < reached <= offsets[index][0]:
                    yield Boundary(block.start + reached, tokens + index)
            tokens += len(offsets)
            yield Boundary(block.end, tokens)

    def _special(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None or found not in self._reserved:
            raise ArtifactError(
                f"The model's tokenizer has no special token {token!r}, which its template needs. "
                "Rebuild the model."
            )
        return found

    def _encode(self, text: str) -> Encoding:
        text = text if text.isascii() else _SURROGATE.sub("\ufffd", text)
        try:
            if len(text) <= _BLOCK:
                return self._tokenizer.encode(text, add_special_tokens=False)
            return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        except Exception as error:
            # The library's message may quote the text.
            raise EngineError(f"The tokenizer failed ({type(error).__name__}).") from None


def _load(source: Path | bytes) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    try:
        if isinstance(source, bytes):
            tokenizer = Tokenizer.from_buffer(source)
        else:
            tokenizer = Tokenizer.from_file(str(source))
    except Exception as error:
        raise ArtifactError(
            f"{_name(source)} is not a tokenizer that this version can read."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Only tokens marked special are kept from matching in text: mark them all.
    plain = [
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if not token.special
    ]
    marked = [AddedToken(content, special=True) for content in plain]
    # The library's stub leaves the list's element type open.
    tokenizer.add_special_tokens(marked)  # pyright: ignore[reportUnknownMemberType]
    tokenizer.encode_special_tokens = True
    return tokenizer


def _name(source: Path | bytes) -> str:
    return "The given tokenizer.json" if isinstance(source, bytes) else str(source)


def _unknown(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the id that stands for characters outside the vocabulary, if the model has one."""
    token = getattr(tokenizer.model, "unk_token", None)
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return frozenset() if found is None else frozenset({found})


def _blocks(text: str) -> Iterator[Span]:
    """Yield neighbouring spans of at most `_BLOCK` characters, cut before a space if there is one.

    Tokens of most vocabularies begin with the space before a word, so such a cut splits none.
    """
    start = 0
    while start < len(text):
        end = min(len(text), start + _BLOCK)
        if end < len(text):
            space = max(text.rfind(mark, start + _BLOCK // 2, end) for mark in " \n")
            end = space if space > start else end
        yield Span(start=start, end=end)
        start = end
