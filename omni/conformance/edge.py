"""edge/: rotary frequencies, padded batches, the training loss, a long unit decoder, sampling, the published chunks."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from omni.audio import mel
from omni.conformance import turns
from omni.conformance.folder import Fixture, Folder
from omni.conformance.report import Report
from omni.conformance.turns import EMBEDDING_TOLERANCE, UNIT_TOLERANCE
from omni.model import batch
from omni.model.ctc import collapse
from omni.model.ctc_loss import ctc_loss, num_positions, upsample_index
from omni.model.prompt import SPEECH
from omni.model.sampling import Sampling, survivors
from omni.model.transformer import frequencies

TOP_K = 50  # what the published code samples with
PROBABILITY_TOLERANCE = 1e-5
FREQUENCY_TOLERANCE = 1e-6
LOSS_TOLERANCE = 1e-3


@torch.inference_mode()
def check(folder: Folder, report: Report) -> None:
    for fixture in folder.part("edge"):
        if turns.is_turn(fixture):
            continue  # checked with the other turns
        if fixture.has("lm_inv_freq", "gen_inv_freq"):
            check_rope(folder, fixture, report)
        elif fixture.has("input_ids", "attention_mask", "right_position_ids"):
            check_padded_batch(folder, fixture, report)
        elif fixture.has("reps", "tgt_units", "loss"):
            check_training_loss(folder, fixture, report)
        elif fixture.has("hidden", "ctc_argmax"):
            check_unit_decoder(folder, fixture, report)
        elif "logits" in fixture:
            check_sampling(fixture, report)
    check_chunking(folder, report)


def check_rope(folder: Folder, fixture: Fixture, report: Report) -> None:
    config = folder.omni.config
    for key, check, block in (
        ("lm_inv_freq", "rotary frequencies, LLM", config.llm),
        ("gen_inv_freq", "rotary frequencies, unit decoder", config.unit_decoder),
    ):
        ours = frequencies(block.rope, block.head_dim)
        report.close(fixture.name, check, ours, fixture[key], FREQUENCY_TOLERANCE)


def check_padded_batch(folder: Folder, fixture: Fixture, report: Report) -> None:
    """Two prompts in one batch: the first with 30 s of speech embeddings, the others only as many as were said."""
    ids = [row[mask].tolist() for row, mask in zip(fixture["input_ids"], fixture["attention_mask"] > 0, strict=True)]
    labels = [row[mask].tolist() for row, mask in zip(fixture["labels"], fixture["attention_mask"] > 0, strict=True)]
    lengths = fixture["right_attention_mask"].sum(axis=1)
    spoken = [
        speech
        for row, length in zip(ids, lengths, strict=True)
        if (speech := _speech_of_length(folder, row, int(length) - len(row) + 1)) is not None
    ]
    if len(spoken) < len(ids):
        report.skip(fixture.name, "padded batch", "no recording gives as many speech embeddings")
        return
    rows = [folder.omni.splice(row, [speech]) for row, speech in zip(ids, spoken, strict=True)]
    targets = [
        batch.spread_labels(row, own, [len(speech)]) for row, own, speech in zip(ids, labels, spoken, strict=True)
    ]
    for side in ("right", "left"):
        padded = batch.pad(rows, targets, side)
        assert padded.labels is not None
        for key, ours in (
            ("attention_mask", padded.mask.long()),
            ("position_ids", padded.positions),
            ("labels", padded.labels),
        ):
            report.equal(fixture.name, f"padded {side}: {key.replace('_', ' ')}", ours, fixture[f"{side}_{key}"])
        norms = padded.embeds.norm(dim=-1)
        theirs = fixture[f"{side}_embeds_row_norm"]
        report.close(fixture.name, f"padded {side}: norms of the embeddings", norms, theirs, EMBEDDING_TOLERANCE)
    fixture.without_digests()


def _speech_of_length(folder: Folder, ids: list[int], length: int) -> Tensor | None:
    """Embeddings of the recording that has so many, out of 30 s as always; the first recording where all 300 count."""
    assert ids.count(SPEECH) == 1, "a row of the padded batch has one utterance"
    for name in folder.utterances:
        samples = folder.audio(name)
        speech = folder.omni.speech_embeddings(samples)
        if length in (len(speech), num_embeddings(-(-len(samples) // mel.HOP), folder)):
            return speech[:length]
    return None


def num_embeddings(num_mel_frames: int, folder: Folder) -> int:
    """100 Hz mel frames → 10 Hz speech embeddings, as the published code counts what was said."""
    return (num_mel_frames + 1) // 2 // folder.omni.config.frames_per_embedding


def check_training_loss(folder: Folder, fixture: Fixture, report: Report) -> None:
    """The unit decoder's training forward over answers of different lengths, and its CTC loss."""
    decoder, config = folder.omni.unit_decoder, folder.omni.config
    answers = [states[own >= 0] for states, own in zip(fixture["reps"], fixture["labels"], strict=True)]
    units = fixture["tgt_units"]
    unit_lengths = (units >= 0).sum(axis=1)
    sizes = [num_positions(len(own), int(n), config.upsample) for own, n in zip(answers, unit_lengths, strict=True)]
    spread = [torch.from_numpy(own)[upsample_index(len(own), size)] for own, size in zip(answers, sizes, strict=True)]
    padded = batch.pad(spread)
    report.close(fixture.name, "spread states", padded.embeds, fixture["upsampled"], EMBEDDING_TOLERANCE)
    hidden = decoder.run(decoder.input_proj(padded.embeds), padded.positions)
    logits = decoder.output_proj(hidden)
    inside = padded.mask.numpy()  # what comes out of padding is nobody's business
    classes = np.where(inside, logits.argmax(-1).numpy(), config.blank)
    for key, check, ours in (
        ("ctc_hidden", "training: unit decoder states", hidden),
        ("ctc_logsumexp", "training: unit logits, log-sum-exp", logits.logsumexp(-1)),
    ):
        report.close(fixture.name, check, ours.numpy()[inside], fixture[key][inside], UNIT_TOLERANCE)
    report.equal(fixture.name, "training: class of every position", classes, fixture["ctc_argmax"])
    loss = ctc_loss(logits, torch.tensor(sizes), torch.from_numpy(units), torch.from_numpy(unit_lengths), config.blank)
    report.close(fixture.name, "training: CTC loss per unit", loss, fixture["loss"], LOSS_TOLERANCE)


