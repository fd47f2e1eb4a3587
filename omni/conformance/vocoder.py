"""vocoder/: units → durations and waveforms, from a checkpoint folder or from seeded weights of any shape."""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omni.conformance.folder import Fixture, Folder
from omni.conformance.report import Report
from omni.conformance.turns import hooks
from omni.vocoder import checkpoint
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.streaming import DURATION_CONTEXT, context_frames, samples_per_frame

TOLERANCE = 1e-5  # of the waveform
INSIDE_TOLERANCE = 1e-4  # of layers' outputs and log-durations
CHUNK = re.compile(r"(?P<name>\w+)_chunk(?P<size>\d+)_durations")
# Mean and deviation of random weights by name; weight_g and the durations make a signal that neither dies nor clips.
RECIPE = (
    (r"dict\.weight|.*weight_v", lambda shape: (0.0, 1.0)),
    (r"conv_pre\.weight_g", lambda shape: (1.0, 0.1)),
    (r"ups\..*weight_g", lambda shape: (1.6, 0.16)),
    (r"resblocks\..*weight_g", lambda shape: (0.6, 0.06)),
    (r".*weight_g", lambda shape: (0.25, 0.025)),
    (r"dur_predictor\.ln\d\.weight", lambda shape: (1.0, 0.1)),
    (r"dur_predictor\.proj\.weight", lambda shape: (0.0, 0.7 / shape[1] ** 0.5)),
    (r"dur_predictor\.proj\.bias", lambda shape: (1.15, 0.0)),
    (r"dur_predictor\.conv\d\.0\.weight", lambda shape: (0.0, 1.5 / (shape[1] * shape[2]) ** 0.5)),
    (r".*bias", lambda shape: (0.0, 0.05)),
)


def check(folder: Folder, report: Report) -> None:
    for path in sorted((folder.root / "vocoder").glob("shapes_*.json")):
        check_shapes(folder, path.stem.removeprefix("shapes_"), report)
    summary = folder.json("vocoder/summary.json") or {}
    for fixture in folder.part("vocoder"):
        with ExitStack() as stack:
            weights_folder = find_weights(folder, fixture, stack, report)
            if weights_folder is not None:
                check_weights(fixture, checkpoint.read_weights(weights_folder), report)
                vocoder = checkpoint.load(weights_folder)
                assert isinstance(vocoder, CodeHiFiGAN), "the published vocoder is one"
                check_vocoder(fixture, vocoder, report)
                check_context(summary.get(fixture.path.stem, {}), checkpoint.read_config(weights_folder), report)
        fixture.without_digests()


def find_weights(folder: Folder, fixture: Fixture, stack: ExitStack, report: Report) -> Path | None:
    """The fixture's own checkpoint folder, or one made of config_NAME.json, shapes_NAME.json and its seed."""
    name = fixture.path.stem
    own = fixture.path.with_suffix("")
    if (own / "config.json").is_file():
        if "seed" in fixture and (shapes := folder.json(f"vocoder/shapes_{name}.json")):
            seeded = random_weights(shapes, int(fixture["seed"]))
            report.equal(fixture.name, "seeded weights (sha256)", digest(seeded), fixture["weights_sha256"])
        return own
    config, shapes = (folder.json(f"vocoder/{kind}_{name}.json") for kind in ("config", "shapes"))
    if config is None or shapes is None:
        why = f"there is neither {name}/config.json nor config_{name}.json with shapes_{name}.json"
        report.fail(fixture.name, "weights", why)
        return None
    made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omni-conformance-")))
    (made / "config.json").write_text(json.dumps(config))
    weights = random_weights(shapes, int(fixture["seed"]))
    torch.save({"generator": {key: torch.from_numpy(x) for key, x in weights.items()}}, made / "g_00000000")
    return made


