"""What the mini checkpoint learns to answer: questions with short, speakable answers. Knows nothing of sound.

    train, heldout = examples(seed=0)
    train, heldout = follow_ups()   # "And Spain?", asked after what the capital of France is

Sources, all in omni/train/data (licences: docs/licences.md): chit-chat intents with many phrasings each, facts and
everyday questions of our own, and sentences to repeat. Held out are phrasings, not facts: a tenth of every intent's by
hash, and one phrasing of every relation (marked ~ in the files), so that the same fact is asked in new words.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

DATA = Path(__file__).parent / "data"
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
OPENINGS = ("Hey, ", "Okay, ", "So, ", "Please tell me, ", "Quick question. ", "I have a question. ", "Tell me, ")
FOLLOW_UPS = ("And {}?", "What about {}?", "How about {}?")
NEVER_FOLLOWED = ("plus", "superlative", "units")  # a sum stands alone; nobody says "And days are in a week?"
KEPT_OUT = "And what about {}?"  # the follow-up that no training asks
REQUESTS = ("Repeat after me: ", "Please say: ", "Say this: ", "Repeat this sentence: ")


@dataclass(frozen=True)
class Example:
    instruction: str
    response: str
    kind: str  # "chitchat", "factual", "everyday", "follow-up", "repeat", "trivia", "heard" (the last two: no response)
    group: str  # its intent or fact; training draws groups evenly
    accept: tuple[str, ...] = ()  # other responses that fit
    fact: str | None = None  # what a fitting answer must name

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass
class Relation:
    name: str
    kind: str
    asked: list[str] = field(default_factory=list)
    kept_out: list[str] = field(default_factory=list)
    answer: str = ""
    subject: int | None = 1  # which member of the pair the answer must name
    pairs: list[tuple[str, str]] = field(default_factory=list)


def examples(seed: int = 0) -> tuple[list[Example], list[Example]]:
    """(train, held out), the same for the same seed."""
    train: list[Example] = []
    heldout: list[Example] = []
    for relation in relations():
        for part, phrasings in ((train, relation.asked), (heldout, relation.kept_out)):
            part.extend(_ask(relation, phrasings))
    for intent in _read_jsonl("chitchat.jsonl"):
        for phrasing in intent["phrasings"]:
            example = Example(phrasing, intent["response"], "chitchat", intent["response"], tuple(intent["accept"]))
            (heldout if _hash(phrasing) % 10 == 0 else train).append(example)
    said = {_plain(example.instruction) for example in train}
    heldout = [example for example in heldout if _plain(example.instruction) not in said]
    train += repeats(train, seed)
    train += [Example(row["instruction"], "", "trivia", "trivia") for row in _read_jsonl("trivia.jsonl")]
    return train, heldout


def heard() -> list[Example]:
    """Questions that are only heard: the adaptor learns words in as many surroundings as it can get."""
    return [Example(text, "", "heard", "heard") for text in (DATA / "heard.txt").read_text().splitlines()]


def follow_ups() -> tuple[list[Example], list[Example]]:
    """(train, held out): what may be asked of another pair once one of its relation was asked.

    `group` is that of the question in full: "capital/Spain". Held out are a tenth of the pairs, in words of their own.
    """
    train: list[Example] = []
    heldout: list[Example] = []
    for relation in relations():
        if relation.kind != "factual" or relation.subject is None or relation.name in NEVER_FOLLOWED:
            continue
        asked_of = "{1}" if "{1}" in relation.asked[0] else "{0}"
        for part, phrasings in ((train, FOLLOW_UPS), (heldout, [KEPT_OUT])):
            for each in _ask(relation, [phrasing.format(asked_of) for phrasing in phrasings]):
                if (_hash(each.group) % 10 == 0) == (part is heldout):
                    part.append(replace(each, kind="follow-up"))
    return train, heldout


def relations() -> list[Relation]:
    return [
        *read_relations(DATA / "facts.txt", "factual"),
        *read_relations(DATA / "everyday.txt", "everyday"),
        *_sums(),
        *_calendar(),
    ]


def read_relations(path: Path, kind: str) -> list[Relation]:
    """The blocks of a relations file: `# name`, `? phrasing`, `~ held out`, `! answer`, `= 0|1|-`, `key: value; …`.

    Words of a key |between bars| are said in the question only.
    """
    found: list[Relation] = []
    for number, line in enumerate(path.read_text().splitlines()[1:], start=2):
        mark, _, text = line.partition(" ")
        if mark == "#":
            found.append(Relation(text, kind))
        elif mark == "?":
            found[-1].asked.append(text)
        elif mark == "~":
            found[-1].kept_out.append(text)
        elif mark == "!":
            found[-1].answer = text
        elif mark == "=":
            found[-1].subject = None if text == "-" else int(text)
        elif ": " in line:
            found[-1].pairs = [_pair(pair, path, number) for pair in line.split("; ")]
        else:
            raise ValueError(f"{path}:{number}: {line!r} is no part of a relation.")
    return found


def _pair(text: str, path: Path, number: int) -> tuple[str, str]:
    key, colon, value = text.partition(": ")
    if not colon:
        raise ValueError(f"{path}:{number}: {text!r} is not 'key: value'.")
    return key, value.strip()


def _ask(relation: Relation, phrasings: Sequence[str]) -> Iterator[Example]:
    if not relation.pairs:  # an everyday question: its answer is all there is
        for phrasing in phrasings:
            yield Example(phrasing, relation.answer, relation.kind, relation.name)
    for key, value in relation.pairs:
        response = _sentence(relation.answer.format(re.sub(r"\|.*?\|", "", key), value))
        fact = None if relation.subject is None else _ARTICLE.sub("", (key, value)[relation.subject])
        for phrasing in phrasings:
            instruction = _sentence(phrasing.format(key.replace("|", ""), value))
            yield Example(instruction, response, relation.kind, f"{relation.name}/{key}", fact=fact)


_ARTICLE = re.compile(r"^(a|an|the) ")


def _sums() -> list[Relation]:
    plus = Relation(
        "plus",
        "factual",
        ["What is {0}?", "How much is {0}?", "What's {0}?", "Can you calculate {0}?"],
        ["Tell me what {0} makes."],
        "{0} is {1}.",
    )
    for a in range(1, 11):
        plus.pairs += [(f"{NUMBERS[a]} plus {NUMBERS[b]}", number(a + b)) for b in range(1, a + 1)]
        plus.pairs += [(f"{NUMBERS[a]} minus {NUMBERS[b]}", number(a - b)) for b in range(1, a, 2)]
    for a in (2, 3, 5, 10):
        plus.pairs += [(f"{NUMBERS[a]} times {NUMBERS[b]}", number(a * b)) for b in range(2, 11)]
    plus.pairs = list(dict(plus.pairs).items())
    return [plus]


def _calendar() -> list[Relation]:
    after = (["What {2} comes after {0}?", "Which {2} follows {0}?", "What is the {2} after {0}?"],
             ["{0} is followed by which {2}?"], "The {2} after {0} is {1}.")  # fmt: skip
    before = (["What {2} comes before {0}?", "Which {2} is before {0}?", "What is the {2} before {0}?"],
              ["Which {2} do we have right before {0}?"], "The {2} before {0} is {1}.")  # fmt: skip
    made = []
    for word, names in (("day", DAYS), ("month", MONTHS)):
        for (asked, kept_out, answer), step in ((after, 1), (before, -1)):
            fill = [[text.replace("{2}", word) for text in texts] for texts in (asked, kept_out, [answer])]
            pairs = [(name, names[(i + step) % len(names)]) for i, name in enumerate(names)]
            made.append(Relation(f"{word}{step:+d}", "factual", fill[0], fill[1], fill[2][0], 1, pairs))
    return made


def number(value: int) -> str:
    """0 … 100 in words."""
    if value < 20:
        return NUMBERS[value]
    if value == 100:
        return "one hundred"
    ten, one = divmod(value, 10)
    return TENS[ten - 2] + (f" {NUMBERS[one]}" if one else "")


def repeats(train: Sequence[Example], seed: int) -> list[Example]:
    """Sentences to say again. They teach copying, so that hidden states of any text exist to speak from."""
    sentences = [row["instruction"] for row in _read_jsonl("trivia.jsonl")]
    sentences += [example.response for example in train]
    sentences += [example.instruction for example in train]
    shuffled = random.Random(seed)
    unique = list(dict.fromkeys(sentence for sentence in sentences if len(sentence.split()) > 2))
    return [
        Example(f"{shuffled.choice(REQUESTS)}{sentence}", sentence, "repeat", f"repeat/{i % 100}")
        for i, sentence in enumerate(shuffled.sample(unique, min(len(unique), 6000)))
    ]


def open_with(instruction: str, draw: random.Random) -> str:
    """The question as people begin it: sometimes with a word before."""
    opening = draw.choice(OPENINGS)
    keep = instruction.startswith(("I ", "I'", *DAYS, *MONTHS)) or opening.endswith(". ")
    return opening + (instruction if keep else instruction[0].lower() + instruction[1:])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter == " ").strip()


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def _read_jsonl(name: str) -> list[dict]:
    with (DATA / name).open() as file:
        return [json.loads(line) for line in file]
