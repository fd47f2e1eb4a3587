"""prompts.json and summary.json: prompts and their ids, decoded text, index maps, lengths, refusals."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from omni.conformance.folder import Folder
from omni.conformance.report import Report
from omni.model import batch
from omni.model.ctc import collapse
from omni.model.ctc_loss import upsample_index
from omni.model.detokenizer import Detokenizer
from omni.model.prompt import LLAMA_3_REQUEST, LLAMA_3_SYSTEM, SPEECH_MARK, Prompt, Utterance

PROMPTS, SUMMARY = "prompts.json", "summary.json"
ROLES = ("user", "assistant")


def check(folder: Folder, report: Report) -> None:
    check_prompts(folder, folder.json(PROMPTS) or {}, report)
    check_summary(folder, folder.json(SUMMARY) or {}, report)


def check_prompts(folder: Folder, content: dict, report: Report) -> None:
    if "system" in content:
        report.equal(PROMPTS, "system prompt", LLAMA_3_SYSTEM, content["system"])
    for case in content.get("cases", []):
        check_case(folder.omni.prompt, case, report)
    if training := content.get("training_preprocess_llama_3"):
        check_training(folder.omni.prompt, training, report)
    for i, case in enumerate(content.get("decode", [])):
        check_decode(folder.omni.tokenizer, f"decode {i}", case["ids"], case["skip_special_no_cleanup"], report)
    # The published stream loses characters where the tokenizer cleans spaces up; ours equals decoding at once.
    decoded = {tuple(case["ids"]): case["skip_special_no_cleanup"] for case in content.get("decode", [])}
    for i, case in enumerate(content.get("stream_decode", [])):
        expected = decoded.get(tuple(case["ids"]), case["concatenated"])
        check_stream(folder.omni.tokenizer, f"stream {i}", case["ids"], expected, report)


def check_case(prompt: Prompt, case: dict, report: Report) -> None:
    name = case["name"]
    conversation = as_conversation(case)
    if conversation is not None:
        rendered = prompt.render(conversation)
        report.equal(PROMPTS, f"{name}: text", rendered, case["prompt"])
        report.equal(PROMPTS, f"{name}: ids of the conversation", prompt(conversation), case["input_ids"])
    report.equal(PROMPTS, f"{name}: ids of the text", prompt.tokenize(case["prompt"]), case["input_ids"])
    if "plain_tokenizer_ids" in case:
        plain = prompt.tokenizer(case["prompt"]).input_ids
        report.equal(PROMPTS, f"{name}: plain tokenizer", plain, case["plain_tokenizer_ids"])
    if "input_ids_if_tokenizer_adds_no_bos" in case:
        bare = Prompt("llama_3", without_bos(prompt.tokenizer))
        expected = case["input_ids_if_tokenizer_adds_no_bos"]
        report.equal(PROMPTS, f"{name}: a tokenizer without BOS", bare.tokenize(case["prompt"]), expected)


def as_conversation(case: dict) -> list[Utterance] | None:
    """A case's messages as ours; None where ours has no word for it (it ends with an answer, or <speech> amid text)."""
    texts = [(role, content[0] if isinstance(content, list) else content) for role, content in case["messages"]]
    if texts[-1][1] is not None:
        return None
    conversation = [] if case.get("system") is None else [Utterance("system", text=case["system"])]
    for role, text in texts[:-1]:
        if text.strip() == LLAMA_3_REQUEST:
            conversation.append(Utterance(ROLES[role], speech=np.zeros(1, np.float32)))
        elif SPEECH_MARK in text:
            return None
        else:
            conversation.append(Utterance(ROLES[role], text=text.strip()))
    return conversation


def without_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same words without the post-processor that puts a BOS in front."""
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)


def check_training(prompt: Prompt, training: dict, report: Report) -> None:
    """A training example: the prompt's ids, then the answer's, and labels for the answer alone."""
    names = {"human": "user", "gpt": "assistant"}
    for source, ids, labels in zip(training["source"], training["input_ids"], training["labels"], strict=True):
        case = {"messages": [[ROLES.index(names[turn["from"]]), turn["value"]] for turn in source[:-1]] + [[1, None]]}
        conversation = as_conversation(case)
        if conversation is None:
            continue
        asked = prompt(conversation)
        answer = prompt.tokenizer(source[-1]["value"] + "<|eot_id|>", add_special_tokens=False).input_ids
        report.equal(PROMPTS, "training example: ids", asked + answer, ids)
        report.equal(PROMPTS, "training example: labels", [batch.IGNORED] * len(asked) + answer, labels)


def check_decode(tokenizer: PreTrainedTokenizerFast, check: str, ids: list[int], text: str, report: Report) -> None:
    ours = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    report.equal(PROMPTS, f"{check}: text", ours, text)


def check_stream(
    tokenizer: PreTrainedTokenizerFast, check: str, ids: list[int], text: str, report: Report, file: str = PROMPTS
) -> None:
    detokenize = Detokenizer(tokenizer)
    ours = "".join([detokenize(token_id) for token_id in ids] + [detokenize.finish()])
    report.equal(file, f"{check}: streamed text", ours, text)


def check_summary(folder: Folder, content: dict, report: Report) -> None:
    for name, told in content.get("utterances", {}).items():
        if "text_no_cleanup" in told:
            check_stream(folder.omni.tokenizer, name, told["output_ids"], told["text_no_cleanup"], report, SUMMARY)
    edge = content.get("edge", {})
    for i, case in enumerate(edge.get("ctc_collapse", [])):
        report.equal(SUMMARY, f"collapse {i}", collapse(case["raw"], folder.omni.config.blank), case["gen_list"])
    for case in edge.get("uniform_assignment", []):
        check_index(case, report)
    for length, shape in edge.get("speech_lengths_to_tokens", {}).items():
        report.equal(SUMMARY, f"{length} mel frames → speech embeddings", embedding_shape(folder, int(length)), shape)
    for i, shape in enumerate(edge.get("encode_speech_batch_lengths_191_676", [])):
        report.equal(SUMMARY, f"ragged batch: row {i}", embedding_shape(folder, (191, 676)[i]), shape)
    if "error_mel_80" in edge:
        check_refusal(folder, report)


def check_index(case: dict, report: Report) -> None:
    index = upsample_index(case["src"], case["tgt"]).numpy()
    check = f"{case['src']} tokens over {case['tgt']} positions"
    if case.get("index") is not None:
        report.equal(SUMMARY, check, index, case["index"])
    if "sha256_int64" in case:
        digest = hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()
        report.equal(SUMMARY, f"{check} (sha256)", digest, case["sha256_int64"])


@torch.inference_mode()
def embedding_shape(folder: Folder, num_mel_frames: int) -> Sequence[int]:
    features = torch.zeros(1, folder.omni.encoder.config.num_mels, num_mel_frames)
    return tuple(folder.omni.adaptor(folder.omni.encoder(features))[0].shape)


def check_refusal(folder: Folder, report: Report) -> None:
    """Features of another Whisper (80 bins instead of 128) are refused with words."""
    wrong = torch.zeros(1, folder.omni.encoder.config.num_mels - 48, 3000)
    try:
        folder.omni.encoder(wrong)
    except ValueError:
        report.equal(SUMMARY, "80 mel bins are refused", True, True)
    else:
        report.fail(SUMMARY, "80 mel bins are refused", "the encoder took them")
