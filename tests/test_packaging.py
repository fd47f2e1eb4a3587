"""What `pip install` brings is all that the programs need."""

import configparser
import glob
import re

from command_lines import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def requirements() -> list[str]:
    groups = [SETUP["options"]["install_requires"], *SETUP["options.extras_require"].values()]
    return [line for group in groups for line in group.split("\n") if line and not line.startswith("#")]


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>;! ]", requirement)[0]).lower()


def test_every_data_file_is_packaged():
    """Files beside the code (weights, texts, recordings) are in package_data, so an installed omni has them too."""
    patterns = [pattern.strip() for pattern in SETUP["options.package_data"]["omni"].split(",")]
    packaged = {path for pattern in patterns for path in glob.glob(pattern, root_dir=ROOT / "omni", recursive=True)}
    files = (path.relative_to(ROOT / "omni") for path in (ROOT / "omni").rglob("*") if path.is_file())
    data = {str(path) for path in files if path.suffix not in (".py", ".pyc")}
    assert data <= packaged


def test_every_requirement_has_a_tested_version():
    """What setup.cfg asks for, constraints.txt pins; fairseq's own parts aside, which only its extra brings."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonical(line) for line in lines if line and not line.startswith("#")}
    fairseq = {canonical(line) for line in SETUP["options.extras_require"]["fairseq"].split("\n") if line}
    assert {canonical(each) for each in requirements()} - fairseq <= pinned


def test_torchaudio_never_comes_in():
    """torchaudio's wheel needs CUDA's libraries and breaks `import transformers` beside a CPU torch."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torchaudio" not in {canonical(each) for each in [*requirements(), *lines]}
