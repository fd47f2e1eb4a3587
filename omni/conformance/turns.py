"""llm/ and the turns of edge/: the whole chain from samples or text to tokens and units, layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from omni.conformance.folder import Fixture, Folder
from omni.conformance.frontend import statistics
from omni.conformance.report import Report
from omni.model.checkpoint import ADAPTOR, ENCODER, UNIT_DECODER
from omni.model.ctc import collapse
from omni.model.omni import Omni, Step
from omni.model.prompt import SPEECH
from omni.model.sampling import Sampling

EMBEDDING_TOLERANCE = 1e-4  # encoder and adaptor
HIDDEN_TOLERANCE = 1e-3  # the LLM's states and logits
UNIT_TOLERANCE = 2e-3  # the unit decoder's states and logits, which reach 28
CLEAR = 1e-3  # two classes further apart than this come in one order everywhere
TEXT, UNIT = 0, 1  # kinds of stream events


@dataclass(frozen=True)
class Trace:
    """What the model computes when it is fed a prompt (P, D) and a known answer."""

    hidden: Tensor  # (P + T - 1, D) after the LLM's final norm
    last_of_layers: Tensor  # (layers, D) raw outputs at the last prompt position
    logits: Tensor  # (T, vocabulary)
    unit_in: Tensor  # (T, D) the states that predicted the tokens
    ctc_in: Tensor  # (25·T, D') after the unit decoder's input projection
    ctc_layer0: Tensor  # (25·T, D')
    ctc_hidden: Tensor  # (25·T, D')
    ctc_logits: Tensor  # (25·T, classes)


def check(folder: Folder, report: Report) -> None:
    check_names(folder, report)
    for fixture in folder.part("llm"):
        check_turn(folder, fixture, report)
    for fixture in folder.part("edge"):
        if is_turn(fixture):
            check_turn(folder, fixture, report)


def check_names(folder: Folder, report: Report) -> None:
    """Names and shapes of all weights, as the published program saves them."""
    file = "checkpoint/state_dict_shapes.json"
    expected = folder.json(file)
    if expected is None:
        return
    omni = folder.omni
    parts = {ENCODER: omni.encoder, ADAPTOR: omni.adaptor, UNIT_DECODER: omni.unit_decoder, "model.": omni.llm}
    ours = {
        "lm_head.weight" if name == "lm_head.weight" else prefix + name: list(x.shape)
        for prefix, module in parts.items()
        for name, x in module.state_dict().items()
    }
    wrong = sorted(name for name in ours.keys() | expected.keys() if ours.get(name) != expected.get(name))
    report.equal(file, "names and shapes", len(wrong), 0, ", ".join(wrong[:3]))


def is_turn(fixture: Fixture) -> bool:
    return fixture.has("prompt_ids", "output_ids")


@torch.inference_mode()
def check_turn(folder: Folder, fixture: Fixture, report: Report) -> None:
    """One greedy answer. The prompt's speech is known by the recording's name, or by its embeddings."""
    omni = folder.omni
    ids = fixture["prompt_ids"].tolist()
    check_prompt(folder, fixture, ids, report)
    spoken = speech(folder, fixture, ids, report)
    if spoken is None:
        embeds = torch.from_numpy(fixture["inputs_embeds"])
    else:
        embeds = omni.splice(ids, spoken)
        for key in ("inputs_embeds", "text_inputs_embeds"):
            if key in fixture and fixture[key].size:
                report.close(fixture.name, "prompt embeddings", embeds, fixture[key], EMBEDDING_TOLERANCE)
    traced = trace(omni, embeds, fixture["output_ids"].tolist())
    compare_llm(fixture, traced, len(embeds), report)
    compare_units(fixture, traced, omni.config.blank, report)
    steps = answer(omni, embeds, fixture)
    report.equal(fixture.name, "tokens", [step.token_id for step in steps], fixture["output_ids"])
    report.equal(fixture.name, "units", [unit for step in steps for unit in step.units], fixture["units"])
    compare_stream(fixture, steps, omni.config.blank, report)
    fixture.without_digests()


def check_prompt(folder: Folder, fixture: Fixture, ids: list[int], report: Report) -> None:
    """Where prompts.json tells the prompt's text, our tokenizer must give these ids for it."""
    cases = (folder.json("prompts.json") or {}).get("cases", [])
    texts = [case["prompt"] for case in cases if case["input_ids"] == ids]
    if texts:
        report.equal(fixture.name, "prompt ids", folder.omni.prompt.tokenize(texts[0]), ids)


