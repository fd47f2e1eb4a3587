"""What a measurement leaves behind: hardware, versions and command; one JSON; one table in Markdown. No torch."""

import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import omni

BOOTSTRAP_ROUNDS = 2000


def about(device: str = "", threads: int | None = None) -> dict[str, Any]:
    """Where and with what this runs. `device` is a GPU's name, where there is one."""
    return {
        "command": "omni " + shlex.join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": device or f"CPU: {_processor()}, {len(os.sched_getaffinity(0))} cores",
        "threads": threads,
        "load_average": list(os.getloadavg()),  # before: near 0 on a quiet machine
        "versions": {
            "omni": omni.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
        }
        | {name: _version(name) for name in ("torch", "transformers", "numpy")},
    }


def heading(about: dict[str, Any]) -> str:
    """The lines above a table."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    threads = f" · {about['threads']} threads" if about["threads"] else ""
    load = about["load_average"][0]
    return f"`{about['command']}`\n\n{about['hardware']}{threads} · load {load:.1f} before · {versions}\n"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first column to the left and the others to the right."""
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def quantile(values: Sequence[float], q: float) -> float | None:
    """Linear between neighbours, as numpy's default; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def interval(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float] = statistics.median
) -> dict[str, float | int]:
    """The statistic, and the bootstrap's 95 % confidence interval round it: {"median", "low", "high", "n"}."""
    draw = random.Random(0)
    again = [statistic(draw.choices(values, k=len(values))) for _ in range(BOOTSTRAP_ROUNDS)]
    low, high = quantile(again, 0.025), quantile(again, 0.975)
    assert low is not None and high is not None
    return {"median": statistic(values), "low": low, "high": high, "n": len(values)}


def ratio(found: dict[str, float | int]) -> str:
    return f"{found['median']:.2f}× ({found['low']:.2f} … {found['high']:.2f})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the source tree, where it is one; with a + where it was changed."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
