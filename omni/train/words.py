"""Texts → comparable words, and how far two texts are apart. One text may be written and the other heard.

normalise("It's 9:30 — the 21st, Dr. Smith!")  # "it is nine thirty the twenty first doctor smith"
errors("a b c".split(), "a x c".split())       # 1: one word is another
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"), (100, "hundred"))
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
            "twelve": "twelfth"}  # fmt: skip
NUMBER_WORDS = {*ONES, *TENS[2:], *(name for _, name in SCALES)}
WORDS = {
    "mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint", "ok": "okay", "vs": "versus", "etc": "et cetera",
    "grey": "gray", "colour": "color", "favourite": "favorite", "centre": "center", "goodbye": "good bye",
    "can't": "can not", "won't": "will not", "shan't": "shall not", "cannot": "can not", "let's": "let us",
    "gonna": "going to", "wanna": "want to",
}  # fmt: skip
ENDINGS = (("n't", " not"), ("'re", " are"), ("'ve", " have"), ("'ll", " will"), ("'m", " am"), ("'d", " would"),
           ("'s", " is"))  # fmt: skip
SIGNS = {"&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at "}


def normalise(text: str) -> str:
    """Lower case, no punctuation, numbers and contractions as words, one space between words."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'")
    text = "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    text = re.sub(r"\$(\d[\d,]*(?:\.\d+)?)", r"\1 dollars", text)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"\b(\d{1,2}):(\d\d)\b", _clock, text)
    text = re.sub(r"(\d+)(?:st|nd|rd|th)\b", lambda match: f" {ordinal(int(match[1]))} ", text)
    text = re.sub(r"(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(s\b)?", _number, text)
    found = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)
    return " ".join(_without_and(" ".join(_expand(word) for word in found).split()))


def words(text: str) -> list[str]:
    return normalise(text).split()


def cardinal(value: int) -> str:
    """0 … in words, as Americans say them: no "and"."""
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f" {ONES[value % 10]}" if value % 10 else "")
    for size, name in SCALES:
        if value >= size:
            rest = f" {cardinal(value % size)}" if value % size else ""
            return f"{cardinal(value // size)} {name}{rest}"
    raise AssertionError(f"{value} is no counting number")


def ordinal(value: int) -> str:
    *before, last = cardinal(value).split()
    last = ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return " ".join((*before, last))


def year(value: int) -> str:
    """Four digits as people say a year: nineteen sixty nine."""
    first, last = divmod(value, 100)
    if first % 10 == 0 and last < 10:
        return cardinal(value)
    return f"{cardinal(first)} " + ("hundred" if last == 0 else f"oh {ONES[last]}" if last < 10 else cardinal(last))


def errors(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """The fewest insertions, deletions and substitutions that make one sequence the other."""
    row = list(range(len(theirs) + 1))
    for i, word in enumerate(ours, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(theirs, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """How much two bags of words share: 1 for the same words, 0 for none in common."""
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def contains(text: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the phrase's words stand in the text, one after the other."""
    size = len(phrase)
    return size > 0 and any(list(text[i : i + size]) == list(phrase) for i in range(len(text) - size + 1))


def _number(match: re.Match) -> str:
    digits, fraction, plural = match[1], match[2], match[3]
    value = int(digits.replace(",", ""))
    if plural and value % 10 == 0:  # the 1960s, the 80s
        return f" {_plural(year(value) if value >= 1000 else cardinal(value))} "
    if fraction:
        return f" {cardinal(value)} point {' '.join(ONES[int(digit)] for digit in fraction[1:])} "
    if value >= 10**12 or (digits.startswith("0") and len(digits) > 1):
        return f" {' '.join(ONES[int(digit)] for digit in digits if digit != ',')} "
    if re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", digits):
        return f" {year(value)} {plural or ''} "
    return f" {cardinal(value)} {plural or ''} "


def _plural(spoken: str) -> str:
    return f"{spoken[:-1]}ies" if spoken.endswith("y") else f"{spoken}s"


def _clock(match: re.Match) -> str:
    hour, minute = int(match[1]), int(match[2])
    after = "o'clock" if minute == 0 else f"oh {ONES[minute]}" if minute < 10 else cardinal(minute)
    return f" {cardinal(hour)} {after} "


def _expand(word: str) -> str:
    if word in WORDS:
        return WORDS[word]
    for ending, full in ENDINGS:
        if word.endswith(ending) and len(word) > len(ending):
            return word.removesuffix(ending).replace("'", "") + full
    return word.replace("'", "")


def _without_and(spoken: list[str]) -> list[str]:
    """one hundred and five → one hundred five"""
    return [
        word
        for i, word in enumerate(spoken)
        if not (word == "and" and 0 < i < len(spoken) - 1 and spoken[i - 1] in ("hundred", "thousand", "million")
                and spoken[i + 1] in NUMBER_WORDS)
    ]  # fmt: skip