def speech(folder: Folder, fixture: Fixture, ids: list[int], report: Report) -> list[Tensor] | None:
    """The speech embeddings of the prompt, in order; None where their recordings are not in the folder."""
    starts = speech_starts(ids, fixture)
    named = fixture.path.stem if fixture.path.parent.name == "llm" else None
    if named and not folder.has_audio(named):
        report.skip(fixture.name, "front end, encoder and adaptor", f"audio/{named}.wav is not there")
        return None
    if named and starts:
        compare_encoder(folder, fixture, named, starts[0], report)
        return [folder.omni.speech_embeddings(folder.audio(named))] * len(starts)
    if starts and not folder.utterances:
        report.skip(fixture.name, "speech embeddings", "there are no recordings in audio/")
        return None
    candidates = [folder.omni.speech_embeddings(folder.audio(name)) for name in folder.utterances] if starts else []
    return [nearest(candidates, torch.from_numpy(fixture["inputs_embeds"][start:])) for start in starts]


def speech_starts(ids: list[int], fixture: Fixture) -> list[int]:
    """Where speech begins among the embeddings, each taking the same number of them."""
    places = [i for i, token_id in enumerate(ids) if token_id == SPEECH]
    if not places:
        return []
    total = len(fixture["inputs_embeds"]) - (len(ids) - len(places))
    each = total // len(places)
    return [place + i * (each - 1) for i, place in enumerate(places)]


def nearest(candidates: Sequence[Tensor], there: Tensor) -> Tensor:
    """The recording a fixture was made of; whether it is near enough is compared afterwards."""
    return min(candidates, key=lambda each: float((each - there[: len(each)]).abs().max()))


def compare_encoder(folder: Folder, fixture: Fixture, utterance: str, start: int, report: Report) -> None:
    omni = folder.omni
    features = omni.mel(folder.audio(utterance))[None]
    embedded, _ = omni.encoder.embed(features)
    outputs: list[Tensor] = []
    with hooks(omni.encoder.blocks, lambda _, args, out: outputs.append(out[0])):
        frames = omni.encoder(features)
    blocks = torch.stack(outputs)  # (layers, F, D)
    speech = omni.adaptor(frames)[0]
    for key, check, ours in (
        ("enc_embed_head", "encoder input, first frames", embedded[0, :4]),
        ("enc_embed_tail", "encoder input, last frames", embedded[0, -4:]),
        ("enc_block_head", "encoder blocks, first frames", blocks[:, :4]),
        ("enc_block_tail", "encoder blocks, last frames", blocks[:, -4:]),
        ("enc_out", "encoder output", frames[0]),
        ("enc_out_stats", "encoder output, statistics", statistics(frames[0].numpy())),
        ("proj_out_stats", "speech embeddings, statistics", statistics(speech.numpy())),
    ):
        if key in fixture:
            report.close(fixture.name, check, ours, fixture[key], EMBEDDING_TOLERANCE)
    if fixture.has("speech_start", "n_speech_tokens"):
        report.equal(fixture.name, "place of the speech", [start, len(speech)],
                     [fixture["speech_start"], fixture["n_speech_tokens"]])  # fmt: skip
    theirs = fixture["inputs_embeds"][start : start + len(speech)]
    report.close(fixture.name, "speech embeddings", speech, theirs, EMBEDDING_TOLERANCE)


def trace(omni: Omni, embeds: Tensor, output_ids: list[int]) -> Trace:
    """Prompt (P, D) and the answer's tokens → every state on the way, in one pass."""
    num_prompt = len(embeds)
    fed = torch.cat((embeds, omni.llm.embed(torch.tensor(output_ids[:-1], dtype=torch.long))))
    layers: list[Tensor] = []
    decoder_layers: list[Tensor] = []
    projected: list[Tensor] = []
    with hooks(omni.llm.layers, lambda _, args, out: layers.append(out[0, num_prompt - 1])):
        hidden = omni.llm(fed[None])[0]
    unit_in = hidden[num_prompt - 1 :]
    with (
        hooks([omni.unit_decoder.input_proj], lambda _, args, out: projected.append(out[0])),
        hooks(omni.unit_decoder.layers, lambda _, args, out: decoder_layers.append(out[0])),
    ):
        states = omni.unit_decoder.states(unit_in[None])[0]
    return Trace(
        hidden,
        torch.stack(layers),
        omni.llm.logits(unit_in),
        unit_in,
        projected[0],
        decoder_layers[0],
        states,
        omni.unit_decoder.output_proj(states),
    )


