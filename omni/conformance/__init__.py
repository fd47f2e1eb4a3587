"""`omni conformance DIR`: every fixture recorded from the published programs, against this build.

The folder is laid out as tests/golden/README.md tells. One row a check, with the worst difference and what is allowed;
exit status 1 if one fails. What is not understood is listed as not checked, never passed over.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from omni.conformance import edge, frontend, texts, turns, vocoder
from omni.conformance.folder import Folder, FolderError
from omni.conformance.report import FAILED, NOT_CHECKED, PASSED, Report, Row
from omni.model.checkpoint import CheckpointError
from omni.model.config import ConfigError
from omni.vocoder.checkpoint import VocoderCheckpointError

PARTS: tuple[Callable[[Folder, Report], None], ...] = (
    texts.check,
    frontend.check,
    turns.check,
    edge.check,
    vocoder.check,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="fixtures, laid out as in tests/golden/README.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--quiet", action="store_true", help="print only what did not pass, and the counts")


def main(args: argparse.Namespace) -> int:
    def show(row: Row) -> None:
        if row.result != PASSED or not args.quiet:
            print(row, flush=True)

    try:
        report = run(args.folder, show)
    except (FolderError, CheckpointError, ConfigError, VocoderCheckpointError) as exc:
        print(f"omni conformance: {exc}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(json.dumps(report.as_json(), indent=1))
    print(f"{report.count(PASSED)} passed, {report.count(FAILED)} failed, {report.count(NOT_CHECKED)} not checked")
    return 1 if report.count(FAILED) or not report.count(PASSED) else 0


def run(root: Path, show: Callable[[Row], None] = lambda row: None) -> Report:
    """Check every fixture of a folder. Raises FolderError where it is none, or a part it needs is missing."""
    folder, report = Folder(root), Report(show)
    for check in PARTS:
        check(folder, report)
    for fixture in folder.opened:
        if fixture.unseen:
            report.skip(fixture.name, "arrays", f"nothing here knows {', '.join(fixture.unseen)}")
    return report
