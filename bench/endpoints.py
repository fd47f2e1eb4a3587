"""When a server that hears a recording can know that somebody speaks, and that the question is over.

    bounds = find(pcm16, silence_ms=500)   # None: it hears no speech, or more than one question
    bounds.speech                          # samples from the recording's beginning to the first window with speech
    bounds.onset                           # to where it has lasted long enough to be taken for speech
    bounds.last_word                       # where the last window with speech ends
    bounds.committed                       # where the silence after it is long enough

The server's own ear and rules, beforehand: what is measured against them is the way and the waiting, not the hearing.
No torch.
"""

from dataclasses import dataclass

import numpy as np

from omni.audio import vad
from omni.audio.wav import SAMPLE_RATE, from_pcm16
from omni.serve.turn_taking import Settings, Started, Stopped, TurnTaking

BEFORE = vad.WINDOW * round(SAMPLE_RATE / vad.WINDOW)  # samples of silence, a second: an ear that has heard some


@dataclass(frozen=True)
class Bounds:
    speech: int
    onset: int
    last_word: int
    committed: int


def find(pcm16: bytes, silence_ms: int) -> Bounds | None:
    """int16 LE, mono, 16 kHz, begun at the beginning of a window."""
    after = SAMPLE_RATE * silence_ms // 1000 + SAMPLE_RATE
    samples = np.concatenate([np.zeros(BEFORE), from_pcm16(pcm16), np.zeros(after)]).astype(np.float32)
    taking = TurnTaking(Settings(silence_duration_ms=silence_ms))
    padding = taking.settings.prefix_padding_ms * SAMPLE_RATE // 1000
    onsets, ends = [], []
    for probability in vad.VoiceActivity(vad.load()).push(samples):
        match taking.hear(float(probability)):
            case Started(sample):
                onsets.append((sample + padding - BEFORE, taking.position - BEFORE))
            case Stopped():
                ends.append(taking.position - BEFORE)
    if not len(onsets) == len(ends) == 1:
        return None
    waited = -(-silence_ms * SAMPLE_RATE // 1000 // vad.WINDOW) * vad.WINDOW  # whole windows
    return Bounds(*onsets[0], ends[0] - waited, ends[0])
