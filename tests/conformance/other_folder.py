"""Folders of fixtures of other kinds than tests/golden: recorded from this build, so that a check can be seen to work.

Whether this build is right is what tests/golden tells; these tell that every file is read, compared and counted.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from omni.audio import mel, wav
from omni.conformance import frontend, turns
from omni.conformance.vocoder import digest, random_weights
from omni.model import checkpoint
from omni.model.ctc import collapse
from omni.model.omni import Omni
from omni.model.sampling import Sampling, survivors
from omni.vocoder import checkpoint as vocoder_checkpoint
from omni.vocoder.code_hifigan import CodeHiFiGAN

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL_VOCODER = {
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 2], [2, 6]],
    "num_embeddings": 50,
    "embedding_dim": 12,
    "model_in_dim": 12,
    "dur_predictor_params": {"encoder_embed_dim": 12, "var_pred_hidden_dim": 20, "var_pred_kernel_size": 3},
}


@torch.inference_mode()
def write(root: Path) -> None:
    """A folder with a recording of 33 s, a turn of two utterances, and the other files a folder may hold."""
    for part in ("audio", "frontend", "llm", "edge", "vocoder"):
        (root / part).mkdir(parents=True)
    shutil.copytree(GOLDEN / "checkpoint", root / "checkpoint")
    shutil.copy(GOLDEN / "prompts.json", root)
    omni = checkpoint.load(next((root / "checkpoint").glob("*/config.json")).parent)
    recordings = {"utt0": noise(33.0, 1), "utt1": noise(2.5, 2)}
    for name, samples in recordings.items():
        wav.write(root / "audio" / f"{name}.wav", samples)
    recordings = {name: wav.read(root / "audio" / f"{name}.wav", max_seconds=60) for name in recordings}
    write_features(root, "utt0", recordings["utt0"])
    spoken = [omni.speech_embeddings(samples) for samples in recordings.values()]
    prompts = {case["name"]: case["input_ids"] for case in json.loads((root / "prompts.json").read_text())["cases"]}
    np.savez(root / "llm" / "utt0.npz", **turn(omni, prompts["one_turn_speech"], spoken[:1], 6))
    np.savez(root / "edge" / "two_turns_two_speech.npz", **turn(omni, prompts["two_turns"], spoken, 6))
    np.savez(root / "edge" / "unit_decoder_long.npz", **long_unit_decoder(omni))
    np.savez(root / "edge" / "sampling.npz", **sampling())
    write_vocoder(root / "vocoder")


def noise(seconds: float, seed: int) -> np.ndarray:
    """Something with a rhythm: noise that swells three times a second."""
    time = np.arange(int(seconds * wav.SAMPLE_RATE)) / wav.SAMPLE_RATE
    return 0.2 * np.sin(3 * np.pi * time) * np.random.default_rng(seed).uniform(-1, 1, time.size)


def write_features(root: Path, name: str, samples: np.ndarray) -> None:
    features = frontend.features(samples, 128)
    rows = np.arange(0, 3000, 100)
    np.savez(
        root / "frontend" / f"{name}_mel.npz",
        audio_len=len(samples),
        audio_sha256_f32=frontend.digest(samples),
        mel_shape=features.shape,
        mel_stats=frontend.statistics(features),
        mel_frame_idx=rows,
        mel_frames=features[rows],
    )
    assert len(samples) > mel.N_SAMPLES


def turn(omni: Omni, ids: list[int], spoken: list[torch.Tensor], num_tokens: int) -> dict[str, np.ndarray]:
    embeds = omni.splice(ids, spoken)
    steps = list(omni.generate(embeds, Sampling(max_new_tokens=num_tokens)))
    tokens = [step.token_id for step in steps]
    traced = turns.trace(omni, embeds, tokens)
    top = traced.ctc_logits.topk(5)
    return {
        "prompt_ids": np.array(ids),
        "inputs_embeds": embeds.numpy(),
        "output_ids": np.array(tokens),
        "unit_in_hidden": traced.unit_in.numpy(),
        "ctc_argmax": traced.ctc_logits.argmax(-1).numpy().astype(np.int16),
        "ctc_top5_val": top.values.numpy(),
        "ctc_top5_idx": top.indices.numpy().astype(np.int16),
        "units": np.array([unit for step in steps for unit in step.units]),
    }


def long_unit_decoder(omni: Omni) -> dict[str, np.ndarray]:
    hidden = np.random.default_rng(3).standard_normal((20, 64), dtype=np.float32)
    states = omni.unit_decoder.states(torch.from_numpy(hidden)[None])[0]
    logits = omni.unit_decoder.output_proj(states)
    classes = logits.argmax(-1)
    top = logits.topk(3)
    return {
        "hidden": hidden,
        "ctc_argmax": classes.numpy(),
        "units": np.array(collapse(classes.tolist(), omni.config.blank)),
        "ctc_top3_val": top.values.numpy(),
        "ctc_top3_idx": top.indices.numpy(),
        "ctc_hidden_last25": states[-25:].numpy(),
    }


def sampling() -> dict[str, np.ndarray]:
    logits = np.random.default_rng(4).standard_normal((1, 300), dtype=np.float32) * 3
    arrays = {"logits": logits}
    for name, settings in (("t07_p095", Sampling(0.7, 0.95, 50)), ("t06_none", Sampling(0.6, 1.0, 50))):
        ids, probabilities = survivors(torch.from_numpy(logits[0]), settings)
        arrays |= {f"{name}_ids": ids.numpy(), f"{name}_probs": probabilities.numpy()}
    return arrays


def write_vocoder(folder: Path, name: str = "small", seed: int = 5) -> None:
    """Weights are not stored: a config, the shapes and a seed stand for them."""
    (folder / f"config_{name}.json").write_text(json.dumps(SMALL_VOCODER))
    vocoder = CodeHiFiGAN(SMALL_VOCODER)
    shapes = {key: list(x.shape) for key, x in vocoder_checkpoint.split_weight_norm(vocoder.state_dict()).items()}
    (folder / f"shapes_{name}.json").write_text(json.dumps(shapes))
    weights = random_weights(shapes, seed)
    tensors = {key: torch.from_numpy(x) for key, x in weights.items()}
    vocoder.load_state_dict(vocoder_checkpoint.fold_weight_norm(tensors))
    vocoder.eval()
    units = torch.randint(0, 50, (1, 30), generator=torch.Generator().manual_seed(6))
    durations = vocoder.durations(units)
    np.savez(
        folder / f"{name}.npz",
        weights_sha256=digest(weights),
        seed=seed,
        A_units=units[0].numpy(),
        A_durations=durations[0].numpy(),
        A_dur_wav=vocoder(units, durations)[0].numpy(),
        A_nodur_wav=vocoder(units, torch.ones_like(units))[0].numpy(),
    )
