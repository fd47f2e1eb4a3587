"""A checkpoint's further adaptors, each for a language or a domain: which there are, by name. Knows no weights.

    checkpoint/adaptors/medical/adaptor.safetensors    in the shape of the checkpoint's own, as stage 1 exports it
    checkpoint/adaptors/medical/encoder.safetensors    optional: must be the checkpoint's; all share one encoder

A session chooses one by its name; without a name, the checkpoint's own hears. checkpoint.load reads the weights.
"""

import re
from collections.abc import Collection
from pathlib import Path

FOLDER, FILE = "adaptors", "adaptor.safetensors"
LONGEST_NAME = 32  # characters
NAME = re.compile(rf"[a-z0-9-]{{1,{LONGEST_NAME}}}")


class UnknownAdaptor(ValueError):
    """No adaptor of the checkpoint has this name; the message lists those there are."""


class BadAdaptorName(ValueError):
    """A folder in adaptors/ has a name that no session could ask for."""


def find(directory: str | Path) -> dict[str, Path]:
    """A checkpoint directory → the folders of its further adaptors by name; none for most. Raises BadAdaptorName.

    What begins with a dot is not looked at.
    """
    root = Path(directory) / FOLDER
    folders = [] if not root.is_dir() else sorted(each for each in root.iterdir() if not each.name.startswith("."))
    for folder in folders:
        if not NAME.fullmatch(folder.name):
            raise BadAdaptorName(
                f"{folder}: an adaptor's name has 1 to {LONGEST_NAME} characters, each of a-z, 0-9 and '-'. Rename it."
            )
    return {each.name: each for each in folders}


def check(name: str, known: Collection[str]) -> None:
    """Raises UnknownAdaptor unless the name is known, or empty: the checkpoint's own."""
    if name and name not in known:
        choices = f"Select one of {', '.join(sorted(known))}, or none" if known else "Select none"
        raise UnknownAdaptor(f"There is no adaptor {name[:100]!r} here. {choices}: then the checkpoint's own hears.")
