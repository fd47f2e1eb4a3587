"""Token ids → text as it grows. A character is given out once it is whole; special tokens are not text."""

from transformers import PreTrainedTokenizerFast


class Detokenizer:
    """Concatenated deltas equal decoding everything at once: `"".join(d(id) for id in ids) + d.finish()`.

    Only the ids since the last delta are decoded, and those of the delta before them, which say whether a space leads:
    a token costs the same however long the answer is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.context: list[int] = []  # ids of the last delta
        self.pending: list[int] = []  # ids not given out yet

    def __call__(self, token_id: int) -> str:
        self.pending.append(token_id)
        text = self._decode(self.context + self.pending)
        if text.endswith("�"):  # half of a character: wait for the rest
            return ""
        return self._give(text)

    def finish(self) -> str:
        return self._give(self._decode(self.context + self.pending))

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _give(self, text: str) -> str:
        delta = text[len(self._decode(self.context)) :]
        if self.pending:
            self.context, self.pending = self.pending, []
        return delta
