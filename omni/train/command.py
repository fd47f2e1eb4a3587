"""`omni train data|heldout|units|stage1|stage2|vocoder`: from texts to a checkpoint. recipes/ put them in order."""

import argparse
import importlib
import sys

STAGES = {  # name: (module, what it does)
    "data": ("omni.train.speech", "speak the training questions by many voices and keep the encoder's states"),
    "heldout": ("omni.train.heldout", "speak the held-out questions by held-out voices"),
    "units": ("omni.train.units", "learn units from the answering voice and turn spoken answers into them"),
    "stage1": ("omni.train.stage1", "train the adaptor and the LLM's low-rank deltas: from speech to text"),
    "stage2": ("omni.train.stage2", "train the unit decoder: from the LLM's hidden states to units"),
    "vocoder": ("omni.train.vocoder", "train the vocoder: from units to sound"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, (module, text) in STAGES.items():
        stage = stages.add_parser(name, help=text, description=text)
        if name in sys.argv[1:]:  # a stage's own imports only when it is asked for
            importlib.import_module(module).add_arguments(stage)


def main(args: argparse.Namespace) -> int:
    return importlib.import_module(STAGES[args.stage][0]).main(args)
