"""A name a user types → the folders to load: `mini`, `tiny`, or a directory of one's own. Knows no weights.

What is generated or assembled lies under $OMNI_CACHE (default ~/.cache/omni) and appears there whole or not at all.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omni.model.packaged import cache


@dataclass(frozen=True)
class Checkpoint:
    name: str  # as /v1/models lists it
    model: Path  # config.json, shards, tokenizer
    vocoder: Path  # config.json and g_*


class UnknownCheckpoint(ValueError):
    """Neither a known name nor a checkpoint directory."""


def resolve(model: str, vocoder: str | Path | None = None) -> Checkpoint:
    """`mini`, `tiny` or a directory → Checkpoint. Makes what is missing (mini: fetched with a progress bar).

    The vocoder is the checkpoint's own `vocoder` folder unless one is given.
    """
    directory = {"mini": _mini, "tiny": _tiny}.get(model, lambda: Path(model))()
    if not (directory / "config.json").is_file():
        raise UnknownCheckpoint(f"{model!r} is neither mini, tiny, nor a directory with a config.json.")
    voice = Path(vocoder) if vocoder else directory / "vocoder"
    if not (voice / "config.json").is_file():
        raise UnknownCheckpoint(
            f"{voice} holds no vocoder (config.json and g_*). Put one there, or name its folder with --vocoder."
        )
    return Checkpoint(model if model in ("mini", "tiny") else directory.name, directory, voice)


def make_once(name: str, write: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache; where it is missing, `write` fills a new one, which then takes its place."""
    target = cache() / name
    if not target.is_dir():
        cache().mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache()))
        try:
            write(fresh)
            fresh.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same content
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def _tiny() -> Path:
    from omni.model import tiny as model
    from omni.vocoder import tiny as vocoder

    def write(directory: Path) -> None:
        model.write(directory)
        (directory / "vocoder").mkdir()
        vocoder.write(directory / "vocoder")

    return make_once(f"tiny-{model.SEED}", write)


def _mini() -> Path:
    from omni.model import mini

    return make_once(f"mini-{mini.version()}", mini.write)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="mini", help="mini, tiny or a directory (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    try:
        found = resolve(args.model)
    except UnknownCheckpoint as exc:
        print(f"omni fetch: {exc}")
        return 2
    print(f"{found.name}: {found.model}")
    return 0
