"""A conversation → prompt ids with a sentinel where speech goes. Knows the templates and the tokenizer; no embeddings.

llama_3 is the published template (ictnlp/LLaMA-Omni, conversation.py), tokenised as published: split at <speech>, each
piece with special tokens added, so that the sequence starts with two BOS. chatml is SmolLM2's, without a system turn
unless one is given.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

SPEECH = -200  # stands for one utterance's speech embeddings
SPEECH_MARK = "<speech>"
LLAMA_3_SYSTEM = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LLAMA_3_REQUEST = f"{SPEECH_MARK}\nPlease directly answer the questions in the user's speech."


@dataclass(frozen=True)
class Utterance:
    """One turn: what was said (samples (S,), 16 kHz float32) or written."""

    role: str  # "system", "user" or "assistant"
    text: str | None = None
    speech: np.ndarray | None = None


class PromptError(ValueError):
    """The conversation cannot be put into the checkpoint's template."""


class Prompt:
    """ids = Prompt("llama_3", tokenizer)(conversation)  # ints; SPEECH once per spoken utterance, in order"""

    def __init__(self, style: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.render = {"llama_3": _llama_3, "chatml": _chatml}[style]
        self.adds_bos = style == "llama_3"
        self.tokenizer = tokenizer

    def __call__(self, conversation: Sequence[Utterance]) -> list[int]:
        if not conversation or conversation[-1].role != "user":
            raise PromptError("The conversation must end with a user's turn.")
        return self.tokenize(self.render([_as_data(each) for each in conversation]))

    def tokenize(self, text: str) -> list[int]:
        """A rendered prompt → ids, one SPEECH for every <speech>."""
        pieces = [self.tokenizer(piece).input_ids for piece in text.split(SPEECH_MARK)]
        bos = self.tokenizer.bos_token_id
        if self.adds_bos and pieces[0] and pieces[0][0] == bos:
            ids, rest = pieces[0], [piece[1:] for piece in pieces[1:]]  # each piece got a BOS of its own
        else:
            ids, rest = pieces[0], pieces[1:]
        for piece in rest:
            ids = [*ids, SPEECH, *piece]
        return ids


def _llama_3(conversation: list[Utterance]) -> str:
    if conversation[0].role != "system":
        conversation = [Utterance("system", text=LLAMA_3_SYSTEM), *conversation]
    turns = "".join(_llama_3_turn(each.role, _content(each, LLAMA_3_REQUEST)) for each in conversation)
    return f"<|begin_of_text|>{turns}<|start_header_id|>assistant<|end_header_id|>\n\n"


def _llama_3_turn(role: str, content: str) -> str:
    """An empty turn is a header alone, and an empty system turn is none: as published."""
    if role == "system" and not content:
        return ""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}" + ("<|eot_id|>" if content else "")


def _chatml(conversation: list[Utterance]) -> str:
    turns = "".join(f"<|im_start|>{each.role}\n{_content(each, SPEECH_MARK)}<|im_end|>\n" for each in conversation)
    return f"{turns}<|im_start|>assistant\n"


def _content(utterance: Utterance, speech_request: str) -> str:
    return speech_request if utterance.speech is not None else (utterance.text or "")


def _as_data(utterance: Utterance) -> Utterance:
    """A client's text may name template tokens: broken up, they are words and command nothing."""
    if utterance.role not in ("system", "user", "assistant"):
        raise PromptError(f"role is {utterance.role!r}. Select one of system, user, assistant.")
    if utterance.text is None:
        return utterance
    text = re.sub(r"<(?=\||speech>)", "< ", utterance.text.strip())
    return Utterance(utterance.role, text=text, speech=utterance.speech)
