"""Text as it grows, joined, is the text decoded at once; no half characters, no special tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.model.detokenizer import Detokenizer


def stream(tokenizer, ids: list[int]) -> list[str]:
    detokenize = Detokenizer(tokenizer)
    return [*map(detokenize, ids), detokenize.finish()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2047), max_size=30))
def test_any_tokens_stream_to_their_text(golden, ids):
    """Random BPE tokens: broken UTF-8, special tokens and leading spaces included."""
    expected = golden.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(stream(golden.tokenizer, ids)) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_text_survives_bytes_as_tokens(tiny_omni, text):
    """One token a byte: every character of several bytes is held back until it is whole."""
    ids = tiny_omni.tokenizer(text, add_special_tokens=False).input_ids
    pieces = stream(tiny_omni.tokenizer, ids)
    assert "".join(pieces) == tiny_omni.tokenizer.decode(ids, skip_special_tokens=True)
    if "<|" not in text:
        assert "".join(pieces) == text


@pytest.mark.parametrize("text", ["café", "你好", "😀!", "a\u0301"])
def test_no_half_character_is_given_out(tiny_omni, text):
    ids = tiny_omni.tokenizer(text, add_special_tokens=False).input_ids
    assert not any("�" in piece for piece in stream(tiny_omni.tokenizer, ids))


def test_a_character_that_never_ends_comes_with_the_finish(tiny_omni):
    ids = tiny_omni.tokenizer("é", add_special_tokens=False).input_ids[:1]
    assert stream(tiny_omni.tokenizer, ids) == ["", "�"]


def test_a_token_costs_the_same_however_long_the_answer():
    """Never more than a handful of ids are decoded at once."""
    lengths = []

    class Counting:
        def decode(self, ids, **_):
            lengths.append(len(ids))
            return "a" * len(ids)

    stream(Counting(), list(range(200)))
    assert max(lengths) == 2
