"""`omni status [URL]`: a running cluster's workers, load and turns, as a table. A client of the controller."""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

COLUMNS = ("kind", "id", "state", "running", "waiting", "slots", "answered", "pid", "node")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="the controller (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="as the controller says it")


def main(args: argparse.Namespace) -> int:
    try:
        state = fetch(args.url)
    except (urllib.error.URLError, OSError, ValueError) as exc:
        print(f"omni status: {args.url} does not answer as a controller: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(state, indent=2) if args.json else table(state))
    return 0


def fetch(url: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/cluster")
    if key := os.environ.get("OMNI_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=5.0) as response:
        return json.load(response)


def table(state: dict[str, Any]) -> str:
    """The whole state in a few lines."""
    own, wanted = state["controller"], state["wanted"]
    workers = sorted(state["workers"], key=lambda each: (each["kind"], each["id"]))
    model = f"model {own['model']}{_adaptors(own)}"
    lines = [f"{model} · {own['live_turns']} of {own['max_turns']} turns" + _draining(own), ""]
    rows = [COLUMNS, *(tuple(_cell(worker.get(name)) for name in COLUMNS) for worker in workers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for kind, number in wanted.items():
        serving = sum(worker["kind"] == kind for worker in workers)
        if serving < number:
            lines.append(f"{number - serving} of {number} {kind} workers are not there (yet)")
    return "\n".join(lines)


def _adaptors(own: dict[str, Any]) -> str:
    return f" with {', '.join(own['adaptors'])}" if own.get("adaptors") else ""


def _draining(own: dict[str, Any]) -> str:
    return " · draining" if own.get("draining") else ""


def _cell(value: Any) -> str:
    return "–" if value is None else str(value)[:12]
