"""What of a conversation goes into a prompt: so many positions, seconds of speech and turns. Decides only.

    window = Window.of(config)                     # reads the checkpoint's config.json, no weights
    leaving = window.overflow(turns)               # how many of the oldest turns leave, whole

Beyond a limit the oldest turns leave until `keep` of it is used: not one by one, since with every turn that leaves
the rest is read anew, and nothing of it in between.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from omni.audio.wav import SAMPLE_RATE
from omni.model.config import OmniConfig
from omni.serve.config import ServeConfig

SAMPLES_PER_POSITION = SAMPLE_RATE // 10  # the adaptor's 10 Hz
PADDED_POSITIONS = 300  # of any utterance where the checkpoint pads it to 30 s
TEMPLATE_POSITIONS = 24  # around one item; the templates need 5 to 20
BASE_POSITIONS = 64  # the template's own beginning, with its system prompt


@dataclass(frozen=True)
class Size:
    """What one turn takes."""

    positions: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.positions + other.positions, self.seconds + other.seconds)


@dataclass(frozen=True)
class Window:
    positions: int  # for the prompt: a slot's, less those of the longest answer
    seconds: float  # of speech from the user
    turns: int  # a user's, each with the answers to it
    keep: float = 0.8  # of every limit, once turns had to leave
    padded: bool = False

    @classmethod
    def of(cls, config: ServeConfig) -> "Window":
        positions, padded = _shape(config.model)
        room = max(positions - config.max_new_tokens, 0)
        return cls(room, config.window_seconds, config.window_turns, config.window_keep, padded)

    def spoken(self, num_samples: int) -> Size:
        positions = PADDED_POSITIONS if self.padded else -(-num_samples // SAMPLES_PER_POSITION)
        return Size(positions + TEMPLATE_POSITIONS, num_samples / SAMPLE_RATE)

    def written(self, text: str) -> Size:
        """A token has at least one byte: never too low."""
        return Size(len(text.encode()) + TEMPLATE_POSITIONS)

    def generated(self, num_tokens: int) -> Size:
        return Size(num_tokens + TEMPLATE_POSITIONS)

    def overflow(self, base: Size, turns: Sequence[Size]) -> int:
        """How many of the oldest turns leave; never the last one."""
        if self._fits(base, turns, 1.0):
            return 0
        return next((i for i in range(1, len(turns)) if self._fits(base, turns[i:], self.keep)), max(len(turns) - 1, 0))

    def fits(self, base: Size, turns: Sequence[Size]) -> bool:
        return self._fits(base, turns, 1.0)

    def _fits(self, base: Size, turns: Sequence[Size], share: float) -> bool:
        size = sum(turns, base)
        return (
            size.positions + BASE_POSITIONS <= share * self.positions
            and size.seconds <= share * self.seconds
            and len(turns) <= max(1, int(share * self.turns))
        )


@lru_cache
def _shape(directory: str) -> tuple[int, bool]:
    """Positions of a slot, and whether speech is padded: as model/config.py reads them."""
    config = json.loads((Path(directory) / "config.json").read_text())
    padded = config.get("speech_input", OmniConfig.speech_input) == "padded"
    return config.get("tokenizer_model_max_length", OmniConfig.max_tokens), padded