def random_weights(shapes: Mapping[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """The fixtures' seeded weights: names in order, numpy's default generator, float32. No torch in it."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name in sorted(shapes):
        mean, deviation = next(rule(shapes[name]) for pattern, rule in RECIPE if re.fullmatch(pattern, name))
        values = generator.standard_normal(tuple(shapes[name]), dtype=np.float32)
        weights[name] = values * np.float32(deviation) + np.float32(mean)
    return weights


def digest(weights: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode() + np.ascontiguousarray(weights[name], dtype="<f4").tobytes())
    return total.hexdigest()


def check_weights(fixture: Fixture, weights: Mapping[str, Tensor], report: Report) -> None:
    if "weights_sha256" in fixture:
        ours = digest({name: x.numpy() for name, x in weights.items()})
        report.equal(fixture.name, "weights (sha256)", ours, fixture["weights_sha256"])


def check_shapes(folder: Folder, name: str, report: Report) -> None:
    """A config alone: our vocoder of that shape has exactly the published names and shapes."""
    config = folder.json(f"vocoder/config_{name}.json") or folder.json(f"vocoder/{name}/config.json")
    file = f"vocoder/shapes_{name}.json"
    if config is None:
        report.skip(file, "names and shapes", f"config_{name}.json is not there")
        return
    with torch.device("meta"):
        ours = checkpoint.split_weight_norm(CodeHiFiGAN(config).state_dict())
    expected = {key: list(shape) for key, shape in folder.json(file).items()}
    mine = {key: list(x.shape) for key, x in ours.items()}
    wrong = sorted(key for key in mine.keys() | expected.keys() if mine.get(key) != expected.get(key))
    report.equal(file, "names and shapes", len(wrong), 0, ", ".join(wrong[:3]))


@torch.inference_mode()
def check_vocoder(fixture: Fixture, vocoder: CodeHiFiGAN, report: Report) -> None:
    for name in sorted(key.removesuffix("_units") for key in fixture.arrays if key.endswith("_units")):
        units = torch.from_numpy(fixture[f"{name}_units"])
        check_sequence(fixture, name, vocoder, units[units >= 0][None], report)
    for match in filter(None, map(CHUNK.fullmatch, fixture.arrays)):
        check_chunked(fixture, match["name"], int(match["size"]), vocoder, report)


def check_sequence(fixture: Fixture, name: str, vocoder: CodeHiFiGAN, units: Tensor, report: Report) -> None:
    """One list of units: each lasting one frame, and as long as predicted."""
    single = torch.ones_like(units)
    if f"{name}_nodur_wav" in fixture:
        theirs = fixture[f"{name}_nodur_wav"]
        report.close(fixture.name, f"{name}: waveform, one frame a unit", vocoder(units, single)[0], theirs, TOLERANCE)
    check_inside(fixture, name, vocoder, units, report)
    predicted: list[Tensor] = []
    with hooks([vocoder.dur_predictor], lambda _, args, out: predicted.append(out[0])):
        durations = vocoder.durations(units)
    if f"{name}_log_dur" in fixture:
        theirs = fixture[f"{name}_log_dur"]
        report.close(fixture.name, f"{name}: log-durations", predicted[0], theirs, INSIDE_TOLERANCE)
    if f"{name}_durations" in fixture:
        report.equal(fixture.name, f"{name}: durations", durations[0], fixture[f"{name}_durations"])
    if f"{name}_dur_wav" in fixture:
        theirs = fixture[f"{name}_dur_wav"]
        report.close(fixture.name, f"{name}: waveform", vocoder(units, durations)[0], theirs, TOLERANCE)
        spoken = vocoder.speak(fixture[f"{name}_units"].tolist())
        report.close(fixture.name, f"{name}: waveform from raw codes", spoken, theirs, TOLERANCE)


def check_inside(fixture: Fixture, name: str, vocoder: CodeHiFiGAN, units: Tensor, report: Report) -> None:
    """Outputs of the first convolution and of every upsampling, with one frame a unit."""
    if f"{name}_nodur_conv_pre_stats" not in fixture:
        return
    outputs: list[Tensor] = []
    with hooks([vocoder.conv_pre, *vocoder.ups], lambda _, args, out: outputs.append(out[0])):
        vocoder(units, torch.ones_like(units))
    stages = ["conv_pre", *(f"up{i}" for i in range(len(vocoder.ups)))]
    for stage, ours in zip(stages, outputs, strict=True):
        for key, value in (
            (f"{name}_nodur_{stage}_stats", [ours.mean(), ours.std()]),
            (f"{name}_nodur_{stage}_first4", ours[:4, :4]),
        ):
            if key in fixture:
                report.close(fixture.name, key.replace("_nodur_", ": "), value, fixture[key], INSIDE_TOLERANCE)


def check_chunked(fixture: Fixture, name: str, size: int, vocoder: CodeHiFiGAN, report: Report) -> None:
    """The published way of streaming, each chunk vocoded alone: no context, so durations change at the borders."""
    units = torch.from_numpy(fixture[f"{name}_units"])
    chunks = units[units >= 0].split(size)
    durations = [vocoder.durations(chunk[None]) for chunk in chunks]
    waves = [vocoder(chunk[None], own)[0] for chunk, own in zip(chunks, durations, strict=True)]
    key = f"{name}_chunk{size}"
    report.equal(fixture.name, f"{key}: durations", torch.cat(durations, dim=1)[0], fixture[f"{key}_durations"])
    if f"{key}_chunk_lens" in fixture:
        report.equal(fixture.name, f"{key}: samples", [len(wave) for wave in waves], fixture[f"{key}_chunk_lens"])
    if f"{key}_wav" in fixture:
        report.close(fixture.name, f"{key}: waveform", torch.cat(waves), fixture[f"{key}_wav"], TOLERANCE)


def check_context(told: dict, config: dict, report: Report) -> None:
    """Our streaming's context is no smaller than what the reference was measured to hear."""
    file = "vocoder/summary.json"
    if heard := told.get("receptive_field_samples_around_changed_unit"):
        ours = context_frames(config) * samples_per_frame(config)
        widest = max(heard["left"], heard["right"])
        report.equal(file, f"context of {ours} samples ≥ {widest} heard", ours >= widest, True)
    if units := told.get("duration_receptive_field_units"):
        report.equal(file, "units that a duration depends on", [-DURATION_CONTEXT, DURATION_CONTEXT], units)
