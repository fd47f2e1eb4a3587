"""Voices that ask the training questions, and what happens to sound on its way to a microphone.

    voice = make("kokoro")
    samples = voice("What is love?", draw)   # float32 at 16 kHz; `draw` chooses speaker and speed
    samples = room(samples, draw)            # pitch, noise, echo, silence, level

Needs the extra omni[train] (hibari-tts); the other voices' weights come by omni.model.packaged.
"""

from collections.abc import Callable

import numpy as np
import soxr

from omni.audio.wav import SAMPLE_RATE
from omni.model import packaged

Voice = Callable[[str, np.random.Generator], np.ndarray]
HELDOUT = ("af_bella", "am_michael", "bf_emma", "bm_george")  # Kokoro speakers that no training question is asked by
WHISPERED = ("af_nicole",)
LICENCES = {  # of the voices, by family; docs/licences.md says where they come from
    "hibari": "hibari-tts, Apache-2.0",
    "joe": "Piper en_US-joe-medium, CC0",
    "kokoro": "Kokoro-82M, Apache-2.0",
}


def make(name: str) -> Voice:
    """`hibari`, `joe`, `kokoro` (a training speaker drawn anew each time) or `kokoro/SPEAKER`."""
    family, _, speaker = name.partition("/")
    makers: dict[str, Callable[[], Voice]] = {"hibari": Hibari, "joe": Joe, "kokoro": lambda: Kokoro(speaker or None)}
    if family not in makers:
        raise ValueError(f"No voice is called {name!r}. Select one of {', '.join(makers)}, kokoro/SPEAKER.")
    return makers[family]()


class Hibari:
    """One US speaker, about a hundred times faster than real time on one core."""

    def __init__(self) -> None:
        from hibari import Hibari as Synthesizer

        self.synthesizer = Synthesizer()

    def __call__(self, text: str, draw: np.random.Generator) -> np.ndarray:
        speed, seed = float(draw.uniform(0.8, 1.25)), int(draw.integers(2**31))
        return soxr.resample(self.synthesizer(text, speed=speed, seed=seed), 24_000, SAMPLE_RATE)


class Kokoro:
    """27 US and British speakers; about three times faster than real time on one core."""

    def __init__(self, speaker: str | None = None) -> None:
        import json

        folder = packaged.fetch("kokoro-voices")
        self.session = _session(packaged.fetch("kokoro"))
        self.vocab = json.loads(packaged.fetch("kokoro-vocab").read_text())["vocab"]
        self.styles = {path.stem: np.fromfile(path, np.float32).reshape(-1, 1, 256) for path in folder.glob("*.bin")}
        kept = sorted(name for name in self.styles if name not in HELDOUT + WHISPERED)
        self.speakers = [speaker] if speaker else kept
        self.phonemizers = {british: _phonemizer(british) for british in (False, True)}

    def __call__(self, text: str, draw: np.random.Generator) -> np.ndarray:
        speaker = str(draw.choice(self.speakers))
        phonemes = self.phonemizers[speaker.startswith("b")](text)
        ids = [self.vocab[letter] for letter in phonemes if letter in self.vocab]
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": self.styles[speaker][len(ids)],
            "speed": np.array([draw.uniform(0.85, 1.2)], np.float32),
        }
        return soxr.resample(self.session.run(None, inputs)[0].reshape(-1), 24_000, SAMPLE_RATE)


class Joe:
    """One US male speaker, about twenty times faster than real time on one core."""

    # Our phonemizer's letters → espeak's, where they differ.
    LETTERS = {"A": "eɪ", "I": "aɪ", "O": "oʊ", "W": "aʊ", "Y": "ɔɪ", "ʤ": "dʒ", "ʧ": "tʃ", "ᵊ": "ə", "T": "ɾ"}

    def __init__(self) -> None:
        import json

        folder = packaged.fetch("piper-joe")
        self.session = _session(folder / "en_US-joe-medium.onnx")
        self.ids = json.loads((folder / "en_US-joe-medium.onnx.json").read_text())["phoneme_id_map"]
        self.phonemize = _phonemizer(british=False)

    def __call__(self, text: str, draw: np.random.Generator) -> np.ndarray:
        phonemes = "".join(self.LETTERS.get(letter, letter) for letter in self.phonemize(text))
        pad, begin, end = self.ids["_"], self.ids["^"], self.ids["$"]
        ids = [*begin, *pad]
        for letter in phonemes:
            ids += [*self.ids.get(letter, []), *pad] if letter in self.ids else []
        ids += end
        scales = np.array([0.667, draw.uniform(0.85, 1.25), 0.8], np.float32)  # noise, length, rhythm's noise
        inputs = {"input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64), "scales": scales}
        return soxr.resample(self.session.run(None, inputs)[0].reshape(-1), 22_050, SAMPLE_RATE)


def _session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _phonemizer(british: bool) -> Callable[[str], str]:
    from hibari import Hibari as Synthesizer
    from hibari.g2p import G2P

    synthesizer = Synthesizer(g2p=G2P(british=british))
    return lambda text: " ".join(synthesizer.phonemize(text))


def room(samples: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(S,) of clean speech → (S',) as another throat, room and microphone would give it."""
    x = pitch(samples, draw.uniform(0.84, 1.19))
    x = np.concatenate([np.zeros(int(draw.uniform(0, 0.35) * SAMPLE_RATE)), x])
    x = np.concatenate([x, np.zeros(int(draw.uniform(0, 0.45) * SAMPLE_RATE))])
    if draw.random() < 0.35:
        x = echo(x, draw)
    if draw.random() < 0.3:
        x = tilt(x, draw.uniform(-0.7, 0.5))
    if draw.random() < 0.75:
        x = x + noise(len(x), draw) * level(x) * 10 ** (-draw.uniform(10, 45) / 20)
    x = x / max(np.abs(x).max(), 1e-5) * 10 ** (-draw.uniform(1, 22) / 20)
    return x.astype(np.float32)


def pitch(x: np.ndarray, factor: float) -> np.ndarray:
    """Faster and higher (factor > 1), or slower and lower, as a tape would."""
    return soxr.resample(x, SAMPLE_RATE * factor, SAMPLE_RATE)


def echo(x: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A room: noise that dies away within 0.1 to 0.6 s, after the direct sound."""
    seconds = draw.uniform(0.1, 0.6)
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = draw.standard_normal(len(t)) * np.exp(-6.9 * t / seconds)  # -60 dB at its end
    tail *= draw.uniform(0.1, 0.7) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    size = len(x) + len(tail)
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(tail, size), size)[: len(x)]


def tilt(x: np.ndarray, amount: float) -> np.ndarray:
    """A duller (amount < 0) or brighter microphone: first-order filter 1 + amount · z⁻¹, inverted in sign."""
    return x - amount * np.concatenate([[0.0], x[:-1]])


def noise(size: int, draw: np.random.Generator) -> np.ndarray:
    """Noise of level 1 with a spectrum between white and brown."""
    spectrum = np.fft.rfft(draw.standard_normal(size))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20.0) ** draw.uniform(0, 1)
    x = np.fft.irfft(spectrum, size)
    return x / max(level(x), 1e-9)


def level(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))
