"""The hold-back buffer of a stream: text stays in until the window that covers it was judged.

It is pure: it says what to judge next, and holds the chunks that wait for the verdict.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
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
class Window:
    """Text of one lane that waits for one verdict."""

    lane: Hashable
    """Which of the stream's texts it is part of."""
    text: str
    tail: str
    """The end of what the lane released before, so that nothing hides by spanning two windows."""
    start: int
    """Where the tail starts, in characters from the start of the lane."""

    @property
    def judged(self) -> str:
        """What the verdict must cover: the tail and the text."""
        return self.tail + self.text


@dataclass(slots=True)
class _Lane:
    """One text of a stream, counted in characters from its start."""

    held: str = ""
    """What came after the last window."""
    tail: str = ""
    judged: int = 0
    """The end of the last window that was judged."""
    free: int = 0
    """The end of what may leave."""
    heard: int = 0
    """The length of all the stream's texts when this one last grew."""


@dataclass(slots=True)
class _Held(Generic[ChunkT]):
    """A chunk that waits, and where in each lane its pieces end."""

    chunk: ChunkT
    ends: Mapping[Hashable, int]
    redaction: str | None = None


class StreamWindow(Generic[ChunkT]):
    """Collects the chunks of one stream, and closes windows over its texts.

    A chunk may hold pieces of several texts, such as of the answers to one question. Each is a
    lane with windows of its own. A lane's window closes at the end of the chunk in which it has
    `min_chars` characters and a sentence end after them, or `max_chars` characters. It closes
    also once the other lanes have gone on for long, since chunks leave in the order in which they
    came, each once all its pieces may: a lane that has fallen silent would hold up the others.

    What is released are the very objects that came. Since the tail is bounded, judging a stream
    costs time linear in its length.

    Args:
        delayed: Whether a window that passed is kept back until its lane's next one has, too, or
            the lane falls silent. Then what only shows across two windows is seen while neither
            has left.
        min_chars: The fewest characters of a window, except for one that had to close. A lane is
            silent once the others have grown by this much for each lane that is held.
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
        self._queue: deque[_Held[ChunkT]] = deque()
        self._lanes: dict[Hashable, _Lane] = {}
        # The lanes of which something waits; the one that grew last comes last.
        self._open: dict[Hashable, _Lane] = {}
        self._heard = 0
        self._over = False

    def push(self, texts: Mapping[Hashable, str], chunk: ChunkT) -> Sequence[Window]:
        """Take a chunk with its piece of each lane in; return the windows that it closes.

        A chunk without text is in no need of a verdict but keeps its place behind those that are.
        """
        pieces = {key: text for key, text in texts.items() if text}
        self._heard += sum(map(len, pieces.values()))
        closed = [key for key, text in pieces.items() if self._add(key, text)]
        lanes = {key: self._lanes[key] for key in pieces}
        ends = {key: lane.judged + len(lane.held) for key, lane in lanes.items()}
        self._queue.append(_Held(chunk, ends))
        return [self._close(key) for key in [*closed, *self._fallen_silent()]]

    def flush(self) -> Sequence[Window]:
        """Return the windows of all that is held: the stream is over, or its reader is gone."""
        self._over = True
        return [self._close(key) for key, lane in self._open.items() if lane.held]

    def passed(self, window: Window) -> None:
        """Note that `window` may leave."""
        lane = self._lanes[window.lane]
        lane.free = lane.judged
        lane.judged += len(window.text)
        # All that waits is judged again with the next window.
        tail = max(self._tail_chars, len(window.text)) if self._delayed else self._tail_chars
        judged = window.judged
        if len(judged) > max(tail, self._most_tail_chars):
            judged = judged[-tail:] if tail else ""
        lane.tail = judged
        if self._delayed:
            lane.heard = self._heard
            self._open[window.lane] = lane
        else:
            self._release(window.lane)

    def replaced(self, window: Window, text: str) -> None:
        """Note that `window` is redacted: its first chunk is to say `text`, the others nothing.

        What waits in its lane is redacted with it: the verdict covers it. Nobody will read their
        text, so no later window continues it.
        """
        lane = self._lanes[window.lane]
        for held in self._queue:
            if held.ends.get(window.lane, 0) > lane.free:
                held.redaction = held.redaction or text
                text = ""
        lane.judged += len(window.text)
        lane.tail = ""
        self._release(window.lane)

    def leaving(self) -> Iterator[tuple[ChunkT, str | None]]:
        """Yield the chunks that leave now, each with what it must say in place of its texts.

        That is None for a chunk that stays as it came. The windows that were closed must have
        passed or been replaced.
        """
        while self._queue and (self._over or self._is_free(self._queue[0])):
            held = self._queue.popleft()
            yield held.chunk, held.redaction

    def _add(self, key: Hashable, text: str) -> bool:
        """Let a lane grow; return whether its window is to close."""
        lane = self._open.pop(key, None) or self._lanes.setdefault(key, _Lane())
        self._open[key] = lane
        needed = max(0, self._min_chars - len(lane.held) - 1)
        lane.held += text
        lane.heard = self._heard
        if len(lane.held) >= self._max_chars:
            return True
        return len(lane.held) >= self._min_chars and not _SENTENCE_ENDS.isdisjoint(text[needed:])

    def _fallen_silent(self) -> Iterator[Hashable]:
        """Let go of the lanes that have fallen silent; yield those whose window is to close."""
        while self._open:
            key, lane = next(iter(self._open.items()))
            if self._heard - lane.heard < self._min_chars * len(self._open):
                return
            del self._open[key]
            if lane.held:
                yield key
            else:
                lane.free = lane.judged

    def _close(self, key: Hashable) -> Window:
        lane = self._lanes[key]
        text, lane.held = lane.held, ""
        start = lane.judged - len(lane.tail)
        return Window(lane=key, text=text, tail=lane.tail, start=start)

    def _release(self, key: Hashable) -> None:
        lane = self._lanes[key]
        lane.free = lane.judged
        self._open.pop(key, None)

    def _is_free(self, held: _Held[ChunkT]) -> bool:
        return all(self._lanes[key].free >= end for key, end in held.ends.items())
