"""What a decoder read lately: keys and values, for rows that begin like earlier ones.

They are kept in blocks of tokens, each by a hash of all ids up to its end. So rows that begin
alike share what they have in common, whatever it is: a policy's text, the conversation so far, a
stream that grows. Neither text nor ids are kept.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK: Final = 16
"""Tokens per block."""
# About 1400 tokens of a decoder of 135 million weights, or of the 1B model pruned to 12 blocks.
MOST_BYTES: Final = 64 * 2**20
_MOST_SEEN: Final = 8192


class States:
    """The keys and values of one session, bounded; any number of threads may use them.

    What was not used for longest is dropped first, and of a row its end before its beginning.

    Args:
        most_bytes: How much is kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def shared(self, row: Sequence[int]) -> int:
        """Return how many tokens `row` has in common with the beginning of an earlier row."""
        keys = _keys(row)
        with self._lock:
            return BLOCK * sum(1 for _ in takewhile(self._seen.__contains__, keys))

    def past(self, row: Sequence[int]) -> list[NDArray[np.float32]]:
        """Return what is kept of the beginning of `row`, which is never all of it.

        Returns:
            As the graph takes it: each block's keys and values, float32 [1, kv_heads, tokens,
            head_dim]. Nothing if nothing is kept.
        """
        import numpy as np

        keys = _keys(row)
        with self._lock:
            blocks = [self._kept[key] for key in takewhile(self._kept.__contains__, keys)]
        return [np.concatenate(parts, axis=1)[None] for parts in zip(*blocks, strict=True)]

    def see(self, row: Sequence[int]) -> None:
        """Remember how `row` begins, but nothing of what was read: most rows never come again."""
        keys = _keys(row)
        with self._lock:
            for key in reversed(keys):
                self._seen[key] = None
                self._seen.move_to_end(key)
            while len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)

    def keep(self, row: Sequence[int], present: Sequence[NDArray[np.float32]]) -> None:
        """Keep the keys and values of `row`, as the graph gave them: those of all its tokens."""
        import numpy as np

        self.see(row)
        block_bytes = BLOCK * sum(part.nbytes for part in present) // len(row)
        most_blocks = self._most_bytes // block_bytes
        keys = _keys(row)[:most_blocks]
        with self._lock:
            new = [place for place, key in enumerate(keys) if key not in self._kept]
        # Copied: a view would hold the memory of the whole row.
        blocks = {
            keys[place]: np.stack([part[0, :, BLOCK * place :][:, :BLOCK] for part in present])
            for place in new
        }
        with self._lock:
            self._kept.update(blocks)
            for key in reversed(keys):
                if key in self._kept:
                    self._kept.move_to_end(key)
            while len(self._kept) > most_blocks:
                self._kept.popitem(last=False)


def _keys(row: Sequence[int]) -> list[bytes]:
    """Return a hash of the row up to the end of each block; at least one token is left over."""
    ids = array("q", row)
    digest = blake2b(digest_size=16)
    keys: list[bytes] = []
    for end in range(BLOCK, len(row), BLOCK):
        digest.update(ids[end - BLOCK : end].tobytes())
        keys.append(digest.digest())
    return keys
