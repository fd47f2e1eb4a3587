"""Token ids → text as it grows. A character is given out once it is whole; special tokens are not text."""

from transformers import PreTrainedTokenizerFast


class Detokenizer:
    """Concatenated deltas equal decoding everything at once: `"".join(d(id) for id in ids) + d.finish()`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.given = 0  # characters handed out

    def __call__(self, token_id: int) -> str:
        self.ids.append(token_id)
        text = self._decode()
        if text.endswith("�"):  # half of a character: wait for the rest
            return ""
        return self._give(text)

    def finish(self) -> str:
        return self._give(self._decode())

    def _decode(self) -> str:
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one list of ids gives one text"
        return text

    def _give(self, text: str) -> str:
        delta, self.given = text[self.given :], len(text)
        return delta
