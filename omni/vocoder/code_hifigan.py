"""Units → waveform: fairseq's CodeHiFiGAN with its duration predictor, for ragged batches. Knows nothing of chunks.

    vocoder = checkpoint.load(directory)
    durations = vocoder.durations(units, lengths)        # frames of 20 ms that each unit lasts
    samples = vocoder(units, durations, lengths)         # 16 kHz

Source: facebookresearch/fairseq, codehifigan.py and fastspeech2.py (VariancePredictor).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omni.vocoder.durations import DurationPredictor, UnitVocoder
from omni.vocoder.hifigan import Generator, Padding, VocoderConfigError


class CodeHiFiGAN(UnitVocoder, Generator):
    """See UnitVocoder; samples lie in (-1, 1)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        for key in ("f0", "multispkr"):
            if config.get(key):
                raise VocoderConfigError(
                    f"the vocoder's {key!r} is set; only one voice without pitch input is supported."
                )
        if config["embedding_dim"] != config["model_in_dim"]:
            raise VocoderConfigError(
                f"embedding_dim {config['embedding_dim']} differs from model_in_dim {config['model_in_dim']}."
            )
        if not config.get("dur_predictor_params"):
            raise VocoderConfigError("the vocoder has no duration predictor (dur_predictor_params).")
        super().__init__(config)
        self.config = config
        self.dict = nn.Embedding(config["num_embeddings"], config["embedding_dim"])
        shape = config["dur_predictor_params"]
        self.dur_predictor = DurationPredictor(
            shape["encoder_embed_dim"], shape["var_pred_hidden_dim"], shape["var_pred_kernel_size"]
        )

    def forward(self, units: Tensor, durations: Tensor, lengths: Tensor | None = None) -> Tensor:
        """units (B, N), durations (B, N) in frames, lengths (B,) in units → samples (B, S)."""
        if lengths is not None:
            durations = Padding(lengths, units.shape[1])(durations[:, None])[:, 0]
        rows = zip(self.dict(self._checked(units)), durations, strict=True)
        frames = pad_sequence([row.repeat_interleave(times, dim=0) for row, times in rows], batch_first=True)
        return self.vocode(frames.transpose(1, 2), durations.sum(dim=1))
