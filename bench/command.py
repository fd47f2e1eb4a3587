"""`omni bench NAME`: measure omni on this machine. bench/RESULTS.md has what was found."""

import argparse
import importlib
from typing import Any

BENCHMARKS = {  # name: (module, what it does)
    "turn": ("bench.turn", "first audio and time per stage, against the published serving path"),
    "engine": ("bench.engine", "tokens a second, step time and memory by batch, against the hardware's limit"),
    "hops": ("bench.hops", "what it costs to go from one process to the next, with nothing computed behind it"),
    "load": ("bench.load", "conversations with a running cluster: delays, underruns, and how many it can hold"),
    "agreement": ("bench.agreement", "how often rougher arithmetic chooses what float32 chooses"),
    "growth": ("bench.growth", "how cost grows with answer length, history length and sessions"),
    "newcomers": ("bench.newcomers", "questions that come at the same time, read in one call or one by one"),
    "vocoder": ("bench.vocoder", "what streaming costs the vocoder"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True, parser_class=_WhenAskedFor)
    for name, (module, text) in BENCHMARKS.items():
        benchmarks.add_parser(name, help=text, module=module)


def main(args: argparse.Namespace) -> int:
    return importlib.import_module(BENCHMARKS[args.benchmark][0]).main(args)


class _WhenAskedFor(argparse.ArgumentParser):
    """A benchmark's parser; its module is imported when it has something to read: `load` needs no torch."""

    def __init__(self, *, module: str, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self._module: str | None = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._module is not None:
            module, self._module = importlib.import_module(self._module), None
            self.description = module.__doc__
            module.add_arguments(self)
        return super().parse_known_args(args, namespace)
