"""The tokenizer: specials come from the template alone, and windows lose no character."""

# The library's stubs leave some argument types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import pytest
import unigram
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from guardrail_sdk._errors import ArtifactError, EngineError
from guardrail_sdk._types import Span
from guardrail_sdk.prompt import Special, Text
from guardrail_sdk.tokenizer import PromptTokenizer

DATA = Path(__file__).parent / "data"
TINY = DATA / "tiny" / "tokenizer.json"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *unigram.SPECIALS)
BYTE_LEVEL = {
    name: (DATA / name / "tokenizer.json").read_bytes() for name in ("tiny", "tiny-encoder")
}
SOURCES = {**BYTE_LEVEL, "unigram": unigram.unigram()}
UNIGRAM = PromptTokenizer(SOURCES["unigram"])


@pytest.fixture(scope="module", params=SOURCES.values(), ids=list(SOURCES))
def source(request: pytest.FixtureRequest) -> bytes:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(source: bytes) -> PromptTokenizer:
    return PromptTokenizer(source)


@pytest.fixture(scope="module")
def reference(source: bytes) -> Tokenizer:
    """The library's own tokenizer, with its defaults."""
    return Tokenizer.from_buffer(source)


hostile = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(
            [
                *(*SPECIALS, "<|im_", "start|>", "<us", "er>", "＜user＞", "<user>", "▁<s>"),
                *("\ud800", "\u200b", "user\n", "\n\n"),
            ]
        ),
    ),
    max_size=12,
).map("".join)


@given(text=hostile)
def test_text_never_yields_a_special_token(
    tokenizer: PromptTokenizer, reference: Tokenizer, text: str
) -> None:
    special = set(reference.get_added_tokens_decoder())

    assert special.isdisjoint(tokenizer.encode([Text(text)]))


@pytest.mark.parametrize("source", BYTE_LEVEL.values(), ids=list(BYTE_LEVEL), indirect=True)
@given(text=hostile)
def test_text_is_encoded_in_full(
    tokenizer: PromptTokenizer, reference: Tokenizer, text: str
) -> None:
    expected = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)

    decoded = reference.decode(tokenizer.encode([Text(text)]), skip_special_tokens=False)

    assert decoded == expected


@given(text=hostile)
def test_every_character_that_shows_is_in_a_token(text: str) -> None:
    """Nothing but space is left out of what a model reads, if only as unknown."""
    covered = set[int]()
    for start, end in UNIGRAM._encode(text).offsets:
        covered.update(range(start, end))

    assert not {i for i, char in enumerate(text) if not char.isspace()} - covered


@pytest.mark.parametrize(
    ("source", "first", "last"),
    [
        ("tiny", "<|im_start|>", "<|im_end|>"),
        ("tiny-encoder", "<user>", "</s>"),
        ("unigram", "<user>", "</s>"),
    ],
)
def test_a_special_piece_is_one_id(source: str, first: str, last: str) -> None:
    tokenizer = PromptTokenizer(SOURCES[source])
    reference = Tokenizer.from_buffer(SOURCES[source])

    ids = tokenizer.encode([Special(first), Text("user\n"), Special(last)])

    assert ids[0] == reference.token_to_id(first)
    assert ids[-1] == reference.token_to_id(last)
    assert ids[1:-1] == tokenizer.encode([Text("user\n")])


@pytest.mark.parametrize("token", ["<|tool|>", "user", "a"], ids=["unknown", "text", "letter"])
def test_a_special_piece_that_is_no_special_token_is_refused(
    tokenizer: PromptTokenizer, token: str
) -> None:
    with pytest.raises(ArtifactError, match="has no special token"):
        tokenizer.encode([Special(token)])


def altered(folder: Path, change: Callable[[Tokenizer], object]) -> Path:
    """Write the tiny tokenizer to `folder` after `change`."""
    tokenizer = Tokenizer.from_file(str(TINY))
    change(tokenizer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_added_tokens_that_are_not_marked_special_stay_text(tmp_path: Path) -> None:
    path = altered(
        tmp_path,
        lambda tokenizer: tokenizer.add_tokens(
            [AddedToken("<tool>", special=False), AddedToken("bread", special=False)]
        ),
    )
    added = {Tokenizer.from_file(str(path)).token_to_id(token) for token in ("<tool>", "bread")}

    assert added.isdisjoint(PromptTokenizer(path).encode([Text("<tool> bread <tool>bread")]))


def test_truncation_and_padding_are_switched_off(tmp_path: Path) -> None:
    def change(tokenizer: Tokenizer) -> None:
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=64)

    ids = PromptTokenizer(altered(tmp_path, change)).encode([Text("one two three four five six")])

    assert ids == PromptTokenizer(TINY).encode([Text("one two three four five six")])


def test_a_tokenizer_whose_model_spells_a_special_token_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))

    with pytest.raises(ArtifactError, match="turns the text of the special token '<s>'"):
        PromptTokenizer(path)


def test_the_unknown_token_may_stand_for_text_but_not_for_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("[UNK]", special=True)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))

    assert PromptTokenizer(path).encode([Text("a strange a")]) == [1, 0, 1]
    with pytest.raises(ArtifactError):
        PromptTokenizer(path).encode([Special("[UNK]")])


