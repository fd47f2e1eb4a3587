"""Command lines written down somewhere (README, unit files, manifests) → does the real program accept them?"""

import argparse
import importlib
import inspect
import re
import shlex
import subprocess
from pathlib import Path

from omni.cli import COMMANDS

ROOT = Path(__file__).parents[1]
FOREIGN = {  # programs that are not ours: named here so that a misspelt one is noticed
    "apt-get", "cd", "cp", "curl", "docker", "export", "git", "hf", "kubectl", "mkdir", "pip", "ray", "systemctl",
    "wget",
}  # fmt: skip


class Refused(AssertionError):
    """The program would not accept this command line."""


def check(words: list[str]) -> None:
    """Raise Refused unless the program that `words` starts with exists and accepts the rest."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "sudo":
        words = words[1:]
    program, rest = Path(words[0]).name, words[1:]
    if program == "omni":
        _check_omni(rest)
    elif program.startswith("python") and rest[:1] == ["-m"]:
        _check_module(rest[1], rest[2:])
    elif program == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr)
        for line in done.stdout.splitlines():  # what ARGS="…" is handed to
            if line.startswith(".venv/bin/omni"):
                check(shlex.split(line))
    elif program not in FOREIGN:
        raise Refused(f"{program} is neither ours nor a known program: {shlex.join(words)}")


def _check_omni(words: list[str]) -> None:
    if not words or words[0] not in COMMANDS:
        if words in (["--help"], ["--version"]):
            return
        raise Refused(f"omni has no command {words[:1]}.")
    parser = _Strict(prog=f"omni {words[0]}")
    importlib.import_module(COMMANDS[words[0]][0]).add_arguments(parser)
    parser.parse_args(words[1:])


def _check_module(module: str, words: list[str]) -> None:
    if not module.startswith("omni."):
        return
    imported = importlib.import_module(module)
    if '__name__ == "__main__"' not in inspect.getsource(imported):
        raise Refused(f"python -m {module} would do nothing.")
    if not hasattr(imported, "add_arguments"):
        raise Refused(f"{module} has no add_arguments(parser) to check {shlex.join(words)} with.")
    parser = _Strict(prog=f"python -m {module}")
    imported.add_arguments(parser)
    parser.parse_args(words)


class _Strict(argparse.ArgumentParser):
    def error(self, message: str):
        raise Refused(f"{self.prog}: {message}")
