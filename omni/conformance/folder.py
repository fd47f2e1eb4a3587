"""A folder of golden fixtures: where things lie in it, and which arrays of a file have been looked at.

The layout is that of tests/golden/README.md. Everything is optional; what is there is checked.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from omni.audio import wav
from omni.model import checkpoint
from omni.model.omni import Omni

LONGEST = 3600.0  # seconds: fixtures may be longer than a turn; pad_or_trim then cuts, as the published code does


class FolderError(ValueError):
    """The folder holds no fixtures, or lacks what its fixtures need."""


class Fixture:
    """An .npz file that remembers which of its arrays were asked for, so that none is passed over unseen."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.name = path.relative_to(root).as_posix()
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError) as exc:
            raise FolderError(f"{path} cannot be read as .npz: {exc}") from exc
        self.seen: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            raise FolderError(f"{self.name} lacks the array {key!r}.")
        self.seen.add(key)
        return self.arrays[key]

    def has(self, *keys: str) -> bool:
        return all(key in self.arrays for key in keys)

    def without_digests(self) -> None:
        """Hashes of float arrays hold on one machine only; the arrays themselves are compared."""
        self.seen.update(key for key in self.arrays if "sha256" in key)

    @property
    def unseen(self) -> list[str]:
        return sorted(self.arrays.keys() - self.seen)


class Folder:
    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FolderError(f"{self.root} is not a folder.")
        if not any(self.fixtures()) and not (self.root / "prompts.json").is_file():
            raise FolderError(
                f"{self.root} holds no fixtures: no .npz in frontend, llm, edge or vocoder, and no prompts.json. "
                "The layout is told in tests/golden/README.md."
            )
        self._audio: dict[str, np.ndarray] = {}

    def fixtures(self) -> Iterator[Path]:
        for part in ("frontend", "llm", "edge", "vocoder"):
            yield from sorted((self.root / part).glob("*.npz"))

    def part(self, name: str) -> list[Fixture]:
        return [fixture for fixture in self.opened if fixture.path.parent.name == name]

    @cached_property
    def opened(self) -> list[Fixture]:
        return [Fixture(path, self.root) for path in self.fixtures()]

    def json(self, name: str) -> Any:
        """The content of a .json file, or None where it is not there."""
        path = self.root / name
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError as exc:
            raise FolderError(f"{path} is not JSON: {exc}") from exc

    @cached_property
    def checkpoint(self) -> Path:
        found = sorted((self.root / "checkpoint").glob("*/config.json"))
        if not found:
            raise FolderError(f"{self.root}/checkpoint holds no NAME/config.json, and its fixtures need a checkpoint.")
        return found[0].parent

    @cached_property
    def omni(self) -> Omni:
        return checkpoint.load(self.checkpoint)

    @cached_property
    def utterances(self) -> list[str]:
        """Names of the recordings that turns are made of: utt0, utt1, … without the one at another rate."""
        stems = [path.stem for path in (self.root / "audio").glob("*.wav")]
        return sorted((stem for stem in stems if "_" not in stem), key=lambda stem: (len(stem), stem))

    def has_audio(self, utterance: str) -> bool:
        return self.audio_path(utterance).is_file()

    def audio_path(self, utterance: str) -> Path:
        return self.root / "audio" / f"{utterance}.wav"

    def audio(self, utterance: str) -> np.ndarray:
        """All samples (S,) of a recording, however long."""
        if utterance not in self._audio:
            self._audio[utterance] = wav.read(
                self.audio_path(utterance), max_seconds=LONGEST, max_bytes=2**31, allow_silence=True
            )
        return self._audio[utterance]