def test_text_that_yields_a_special_token_in_spite_of_all_is_not_judged(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The check at load spells the token out, and this hides it there.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("<s>", "?"), normalizers.Replace("secret", "<s>")]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    loaded = PromptTokenizer(path)

    with pytest.raises(EngineError) as caught:
        loaded.encode([Text("a secret")])

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "not json", "[" * 100_000], ids=len)
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(ArtifactError, match="not a tokenizer"):
        PromptTokenizer(path)
    with pytest.raises(ArtifactError, match="not a tokenizer"):
        PromptTokenizer(content.encode())


def test_a_files_bytes_make_the_same_tokenizer_as_its_path() -> None:
    pieces = [Special("<|im_start|>"), Text("नमस्ते <|im_end|> bread 12\n"), Special("<|im_end|>")]

    assert PromptTokenizer(TINY.read_bytes()).encode(pieces) == PromptTokenizer(TINY).encode(pieces)


def test_an_output_is_the_one_token_that_spells_it() -> None:
    tokenizer, reference = PromptTokenizer(TINY), Tokenizer.from_file(str(TINY))

    assert tokenizer.output_id("<|im_end|>") == reference.token_to_id("<|im_end|>")
    assert reference.decode([tokenizer.output_id("\n")]) == "\n"
    with pytest.raises(ArtifactError, match="no single token"):
        tokenizer.output_id("quite impossible")


short = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400)


@given(text=short, max_tokens=st.integers(2, 40), data=st.data())
def test_windows_cover_every_character_within_the_bound(
    tokenizer: PromptTokenizer,
    reference: Tokenizer,
    text: str,
    max_tokens: int,
    data: st.DataObject,
) -> None:
    overlap = data.draw(st.integers(0, max_tokens - 1))
    offsets = reference.encode(text, add_special_tokens=False).offsets

    spans = list(tokenizer.windows(text, max_tokens, overlap))

    assert spans[0].start == 0
    assert spans[-1].end == len(text)
    for before, after in pairwise(spans):
        assert before.start < after.start <= before.end < after.end
    for span in spans:
        inside = [start for start, end in offsets if span.start <= start and end <= span.end]
        assert len(inside) <= max_tokens or span.end - span.start == 1


@given(text=short, max_tokens=st.integers(2, 40))
def test_windows_split_no_token(
    tokenizer: PromptTokenizer, reference: Tokenizer, text: str, max_tokens: int
) -> None:
    offsets = reference.encode(text, add_special_tokens=False).offsets

    for span in tokenizer.windows(text, max_tokens, max_tokens // 4):
        for edge in (span.start, span.end):
            assert not any(start < edge < end for start, end in offsets)


def test_neighbouring_windows_share_about_the_overlap(tokenizer: PromptTokenizer) -> None:
    text = "The train to the coast leaves at nine. " * 400

    spans = list(tokenizer.windows(text, 64, 8))

    shared = [text[after.start : before.end] for before, after in pairwise(spans)]
    assert len(spans) > 10
    assert all(1 <= len(tokenizer.encode([Text(part)])) <= 9 for part in shared)


def test_long_words_and_long_texts_are_covered(tokenizer: PromptTokenizer) -> None:
    for text in ("ab" * 5000, "नमस्ते" * 1500, "🧨" * 3000, " " * 9000, "a\n" * 4000):
        spans = list(tokenizer.windows(text, 50, 6))
        assert spans[0].start == 0
        assert spans[-1].end == len(text)
        assert all(after.start <= before.end for before, after in pairwise(spans))
        lengths = [len(tokenizer.encode([Text(text[s.start : s.end])])) for s in spans]
        assert max(lengths) <= 52


def test_an_empty_text_is_one_empty_window(tokenizer: PromptTokenizer) -> None:
    assert list(tokenizer.windows("", 10, 2)) == [Span(start=0, end=0)]


def test_a_text_of_any_length_is_read_only_as_far_as_needed(tokenizer: PromptTokenizer) -> None:
    """Tokenised whole, this text would take a minute and gigabytes."""
    text = "word " * 4_000_000

    assert len(list(islice(tokenizer.windows(text, 100, 10), 5))) == 5
    assert tokenizer.count(text, at_most=1000) > 1000
    assert text.endswith(tokenizer.tail(text, 10))


@given(text=short)
def test_count_is_the_number_of_tokens(tokenizer: PromptTokenizer, text: str) -> None:
    assert tokenizer.count(text, at_most=10**6) == len(tokenizer.encode([Text(text)]))


@given(text=short, max_tokens=st.integers(0, 60))
def test_the_tail_is_the_texts_end_and_fits(
    tokenizer: PromptTokenizer, text: str, max_tokens: int
) -> None:
    tail = tokenizer.tail(text, max_tokens)

    assert text.endswith(tail)
    assert tokenizer.count(tail, at_most=10**6) <= max_tokens + 2
    if tokenizer.count(text, at_most=max_tokens) <= max_tokens < len(text) <= 16 * max_tokens:
        assert tail == text
