"""Every file that a graph keeps weights in is found, however its protobuf is spelt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_sdk._external import external_files

TINY = Path(__file__).parent / "data" / "tiny"


def _varint(value: int, width: int = 1) -> bytes:
    """Return `value` in base 128, in `width` bytes at least."""
    spelt = bytearray()
    while value > 0x7F or len(spelt) + 1 < width:
        spelt.append((value & 0x7F) | 0x80)
        value >>= 7
    return bytes([*spelt, value])


def _field(number: int, contents: bytes, width: int = 1) -> bytes:
    return _varint(number << 3 | 2, width) + _varint(len(contents), width) + contents


def _tensor(key: bytes, value: bytes, *, swapped: bool = False, width: int = 1) -> bytes:
    pair = [_field(1, key, width), _field(2, value, width)]
    return _field(13, b"".join(reversed(pair) if swapped else pair), width)


def _model(tensor: bytes) -> bytes:
    return _varint(1 << 3) + _varint(8) + _field(7, _field(5, tensor))


def test_the_tiny_models_keep_their_weights_in_one_file() -> None:
    assert external_files((TINY / "model.onnx").read_bytes()) == {"model.onnx.data"}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_the_order_and_the_spelling_of_fields_hide_nothing(swapped: bool, width: int) -> None:
    tensor = _tensor(b"location", b"../elsewhere", swapped=swapped, width=width)
    assert external_files(_model(tensor)) == {"../elsewhere"}


def test_a_field_that_is_given_twice_counts_twice() -> None:
    pair = _field(1, b"location") + _field(2, b"listed") + _field(2, b"hidden")
    assert external_files(_model(_field(13, pair))) == {"listed", "hidden"}


PLACES: dict[str, Callable[[bytes], bytes]] = {
    "sparse": lambda tensor: _field(7, _field(15, _field(1, tensor))),
    "constant": lambda tensor: _field(7, _field(1, _field(5, _field(5, tensor)))),
    "subgraph": lambda tensor: _field(7, _field(1, _field(5, _field(6, _field(5, tensor))))),
    "function": lambda tensor: _field(25, _field(7, _field(5, _field(10, tensor)))),
    "training": lambda tensor: _field(20, _field(1, _field(5, tensor))),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_is_found_wherever_a_model_may_hold_one(place: str) -> None:
    assert external_files(PLACES[place](_tensor(b"location", b"data"))) == {"data"}


def test_other_entries_name_no_file() -> None:
    assert not external_files(_model(_tensor(b"offset", b"location")))


def test_a_graph_that_nests_deeply_is_read_to_its_end() -> None:
    graph = _field(5, _tensor(b"location", b"deep"))
    for _ in range(2000):
        graph = _field(1, _field(5, _field(6, graph)))
    assert external_files(_field(7, graph)) == {"deep"}


@pytest.mark.parametrize(
    "damaged",
    [b"\x3a\x05ab", b"\x0b", b"\x80" * 11, b"\x09abc", b"\x3a", b"\xba\x80\x80\x80\x10\x00"],
)
def test_what_is_not_protobuf_is_an_error(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"a field|a number"):
        external_files(damaged)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        external_files(data)


@given(st.text(min_size=1).map(str.encode), st.booleans(), st.integers(1, 4), st.binary())
def test_a_name_is_found_beside_any_other_field(
    name: bytes, swapped: bool, width: int, noise: bytes
) -> None:
    tensor = _field(9, noise, width) + _tensor(b"location", name, swapped=swapped, width=width)
    assert name.decode() in external_files(_model(tensor))
