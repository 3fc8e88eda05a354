"""Llama Guard 3's own tokenizer (from the package llama-models) on our template and outputs."""

from __future__ import annotations

import pytest
from llama_models.llama3.tokenizer import Tokenizer

from guardrail_model_build.examples import llama_guard_answer
from guardrail_sdk import Category, Message
from guardrail_sdk.evaluation import Row
from guardrail_sdk.prompt import LlamaGuardTemplate


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.get_instance()


def test_every_output_is_one_token(tokenizer: Tokenizer) -> None:
    outputs = LlamaGuardTemplate().outputs
    ids = {
        output: tokenizer.encode(output, bos=False, eos=False, allowed_special="all")
        for output in outputs
    }
    assert len(outputs) == 20
    assert all(len(tokens) == 1 for tokens in ids.values())
    assert ids["safe"] == [19193]
    assert ids["unsafe"] == [39257]
    assert ids["<|eot_id|>"] == [128009]


def test_an_answer_is_tokenised_as_it_was_trained(tokenizer: Tokenizer) -> None:
    row = Row(
        id="r",
        source="s",
        lang="en",
        messages=(Message(role="user", content="x"),),
        target="user",
        unsafe=True,
        categories=(Category.S1, Category.S10),
    )
    answer = llama_guard_answer(row)
    whole = tokenizer.encode(
        "unsafe\nS1,S10<|eot_id|>", bos=False, eos=False, allowed_special="all"
    )
    pieces = [
        tokenizer.encode(token, bos=False, eos=False, allowed_special="all") for token in answer
    ]
    assert [token for piece in pieces for token in piece] == whole