def check_unit_decoder(folder: Folder, fixture: Fixture, report: Report) -> None:
    """Any states in, every position out; at once, and token by token with a cache."""
    decoder = folder.omni.unit_decoder
    hidden = torch.from_numpy(fixture["hidden"])
    states = decoder.states(hidden[None])[0]
    logits = decoder.output_proj(states)
    if "ctc_hidden_last25" in fixture:
        report.close(
            fixture.name, "unit decoder states, last token", states[-25:], fixture["ctc_hidden_last25"], UNIT_TOLERANCE
        )
    turns.compare_classes(fixture, logits, report)
    units = collapse(logits.argmax(-1).tolist(), folder.omni.config.blank)
    report.equal(fixture.name, "units", units, fixture["units"])
    cache = decoder.new_cache()
    pieces = [decoder(hidden[None, i : i + 1], i, cache)[0] for i in range(len(hidden))]
    report.close(fixture.name, "unit logits with a cache = without", torch.cat(pieces), logits, UNIT_TOLERANCE)


def check_sampling(fixture: Fixture, report: Report) -> None:
    """Which tokens may be drawn, and how likely each is: temperature, top-k 50, top-p."""
    logits = torch.from_numpy(fixture["logits"]).reshape(-1)
    for key in [key for key in fixture.arrays if key.endswith("_ids")]:
        name = key.removesuffix("_ids")
        if (settings := sampling_settings(name)) is None:
            continue
        ids, probabilities = survivors(logits, settings)
        order, theirs = ids.argsort(), np.argsort(fixture[key])
        report.equal(fixture.name, f"{name}: tokens that survive", ids[order], fixture[key][theirs])
        if len(ids) == len(theirs):
            expected = fixture[f"{name}_probs"][theirs]
            report.close(fixture.name, f"{name}: probabilities", probabilities[order], expected, PROBABILITY_TOLERANCE)


def sampling_settings(name: str) -> Sampling | None:
    """`t07_p095`: temperature 0.7, top-p 0.95; the decimal point stands after the first digit."""
    match = re.fullmatch(r"t(\d+|none)_p?(\d+|none)", name)
    if match is None:
        return None
    temperature, top_p = (1.0 if text == "none" else float(f"{text[0]}.{text[1:] or 0}") for text in match.groups())
    return Sampling(temperature, top_p, TOP_K)


def check_chunking(folder: Folder, report: Report) -> None:
    """What the published page would vocode of our units: it depends on the moment at which each unit is there."""
    content = folder.json("edge/gradio_chunking.json")
    name = "edge/gradio_chunking.json"
    cases = (content or {}).get("cases", {})
    asked = {case.split("/")[0] for case in cases}
    ours = {each.path.stem: stream_of(folder, each) for each in folder.part("llm") if each.path.stem in asked}
    for case, expected in cases.items():
        utterance, timing, size = case.split("/")
        if utterance in ours:
            counts, units = ours[utterance]
            available = [*counts, counts[-1]] if timing == "after_token" else [0, *counts]
            report.equal(name, f"{case}: units at each line", available, expected["units_available_per_line"])
        else:
            available = expected["units_available_per_line"]
            units = [unit for chunk in expected["vocoder_chunks"] for unit in chunk]
        chunks, calls = published_chunks(units, available, int(size.removeprefix("chunk")))
        same = chunks == expected["vocoder_chunks"] and calls == expected["calls_after_line"]
        report.equal(name, f"{case}: chunks and calls", same, True, "" if same else f"{chunks} after {calls}")
        report.equal(name, f"{case}: last flush", int(len(chunks) > calls[-1]), expected["final_flush"])


def stream_of(folder: Folder, fixture: Fixture) -> tuple[list[int], list[int]]:
    """Our own run of a turn: units after each token, and all units."""
    embeds = torch.from_numpy(fixture["inputs_embeds"])
    steps = turns.answer(folder.omni, embeds, fixture)
    counts = np.cumsum([len(step.units) for step in steps]).tolist()
    return counts, [unit for step in steps for unit in step.units]


def published_chunks(units: Sequence[int], available: Sequence[int], size: int) -> tuple[list[list[int]], list[int]]:
    """The published policy: all new units as soon as there are `size` of them; the rest at the end. (Ours differs.)"""
    ends, calls = [0], []
    for count in available:
        if count - ends[-1] >= size:
            ends.append(count)
        calls.append(len(ends) - 1)
    if ends[-1] < len(units):
        ends.append(len(units))
    return list(_slices(units, ends)), calls


def _slices(units: Sequence[int], ends: Sequence[int]) -> Iterator[list[int]]:
    for start, end in pairwise(ends):
        yield list(units[start:end])
