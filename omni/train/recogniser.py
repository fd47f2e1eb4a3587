"""Samples → text, by a recogniser that has nothing in common with our encoder: Moonshine tiny (MIT), not Whisper.

    listen = Recogniser.fetched()
    listen(samples)       # "The capital of France is Paris."

Source of the format: the package moonshine-voice, whose data files these are; arXiv 2410.15608.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from omni.audio.wav import SAMPLE_RATE
from omni.model import packaged

BEGIN, END = 1, 2
TOKENS_PER_SECOND = 6.5  # more than anybody speaks; past it the decoder repeats itself
SHORTEST, LONGEST = 0.3, 30.0  # seconds
FIRST_WORD_TOKEN = 3  # below it are <unk>, <s>, </s>
BYTE_TOKENS = 256  # then one token for every byte


class Recogniser:
    def __init__(self, folder: Path, num_threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self.encoder = onnxruntime.InferenceSession(folder / "encoder_model.ort", options)
        self.decoder = onnxruntime.InferenceSession(folder / "decoder_model_merged.ort", options)
        self.tokens = read_tokens((folder / "tokenizer.bin").read_bytes())
        self.pasts = [each for each in self.decoder.get_inputs() if each.name.startswith("past_key_values")]

    @classmethod
    def fetched(cls, num_threads: int = 0) -> "Recogniser":
        return cls(packaged.fetch("moonshine"), num_threads)

    def __call__(self, samples: np.ndarray) -> str:
        """(S,) float32 at 16 kHz → what was said. Longer audio is heard in pieces of up to 30 s."""
        size = int(LONGEST * SAMPLE_RATE)
        pieces = [samples[start : start + size] for start in range(0, len(samples), size)]
        return " ".join(filter(None, map(self._piece, pieces)))

    def _piece(self, samples: np.ndarray) -> str:
        if len(samples) < SHORTEST * SAMPLE_RATE:
            return ""
        audio = samples[None].astype(np.float32)
        heard = np.ones(audio.shape, np.int64)
        (states,) = self.encoder.run(None, {"input_values": audio, "attention_mask": heard})  # (1, F, D)
        ids = self._decode(states, heard, limit=int(np.ceil(len(samples) / SAMPLE_RATE * TOKENS_PER_SECOND)))
        return spell([self.tokens[i] for i in ids if i >= FIRST_WORD_TOKEN])

    def _decode(self, states: np.ndarray, heard: np.ndarray, limit: int) -> list[int]:
        """Greedy; the decoder's own keys grow, those of the audio are made in the first step."""
        past = {each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in self.pasts}
        ids: list[int] = []
        last = BEGIN
        while len(ids) < limit:
            logits, *present = self.decoder.run(None, self._inputs(states, heard, last, past, bool(ids)))
            last = int(logits[0, -1].argmax())
            if last == END:
                break
            ids_before, ids = ids, [*ids, last]
            for each, new in zip(self.pasts, present, strict=True):
                if not ids_before or ".decoder." in each.name:
                    past[each.name] = new
        return ids

    def _inputs(
        self, states: np.ndarray, heard: np.ndarray, last: int, past: dict[str, np.ndarray], started: bool
    ) -> dict[str, np.ndarray]:
        return past | {
            "input_ids": np.array([[last]], np.int64),
            "encoder_hidden_states": states,
            "encoder_attention_mask": heard,  # of samples: the decoder thins it out itself
            "use_cache_branch": np.array([started]),
        }


def read_tokens(data: bytes) -> list[bytes]:
    """tokenizer.bin: for every token its length (one byte, or two from 128 on: low 7 bits first) and its bytes."""
    tokens, at = [], 0
    while at < len(data):
        length, at = data[at], at + 1
        if length >= 128:
            length, at = length - 128 + 128 * data[at], at + 1
        tokens.append(data[at : at + length])
        at += length
    return tokens


def spell(pieces: list[bytes]) -> str:
    """SentencePiece's ▁ is a space; bytes that are no UTF-8 yet come one token each."""
    return b"".join(pieces).decode(errors="replace").replace("▁", " ").strip()