def compare_llm(fixture: Fixture, traced: Trace, num_prompt: int, report: Report) -> None:
    for key, check, ours in (
        ("prefill_last_layers", "LLM layers, last position", traced.last_of_layers),
        ("prefill_final_hidden", "LLM states of the prompt", traced.hidden[:num_prompt]),
        ("lm_logits", "LLM logits", traced.logits),
        ("unit_in_hidden", "states that predicted the tokens", traced.unit_in),
    ):
        if key in fixture:
            report.close(fixture.name, check, ours, fixture[key], HIDDEN_TOLERANCE)


def compare_units(fixture: Fixture, traced: Trace, blank: int, report: Report) -> None:
    for key, check, ours in (
        ("ctc_in_first_last", "unit decoder input, first and last", traced.ctc_in[[0, -1]]),
        ("ctc_layer0_last25", "unit decoder layer 0, last token", traced.ctc_layer0[-25:]),
        ("ctc_hidden", "unit decoder states", traced.ctc_hidden),
        ("ctc_logits_first8", "unit logits, first positions", traced.ctc_logits[:8]),
        ("ctc_logits_last8", "unit logits, last positions", traced.ctc_logits[-8:]),
        ("ctc_logsumexp", "unit logits, log-sum-exp", traced.ctc_logits.logsumexp(-1)),
        ("ctc_blank_logit", "unit logits, blank", traced.ctc_logits[:, blank]),
    ):
        if key in fixture:
            report.close(fixture.name, check, ours, fixture[key], UNIT_TOLERANCE)
    compare_classes(fixture, traced.ctc_logits, report)


def compare_classes(fixture: Fixture, logits: Tensor, report: Report) -> None:
    """The best classes of every position, and the greedy choice wherever two of them are not as good as equal."""
    clear = np.ones(len(logits), dtype=bool)
    for best in (5, 3):
        if f"ctc_top{best}_val" in fixture:
            values, ids = fixture[f"ctc_top{best}_val"], fixture[f"ctc_top{best}_idx"].astype(np.int64)
            clear = values[:, 0] - values[:, 1] > CLEAR
            report.close(fixture.name, f"unit logits, best {best}", logits.topk(best).values, values, UNIT_TOLERANCE)
            found = logits.gather(1, torch.from_numpy(ids))
            report.close(fixture.name, f"unit logits of the best {best} classes", found, values, UNIT_TOLERANCE)
    ours = logits.argmax(-1).numpy()
    report.equal(fixture.name, "class of every position", ours[clear], fixture["ctc_argmax"][clear])


def answer(omni: Omni, embeds: Tensor, fixture: Fixture) -> list[Step]:
    """Our own greedy answer, as long as the fixture's; its stop token where the fixture sets another one."""
    with stop_ids(omni, tuple(fixture["eos_token_id"].reshape(-1).tolist()) if "eos_token_id" in fixture else None):
        return list(omni.generate(embeds, Sampling(max_new_tokens=len(fixture["output_ids"]))))


def compare_stream(fixture: Fixture, steps: list[Step], blank: int, report: Report) -> None:
    """The order in which tokens and units come: each token, then the units it added."""
    events = [event for step in steps for event in ((TEXT, step.token_id), *((UNIT, unit) for unit in step.units))]
    kinds, values = [kind for kind, _ in events], [value for _, value in events]
    for key, check, ours in (
        ("stream_event_kind", "stream: kinds of events in order", kinds),
        ("stream_event_value", "stream: tokens and units in order", values),
        ("units_after_token", "stream: units after each token", np.cumsum([len(step.units) for step in steps])),
    ):
        if key in fixture:
            report.equal(fixture.name, check, ours, fixture[key])
    units = collapse(fixture["ctc_argmax"].tolist(), blank)
    report.equal(fixture.name, "collapse of the reference's classes", units, fixture["units"])


@contextmanager
def stop_ids(omni: Omni, ids: tuple[int, ...] | None) -> Iterator[None]:
    before = omni.config
    omni.config = before if ids is None else replace(before, eos_token_ids=ids)
    try:
        yield
    finally:
        omni.config = before


@contextmanager
def hooks(modules: Sequence[nn.Module] | nn.ModuleList, see: Callable[..., object]) -> Iterator[None]:
    """see(module, args, output) whenever one of the modules has run."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        see(module, args, output)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
