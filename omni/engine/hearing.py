"""What was said → speech embeddings: several utterances in one call, and kept for a session's next turn.

    hearing = Hearing(omni, max_bytes=2**28)
    embeddings = hearing([samples, samples])    # {key(samples): (T, D)}, each as omni.speech_embeddings gives it alone
    hearing.recall(key(samples))                # the same tensor as long as it is kept, else None

Embeddings are called by the content they come from, so that nobody has to say whose they are: a conversation that is
sent again, by whatever way, finds its earlier utterances here (and what a slot remembers is not even looked up). The
one used least recently goes first when there is no more room. Knows nothing of sequences or slots.

Utterances that wait together are encoded together: those of equal length as they are, those of nearly equal length with
a mask, under which a row sees itself alone. The adaptor reads every utterance by itself, or all where all are equally
long: there it needs no mask. All adaptors of a checkpoint share its encoder's call; who is heard by another one is
called by another name.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from omni.audio import mel
from omni.model.omni import Omni

RAGGED = 1.25  # the longest of a batch is at most so much longer than the shortest: the rest is padding
FRAMES_TOGETHER = 4 * mel.N_SAMPLES // mel.HOP  # mel frames of one call: four times 30 s


class Hearing:
    """`calls` and `rows` count the encoder's forward calls and the utterances in them; `bytes` is what is kept now."""

    def __init__(self, omni: Omni, max_bytes: int) -> None:
        self.omni, self.max_bytes = omni, max_bytes
        self.bytes = self.calls = self.rows = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def length(self, samples: np.ndarray) -> int:
        """How many embeddings (S,) samples become."""
        if self.omni.config.speech_input == "padded":
            return mel.N_SAMPLES // mel.SAMPLES_PER_EMBEDDING
        return -(-len(samples) // mel.SAMPLES_PER_EMBEDDING)

    def recall(self, key: bytes) -> Tensor | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def __call__(
        self, spoken: Mapping[bytes, np.ndarray], adaptors: Mapping[bytes, str] = MappingProxyType({})
    ) -> dict[bytes, Tensor]:
        """Utterances by key → embeddings (T, D) by key; only what is not kept is encoded.

        `adaptors` names who hears those that the checkpoint's own does not.
        """
        heard = {each: known for each in spoken if (known := self.recall(each)) is not None}
        mels = {each: self.omni.mel(samples) for each, samples in spoken.items() if each not in heard}
        for group in batches({each: frames.shape[-1] for each, frames in mels.items()}):
            named = [adaptors.get(each, "") for each in group]
            heard |= zip(group, self._encode([mels[each] for each in group], named), strict=True)
        for each in mels:
            self._keep(each, heard[each])
        return heard

    def forget(self, key: bytes) -> None:
        """What came of it was no good."""
        if (embeddings := self._kept.pop(key, None)) is not None:
            self.bytes -= _size(embeddings)

    def _encode(self, mels: list[Tensor], named: list[str]) -> list[Tensor]:
        """Mels (n_mels, F) of one call, and which adaptor hears each → embeddings (T, D)."""
        omni, lengths = self.omni, [each.shape[-1] for each in mels]
        self.calls, self.rows = self.calls + 1, self.rows + len(mels)
        equal = len(set(lengths)) == 1
        padded = torch.stack([torch.nn.functional.pad(each, (0, max(lengths) - each.shape[-1])) for each in mels])
        mask = None if equal else torch.tensor(lengths, device=omni.device)
        frames = omni.encoder(padded.to(omni.device, omni.dtype), mask)  # (B, F / 2, D)
        if equal:
            return self._adapt(frames, named)
        rows = [row[None, : (length + 1) // 2] for row, length in zip(frames, lengths, strict=True)]
        return [omni.adaptor_named(name)(row)[0] for name, row in zip(named, rows, strict=True)]

    def _adapt(self, frames: Tensor, named: Sequence[str]) -> list[Tensor]:
        """Frames (B, F, D) of equal length → embeddings (T, D), all rows of one adaptor in one call."""
        if len(set(named)) == 1:
            return list(self.omni.adaptor_named(named[0])(frames))
        heard: dict[int, Tensor] = {}
        for name in set(named):
            rows = [i for i, each in enumerate(named) if each == name]
            heard |= zip(rows, self.omni.adaptor_named(name)(frames[rows]), strict=True)
        return [heard[i] for i in range(len(named))]

    def _keep(self, key: bytes, embeddings: Tensor) -> None:
        if _size(embeddings) > self.max_bytes:
            return
        self._kept[key] = embeddings.clone()  # not a view of the whole batch
        self.bytes += _size(embeddings)
        while self.bytes > self.max_bytes:
            self.bytes -= _size(self._kept.popitem(last=False)[1])


def key(samples: np.ndarray, adaptor: str = "") -> bytes:
    """What an utterance is called: a digest of its samples (S,), another one for each adaptor."""
    return hashlib.blake2b(np.ascontiguousarray(samples).tobytes(), digest_size=16, key=adaptor.encode()).digest()


def batches(lengths: Mapping[bytes, int], together: int = FRAMES_TOGETHER) -> list[list[bytes]]:
    """Utterances by mel frames → those that go into one call, short ones first."""
    groups: list[list[bytes]] = []
    for each in sorted(lengths, key=lambda name: lengths[name]):
        shortest = lengths[groups[-1][0]] if groups else 0
        if groups and lengths[each] <= RAGGED * shortest and (len(groups[-1]) + 1) * lengths[each] <= together:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _size(x: Tensor) -> int:
    return x.nelement() * x.element_size()
