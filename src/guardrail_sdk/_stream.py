"""The hold-back buffer of a stream: text stays in until the window that covers it was judged.

It is pure: it says what to judge next, and holds the chunks that wait for the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

ChunkT = TypeVar("ChunkT")

MIN_CHARS: Final = 80
MAX_CHARS: Final = 320
TAIL_CHARS: Final = 320
GROWN_TAIL_CHARS: Final = 3 * TAIL_CHARS

# Latin, ellipsis, CJK, Arabic and Urdu, Devanagari, Armenian, Ethiopic, Burmese, Khmer, Tibetan.
_SENTENCE_ENDS: Final = frozenset(".!?…\n\u2028\u2029。！？｡．؟۔।॥։።፧၊။។៕།")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Generic[ChunkT]):
    """Chunks that wait for one verdict."""

    chunks: Sequence[tuple[ChunkT, str]]
    """Each chunk with its text, in the order in which they came."""
    text: str
    """The chunks' text; if empty, there is nothing to judge."""
    tail: str
    """The end of what was released before, so that nothing hides by spanning two windows."""
    start: int
    """Where the tail starts, in characters from the start of the stream."""

    @property
    def judged(self) -> str:
        """What the verdict must cover: the tail and the text."""
        return self.tail + self.text


class StreamWindow(Generic[ChunkT]):
    """Collects the chunks of one stream into windows.

    A window closes at the end of the chunk in which it has `min_chars` characters and a sentence
    end after them, or `max_chars` characters. Windows consist of whole chunks, so that what is
    released are the very objects that came. Since the tail is bounded, judging a stream costs
    time linear in its length.

    Args:
        delayed: Whether a window that passed is kept back until the next one has, too. Then what
            only shows across two windows is seen while neither has left.
        min_chars: The fewest characters of a window, except for a stream's last.
        max_chars: The number of characters from which a window closes without a sentence end.
        tail_chars: How many characters of released text are judged again with the next window.
        most_tail_chars: How long the tail may get before it is cut to `tail_chars`, if more. Until
            then what is judged begins where it began before, and only grows: less to read for a
            model that reads on from there, more for one that doesn't.
    """

    def __init__(
        self,
        *,
        delayed: bool = False,
        min_chars: int = MIN_CHARS,
        max_chars: int = MAX_CHARS,
        tail_chars: int = TAIL_CHARS,
        most_tail_chars: int = 0,
    ) -> None:
        self._delayed = delayed
        self._min_chars = min_chars
        self._max_chars = max_chars
        self._tail_chars = tail_chars
        self._most_tail_chars = most_tail_chars
        self._held: list[tuple[ChunkT, str]] = []
        self._held_chars = 0
        self._waiting: list[tuple[ChunkT, str]] = []
        self._tail = ""
        self._position = 0

    def push(self, text: str, chunk: ChunkT) -> Window[ChunkT] | None:
        """Take a chunk with its text in; return the window that it closes, if it does.

        A chunk without text is in no need of a verdict but keeps its place behind those that are.
        """
        before = self._held_chars
        self._held.append((chunk, text))
        self._held_chars += len(text)
        if self._held_chars == 0 or self._held_chars >= self._max_chars:
            return self.flush()
        needed = max(0, self._min_chars - before - 1)
        if self._held_chars >= self._min_chars and not _SENTENCE_ENDS.isdisjoint(text[needed:]):
            return self.flush()
        return None

    def flush(self) -> Window[ChunkT] | None:
        """Return the window of all chunks that are held; None if there are none."""
        if not self._held:
            return None
        window = Window(
            chunks=tuple(self._held),
            text="".join(text for _, text in self._held),
            tail=self._tail,
            start=self._position - len(self._tail),
        )
        self._held = []
        self._held_chars = 0
        return window

    def passed(self, window: Window[ChunkT]) -> Sequence[ChunkT]:
        """Note that `window` may leave; return the chunks that leave now."""
        self._position += len(window.text)
        leaving = [*self._waiting, *window.chunks]
        self._waiting = []
        if self._delayed and window.text:
            leaving, self._waiting = leaving[: -len(window.chunks)], [*window.chunks]
        elif self._delayed and any(text for _, text in leaving):
            # Chunks without text keep their place behind those that wait.
            leaving, self._waiting = [], leaving
        if window.text:
            # All that waits is judged again with the next window.
            tail = max(self._tail_chars, len(window.text)) if self._delayed else self._tail_chars
            judged = window.judged
            if len(judged) > max(tail, self._most_tail_chars):
                judged = judged[-tail:] if tail else ""
            self._tail = judged
        return [chunk for chunk, _ in leaving]

    def replaced(self, window: Window[ChunkT]) -> Sequence[tuple[ChunkT, str]]:
        """Note that `window` is redacted, and return the chunks to redact, with their texts.

        What waits is among them: the verdict covers it. Nobody will read their text, so no later
        window continues it.
        """
        self._position += len(window.text)
        self._tail = ""
        redacted = [*self._waiting, *window.chunks]
        self._waiting = []
        return redacted

    def rest(self) -> Sequence[ChunkT]:
        """Return the chunks that waited for a window that doesn't come."""
        rest = [chunk for chunk, _ in self._waiting]
        self._waiting = []
        return rest
