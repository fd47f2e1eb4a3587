"""Does an answer fit? A language model judges, 1 to 5, as GPT-4o does in the paper (arXiv 2409.06666, App. A).

    judge = Judge(Chat.named("openai:https://api.openai.com/v1#gpt-4o", json_reply=True))
    score = judge(question, "The capital of France is Paris.")
    score.points, bool(score)       # 5.0, True: fits from four points on

The local scorer (scoring.fits) gives the same verdict on every machine and needs no network; this one understands.
"""

import json
import re
from dataclasses import dataclass

from omni.train.chat import Chat, ChatError
from omni.train.scoring import Question, Score

SYSTEM = (
    "You judge the answers of a voice assistant. You get what the user said and what the assistant answered aloud. "
    "Judge how helpful, relevant, fluent and suitable for being spoken the answer is, with one whole number: "
    "1 (useless or beside the question), 2 (poor), 3 (acceptable), 4 (good), 5 (excellent). "
    'Reply with JSON only: {"score": 4}'
)


@dataclass(frozen=True)
class Judge:
    chat: Chat

    def __call__(self, question: Question, answer: str) -> Score:
        """Raises ChatError where the judge gives no score."""
        if not answer.strip():
            return Score(1.0)  # silence needs no judge
        exchange = f"The user: {question.instruction}\n\nThe assistant: {answer}"
        reply = self.chat(SYSTEM, f"{_before(question)}{exchange}")
        return Score(_points(reply))


def _before(question: Question) -> str:
    said = [f"The user: {each.instruction}\nThe assistant: {each.response or ''}\n" for each in question.history]
    return f"Before, not to be judged:\n{''.join(said)}\nTo be judged:\n" if said else ""


def _points(reply: str) -> float:
    """The score in a reply, which may have words or a code fence around its JSON."""
    found = re.search(r"\{.*?\}", reply, re.DOTALL)
    try:
        points = float(json.loads(found[0] if found else reply)["score"])
    except (ValueError, KeyError, TypeError) as exc:
        raise ChatError(f"The judge's reply holds no score: {reply[:200]!r}") from exc
    if not 1 <= points <= 5:
        raise ChatError(f"The judge's score is {points:g}; it was asked for 1 to 5.")
    return points
