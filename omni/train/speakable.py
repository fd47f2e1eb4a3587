"""Written text → text that can be said: no markup, lists, links or symbols, numbers as words. By rule alone.

speakable("**Paris** has 2 airports:\\n- CDG\\n- Orly", limit=40)      # "Paris has two airports: CDG, Orly."
"""

import re

from omni.train.words import cardinal, ordinal, year

SYMBOLS = {"&": " and ", "%": " percent", "+": " plus ", "=": " equals ", "@": " at ", "°": " degrees", "#": " number "}


def speakable(text: str, limit: int = 40) -> str | None:
    """Whole sentences of at most `limit` words together; None where nothing sayable is left (code, other scripts)."""
    if "```" in text:
        return None
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links keep their words
    text = re.sub(r"https?://\S+|<[^>]+>|\([^)]*\)", " ", text)
    text = re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+(.*?)[.;,]?\s*$", r"\1,", text, flags=re.MULTILINE)  # list items
    text = re.sub(r"[*_`~|]+|^#+\s*", "", text, flags=re.MULTILINE)
    text = (
        re.sub(r"\$(\d[\d,]*(?:\.\d+)?)", r"\1 dollars", text).replace("’", "'").replace("—", ", ").replace("–", " to ")
    )
    text = re.sub(r"(\d+)(?:st|nd|rd|th)\b", lambda match: ordinal(int(match[1])), text)
    text = re.sub(r"\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?", _number, text)
    for symbol, word in SYMBOLS.items():
        text = text.replace(symbol, word)
    text = re.sub(r"[^A-Za-zÀ-ÿ0-9 ,.!?'\-:;\n]", " ", text)
    text = re.sub(r"\s+([,.!?:;])", r"\1", re.sub(r"\s+", " ", text)).strip(" ,")
    text = re.sub(r":,|,:", ":", re.sub(r",(?=[.!?])|,(?=,)", "", text))
    kept = _whole_sentences(text, limit)
    return kept if len(re.findall(r"[A-Za-z]{2,}", kept)) >= 1 else None


def _number(match: re.Match) -> str:
    whole, _, fraction = match[0].replace(",", "").partition(".")
    if len(whole) > 12:
        return " ".join(cardinal(int(digit)) for digit in whole)
    said = year(int(whole)) if re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", match[0]) else cardinal(int(whole))
    return said + (" point " + " ".join(cardinal(int(digit)) for digit in fraction) if fraction else "")


def _whole_sentences(text: str, limit: int) -> str:
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        if kept and len(" ".join([*kept, sentence]).split()) > limit:
            break
        kept.append(sentence)
    if len(" ".join(kept).split()) > limit:  # one endless sentence says nothing well
        return ""
    joined = " ".join(kept)
    return joined if not joined or joined[-1] in ".!?" else f"{joined}."
