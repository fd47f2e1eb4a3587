"""Command lines written down somewhere (README, unit files, manifests) → does the real program accept them?"""

import argparse
import importlib
import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
FOREIGN = {  # programs that are not ours: named here so that a misspelt one is noticed
    "apt-get", "cd", "cp", "curl", "docker", "export", "git", "hf", "kubectl", "mkdir", "openssl", "pip", "ray",
    "systemctl", "wget",
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
        _check_main("omni.cli", rest)
    elif program.startswith("python") and rest[:1] == ["-m"]:
        if rest[1].startswith("omni."):
            _check_main(rest[1], rest[2:])
    elif program == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr)
        for line in done.stdout.splitlines():  # what ARGS="…" is handed to
            if line.startswith(".venv/bin/omni"):
                check(shlex.split(line))
    elif program not in FOREIGN:
        raise Refused(f"{program} is neither ours nor a known program: {shlex.join(words)}")


def _check_main(module: str, words: list[str]) -> None:
    """Run the program's own main until its arguments are read, and no further."""
    main = importlib.import_module(module).main
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        raise _Accepted(parse_args(self, *args, **kwargs))

    said = io.StringIO()
    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
            mock.patch.object(sys, "argv", [module, *words]),
            redirect_stderr(said),
        ):
            main(words)
    except _Accepted:
        return
    except SystemExit as exc:
        if exc.code in (0, None):  # --help, --version
            return
    raise Refused(f"{module} {shlex.join(words)}: {said.getvalue()}")


class _Accepted(Exception):
    pass
