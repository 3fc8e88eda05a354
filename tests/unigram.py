"""A unigram tokenizer, the kind that an encoder's base comes with, beside the byte-level ones.

It normalises, puts a mark before every word, and has one token for all that it doesn't know: so
its tokens neither spell the text again nor begin where its characters do.
"""

# The library's stubs leave some argument types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

SPECIALS = ("<s>", "</s>", "<user>", "<assistant>")
_SPACE = "▁"
_WORDS = ("the", "train", "leaves", "at", "nine", "user", "assistant", "नमस्ते", "สวัสดี")
_PARTS = ("in", "ing", "er", "kg", "मस्")
_LETTERS = string.ascii_letters + string.digits + string.punctuation + "éनमस्तेสวัดี。"


def unigram() -> bytes:
    """Return its `tokenizer.json`, in which the template `segments` can be written."""
    likely = (_SPACE, *(_SPACE + word for word in _WORDS), *_PARTS)
    letters = (letter for letter in dict.fromkeys(_LETTERS) if letter not in likely)
    pieces = [("<unk>", 0.0), *((piece, -4.0) for piece in likely)]
    pieces += [(letter, -8.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    )
    return tokenizer.to_str().encode()
