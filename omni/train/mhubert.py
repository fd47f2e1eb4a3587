"""mHuBERT's units, which the published checkpoint speaks: layer 11's states, the nearest of 1000 centroids, 50 Hz.

    omni train units --mhubert FOLDER --kmeans km1000.npy --answers answers.jsonl --voice runs/hubert/voice

    read = MHubert(folder, kmeans)
    codes = read(samples)                 # (S,) at 16 kHz → a unit for every whole 20 ms

The folder is a HubertModel of transformers; the centroids are a .npy file or one .safetensors tensor, (K, D). Fairseq
publishes both as pickles (mhubert_base_vp_en_es_fr_it3.pt, …_L11_km1000.bin). A pickle runs whatever code is in it when
it is opened, so none is opened here: the errors say how to convert them once. As fairseq does it: layer 11 counted from
1, samples as they are for a base model, and normalised where the features are (feat_extract_norm "layer").
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import layer_norm
from tqdm import tqdm
from transformers import HubertModel

from omni.train import keep
from omni.train.answers import AnsweringVoice, Recordings
from omni.train.unit_reader import UnitsError
from omni.train.units import SAMPLES_PER_FRAME, merge, texts_to_speak

logger = logging.getLogger(__name__)
LAYER = 11
MOST_UNITS = 32_767  # codes.npy holds int16
CONVERT_KMEANS = (
    "python -c \"import sys, joblib, numpy; numpy.save('km1000.npy', joblib.load(sys.argv[1]).cluster_centers_)\" FILE"
)


class MHubert:
    longest = 60 * 16_000  # attention grows with the square

    def __init__(self, folder: Path, kmeans: Path, layer: int = LAYER) -> None:
        self.centroids = read_centroids(kmeans)
        self.model = load_model(folder)
        width, layers = self.model.config.hidden_size, self.model.encoder.layers
        if self.centroids.shape[1] != width:
            raise UnitsError(
                f"{kmeans}: centroids of {self.centroids.shape[1]} numbers; {folder}'s states have {width}."
            )
        if not 1 <= layer <= len(layers):
            raise UnitsError(f"{folder} has {len(layers)} layers; there is no layer {layer}.")
        self.layer, self.model.encoder.layers = layer, layers[:layer]  # what comes after is not computed
        self.num_units = len(self.centroids)

    @torch.inference_mode()
    def states(self, samples: np.ndarray) -> Tensor:
        """(S,) at 16 kHz → states of the layer (F, D), at 50 Hz; one frame less than S / 320, a frame hears 25 ms."""
        x = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
        if self.model.config.feat_extract_norm == "layer":
            x = layer_norm(x, x.shape)
        found: list[Tensor] = []
        hook = self.model.encoder.layers[-1].register_forward_hook(
            lambda module, given, made: found.append(made[0] if isinstance(made, tuple) else made)
        )
        try:
            self.model(x[None])
        finally:
            hook.remove()
        return found[0].reshape(-1, self.model.config.hidden_size)

    def __call__(self, samples: np.ndarray, text: str = "") -> list[int]:
        """The last unit goes on to the end of the last whole 20 ms."""
        wanted = len(samples) // SAMPLES_PER_FRAME
        if wanted < 2:
            raise UnitsError(f"{len(samples)} samples are too few for a unit.")
        codes = torch.cdist(self.states(samples), self.centroids).argmin(1).tolist()
        return [*codes, *codes[-1:] * (wanted - len(codes))][:wanted]


def load_model(folder: Path) -> HubertModel:
    if folder.is_file():
        raise UnitsError(
            f"{folder} is a file, probably fairseq's: a pickle is not opened here. Convert it with transformers 4's "
            "models/hubert/convert_hubert_original_pytorch_checkpoint_to_pytorch.py, and name the folder it writes."
        )
    if not (folder / "config.json").is_file():
        raise UnitsError(f"{folder / 'config.json'} is not there: --mhubert is the folder of a HubertModel.")
    try:
        model = HubertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
        raise UnitsError(f"{folder} holds no HubertModel: {exc}") from exc
    return model.eval().requires_grad_(False)


def read_centroids(path: Path) -> Tensor:
    """(K, D) float32, of a .npy file without objects or of a .safetensors file with one tensor."""
    try:
        if path.suffix == ".safetensors":
            tensors = list(load_file(path).values())
            if len(tensors) != 1:
                raise UnitsError(f"{path} holds {len(tensors)} tensors; the centroids should be its only one.")
            found = tensors[0].float()
        elif path.suffix == ".npy":
            found = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        else:
            raise UnitsError(
                f"{path} is neither .npy nor .safetensors. Fairseq's k-means is a pickle: if you trust it, convert it "
                f"once, where scikit-learn and joblib are: {CONVERT_KMEANS}"
            )
    except (OSError, ValueError, SafetensorError) as exc:
        if isinstance(exc, UnitsError):
            raise
        raise UnitsError(f"{path} holds no centroids: {exc}") from exc
    if found.dim() != 2 or not 1 < len(found) <= MOST_UNITS or not found.isfinite().all():
        raise UnitsError(f"{path} has shape {tuple(found.shape)}; centroids are (K, D), finite, 1 < K ≤ {MOST_UNITS}.")
    return found


def write_units(path: Path, read: MHubert) -> None:
    """units.safetensors, as the vocoder's and the unit decoder's trainings read it: how many there are, and where."""
    width = read.centroids.shape[1]
    tensors = {"position_mean": torch.zeros(1, width), "projection": torch.eye(width), "centroids": read.centroids}
    keep.whole(
        path,
        lambda partial: save_file(
            tensors, partial, {"layer": str(read.layer), "change_cost": "0.0", "encoder": "hubert"}
        ),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mhubert", type=Path, required=True, help="folder of a HubertModel: config.json and weights")
    parser.add_argument("--kmeans", type=Path, required=True, help="its centroids (K, D): .npy or .safetensors")
    parser.add_argument("--layer", type=int, default=LAYER, help="counted from 1 (default: %(default)s)")
    parser.add_argument(
        "--answers", type=Path, help="JSON lines with a response to speak, where --voice has no recordings"
    )
    parser.add_argument("--voice", type=Path, required=True, help="folder for recordings and units")
    parser.add_argument("--level", type=float, default=0.0, help="the voice's one note, in Hz (default: a free pitch)")
    parser.add_argument("--limit", type=int, help="speak only so many answers, beside the sentences")
    parser.add_argument("--sentences", type=int, default=3600, help="sentences to repeat, beside all answers")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    """Speak the answers (once), and write units.safetensors and codes.npy (a unit for every frame)."""
    try:
        read = MHubert(args.mhubert, args.kmeans, args.layer)
        if (args.voice / "speech.npy").exists():
            recordings = Recordings(args.voice)
        elif args.answers is None:
            raise UnitsError(f"{args.voice} holds no recordings: name --answers to speak.")
        else:
            recordings = Recordings.write(args.voice, texts_to_speak(args), AnsweringVoice(args.level or None))
    except UnitsError as exc:
        print(f"omni train units: {exc}", file=sys.stderr)
        return 2
    codes = [read(recordings.samples(i)) for i in tqdm(range(len(recordings)), desc="reading units", disable=None)]
    write_units(args.voice / "units.safetensors", read)
    keep.whole(args.voice / "codes.npy", lambda partial: _save_codes(partial, np.concatenate(codes)))
    num_merged, seconds = sum(len(merge(each)[0]) for each in codes), sum(map(len, codes)) / 50
    logger.info("%d recordings, %.2f h, %.1f merged units a second", len(codes), seconds / 3600, num_merged / seconds)
    return 0


def _save_codes(path: Path, codes: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to the name
        np.save(file, codes.astype(np.int16))
