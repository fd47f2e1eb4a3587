"""How likely it is that somebody speaks, window by window: silero-vad in ONNX, without torch. Decides nothing.

    model = load()
    ear = VoiceActivity(model)             # one per microphone; keeps what the network remembers
    ear.push(samples)                      # (S,) float32, 16 kHz → (W,) probabilities, one per window now complete

A window is 512 samples, 32 ms. However the samples are portioned, the probabilities are the same. Measured on one
core of an AMD EPYC virtual machine: 0.2 ms a window, in portions of three (`python -m bench.vad`).
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime

WINDOW = 512  # samples at 16 kHz
CONTEXT = 64  # samples before a window that the network hears with it
MODEL = "silero_vad_16k_sequence.onnx"  # many windows of one stream a call
STATE = (1, 1, 128)


@lru_cache
def load() -> onnxruntime.InferenceSession:
    """The network, shared by all streams; safe to call from several threads. Importing silero_vad would bring torch."""
    package = find_spec("silero_vad")
    assert package is not None and package.submodule_search_locations, "silero-vad is installed with omni"
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    path = Path(package.submodule_search_locations[0]) / "data" / MODEL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class VoiceActivity:
    """One stream's state: the network's memory, and samples that make no whole window yet."""

    def __init__(self, model: onnxruntime.InferenceSession) -> None:
        self._model = model
        self._h, self._c = np.zeros(STATE, np.float32), np.zeros(STATE, np.float32)
        self._tail = np.zeros(CONTEXT, np.float32)  # the last window's end, then what came after it

    def push(self, samples: np.ndarray) -> np.ndarray:
        """(S,) float32 → (W,) probabilities of the windows that are complete now; W may be 0."""
        heard = np.concatenate([self._tail, samples])
        num_windows = (len(heard) - CONTEXT) // WINDOW
        self._tail = heard[num_windows * WINDOW :].copy()
        if not num_windows:
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(heard, CONTEXT + WINDOW)[::WINDOW][:num_windows]
        inputs = {"input": np.ascontiguousarray(windows), "h": self._h, "c": self._c}
        probabilities, self._h, self._c = self._model.run(None, inputs)
        return probabilities
