"""The judge and the chat it asks: over a real socket, from a fake that answers, refuses, stumbles and hangs."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fake_chat import serving

from omni.train import scoring
from omni.train.chat import Chat, ChatError
from omni.train.judge import Judge
from omni.train.scoring import Earlier, ManifestError, Question

QUESTION = Question("one", Path("one.wav"), "What is the capital of France?", "factual", fact="Paris")


def judging(url: str, **settings) -> Judge:
    return Judge(Chat.named(f"openai:{url}#judge", json_reply=True, sleep=lambda _: None, **settings))


@pytest.mark.parametrize(
    ("reply", "points", "fits"),
    [('{"score": 5}', 5.0, True), ('Here: ```json\n{"score": "3"}\n```', 3.0, False), ('{"score": 4}', 4.0, True)],
    ids=["plain", "wordy", "good enough"],
)
def test_a_score_is_read_from_the_reply(reply, points, fits):
    with serving(lambda body: reply) as fake:
        score = judging(fake.url)(QUESTION, "It is Paris.")
    assert (score.points, bool(score)) == (points, fits)


def test_question_answer_model_and_key_are_sent(monkeypatch):
    """The key comes from the environment; the judge sees both sides of the exchange."""
    monkeypatch.setenv("OMNI_CHAT_KEY", "sesame")
    with serving(lambda body: '{"score": 1}') as fake:
        judging(fake.url)(QUESTION, "It is Rome.")
    ((body, headers),) = fake.requests
    assert headers["authorization"] == "Bearer sesame"
    assert body["model"] == "judge" and body["temperature"] == 0
    assert QUESTION.instruction in body["messages"][1]["content"] and "It is Rome." in body["messages"][1]["content"]


def test_the_judge_of_a_dialogue_is_told_what_went_before():
    earlier = Earlier(Path("zero.wav"), "What is the capital of Spain?", "It is Madrid.")
    question = replace(QUESTION, instruction="And of France?", history=(earlier,))
    with serving(lambda body: '{"score": 5}') as fake:
        judging(fake.url)(question, "Paris.")
        judging(fake.url)(QUESTION, "Paris.")
    told, single = (body["messages"][1]["content"] for body, _ in fake.requests)
    before, _, judged = told.partition("To be judged:\n")
    assert "The user: What is the capital of Spain?\nThe assistant: It is Madrid." in before
    assert judged == "The user: And of France?\n\nThe assistant: Paris."
    assert single == f"The user: {QUESTION.instruction}\n\nThe assistant: Paris."


def test_silence_is_judged_without_asking():
    with serving(lambda body: '{"score": 5}') as fake:
        assert judging(fake.url)(QUESTION, " ").points == 1.0
    assert fake.requests == []


def test_what_may_pass_is_tried_again():
    replies = iter([(503, b""), (429, b""), '{"score": 4}'])
    with serving(lambda body: next(replies)) as fake:
        assert judging(fake.url)(QUESTION, "It is Paris.").points == 4.0
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    ("reply", "words", "times"),
    [
        ((503, b""), "status 503", 3),
        ((401, b"no such key"), "refused with 401: no such key", 1),
        ((200, b"<html>"), "no chat completion", 1),
        ("fine", "holds no score: 'fine'", 1),
        ('{"score": 11}', "score is 11", 1),
    ],
    ids=["down", "refused", "no chat", "no score", "out of range"],
)
def test_a_judge_that_gives_no_score_is_named(reply, words, times):
    with serving(lambda body: reply) as fake, pytest.raises(ChatError, match=words):
        judging(fake.url)(QUESTION, "It is Paris.")
    assert len(fake.requests) == times


def test_a_judge_that_hangs_is_left_at_the_deadline():
    released = threading.Event()
    try:
        with serving(lambda body: "late" if released.wait(30) else "") as fake:
            with pytest.raises(ChatError, match="no reply"):
                judging(fake.url, deadline=0.1)(QUESTION, "It is Paris.")
            released.set()
    finally:
        released.set()


@pytest.mark.parametrize("name", ["openai:", "openai:http://x/v1", "openai:file:///etc/passwd#m", "openai:x#y"])
def test_a_scorers_name_is_checked(name):
    with pytest.raises(ManifestError, match="is not openai:URL#MODEL"):
        scoring.find_scorer(name)
