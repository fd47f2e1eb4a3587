"""The `omni` command: a table of subcommands, each a module imported only when it is asked for.

A subcommand's module offers `add_arguments(parser)` and `main(args) -> int`. Nothing heavy is imported here, so that
`omni --help`, the controller and the page start without torch.
"""

import argparse
import importlib
import logging
import sys

from omni import __version__

COMMANDS = {  # name: (module, what it does)
    "up": ("omni.serve.launch", "start controller, workers and page on this machine"),
    "join": ("omni.serve.join", "add this machine's resources to a running cluster"),
    "status": ("omni.serve.status", "show a cluster's workers, load and sessions"),
    "answer": ("omni.serve.answer", "answer one spoken question, here or on a cluster"),
    "conformance": ("omni.conformance", "check this build against recorded outputs of the published system"),
    "evaluate": ("omni.train.evaluate", "ask a checkpoint spoken questions and score its answers"),
    "train": ("omni.train.command", "make training data and train a checkpoint"),
    "bench": ("bench.command", "measure this build on this machine"),
    "fetch": ("omni.checkpoints", "fetch and assemble a checkpoint ahead of time"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="omni", description=sys.modules["omni"].__doc__)
    parser.add_argument("--version", action="version", version=f"omni {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == next((word for word in argv if not word.startswith("-")), None):
            chosen = importlib.import_module(module)
            chosen.add_arguments(command)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request would tear progress bars
    try:
        return chosen.main(args)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
