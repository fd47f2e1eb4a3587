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
ANSWER_MARK = "<|answer|>"  # stands for one earlier answer's own tokens; no text can contain it, see _as_data
MARKS = re.compile(f"({re.escape(SPEECH_MARK)}|{re.escape(ANSWER_MARK)})")
LLAMA_3_SYSTEM = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LLAMA_3_REQUEST = f"{SPEECH_MARK}\nPlease directly answer the questions in the user's speech."


@dataclass(frozen=True)
class Utterance:
    """One turn: what was said (samples (S,), 16 kHz float32) or written; or an answer's tokens as generated."""

    role: str  # "system", "user" or "assistant"
    text: str | None = None
    speech: np.ndarray | None = None
    token_ids: tuple[int, ...] | None = None  # without the end token; they come before text


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
        data = [_as_data(each) for each in conversation]
        answers = [each.token_ids for each in data if each.token_ids is not None]
        return self.tokenize(self.render(data), answers)

    def tokenize(self, text: str, answers: Sequence[Sequence[int]] = ()) -> list[int]:
        """A rendered prompt → ids, SPEECH for every <speech>, the next answer's tokens for every mark of one."""
        first, *rest = MARKS.split(text)
        ids = self.tokenizer(first).input_ids
        bos = self.tokenizer.bos_token_id
        own_bos = 1 if self.adds_bos and ids and ids[0] == bos else 0  # each piece gets one of its own
        waiting = iter(answers)
        for mark, piece in zip(rest[::2], rest[1::2], strict=True):
            inserted = [SPEECH] if mark == SPEECH_MARK else next(waiting)
            ids = [*ids, *inserted, *self.tokenizer(piece).input_ids[own_bos:]]
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
    if utterance.token_ids is not None:
        return ANSWER_MARK
    return speech_request if utterance.speech is not None else (utterance.text or "")


def _as_data(utterance: Utterance) -> Utterance:
    """A client's text may name template tokens: broken up, they are words and command nothing."""
    if utterance.role not in ("system", "user", "assistant"):
        raise PromptError(f"role is {utterance.role!r}. Select one of system, user, assistant.")
    if utterance.token_ids is not None and utterance.role != "assistant":
        raise PromptError(f"A {utterance.role}'s turn has token ids; only an assistant's answer has.")
    if utterance.text is None or utterance.token_ids is not None:
        return utterance
    text = re.sub(r"<(?=\||speech>)", "< ", utterance.text.strip())
    return Utterance(utterance.role, text=text, speech=utterance.speech)
