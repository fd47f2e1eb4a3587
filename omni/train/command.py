"""`omni train STAGE`, the stages being those of STAGES below: from texts to a checkpoint.

recipes/ put them in order. With --shape, both stages are those of large.py; with --mhubert, units are
those of mhubert.py.
"""

import argparse
import importlib
import itertools
import sys

STAGES = {  # name: (module, what it does)
    "data": ("omni.train.speech", "speak the training questions by many voices and keep the encoder's states"),
    "heldout": ("omni.train.heldout", "speak the held-out questions by held-out voices"),
    "llm": ("omni.train.base_llm", "put the LLM that training starts from into a folder"),
    "units": ("omni.train.units", "learn units from the answering voice and turn spoken answers into them"),
    "stage1": ("omni.train.stage1", "train the adaptor and the LLM's low-rank deltas: from speech to text"),
    "own": ("omni.train.own_answers", "let the LLM answer many questions, for the unit decoder to learn to speak"),
    "stage2": ("omni.train.stage2", "train the unit decoder: from the LLM's hidden states to units"),
    "vocoder": ("omni.train.vocoder", "train the vocoder: from units to sound"),
    "vocoder-gan": (
        "omni.train.vocoder_gan",
        "train the vocoder against discriminators: for a voice with a free pitch",
    ),
    "voice": ("omni.train.voice_units", "learn units from the answering voice's own states, and speak answers in them"),
    "source-filter": ("omni.train.source_filter", "train the vocoder that speaks them by source and filter"),
    "assemble": ("omni.train.assemble", "put a run's parts together into a checkpoint that a cluster serves"),
    "plot": ("omni.train.metrics", "draw what a run measured as it went"),
}
LARGE = "omni.train.large"  # stages 1 and 2 at the published size


def module_of(stage: str, words: list[str]) -> str:
    """--shape names a size ("8b"); a unit decoder's shape is in parentheses, and belongs to the mini checkpoint's."""
    after = [value for word, value in itertools.pairwise([*words, ""]) if word == "--shape"]
    after += [word.partition("=")[2] for word in words if word.startswith("--shape=")]
    if stage == "data" and any(word.split("=")[0] == "--instructions" for word in words):
        return "omni.train.instruct"  # any texts, made as the paper's were; without it, the mini checkpoint's own
    if stage == "units" and any(word.split("=")[0] == "--mhubert" for word in words):
        return "omni.train.mhubert"
    large = stage in ("stage1", "stage2") and any(not value.startswith("(") for value in after)
    return LARGE if large else STAGES[stage][0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    words = sys.argv[1:]
    for name, (_, text) in STAGES.items():
        stage = stages.add_parser(name, help=text, description=text)
        if name in words:  # a stage's own imports only when it is asked for
            module = importlib.import_module(module_of(name, words))
            module.add_arguments(stage)
            stage.set_defaults(run_stage=module.main)


def main(args: argparse.Namespace) -> int:
    return args.run_stage(args)
