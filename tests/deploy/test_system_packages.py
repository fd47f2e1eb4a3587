"""deploy/system-packages.sh installs what is missing, and where it may not, says what to type."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "system-packages.sh"


@pytest.fixture
def machine(tmp_path: Path):
    """A machine with only the programs given: name → shell script. run(*arguments) runs the script on it."""

    def run(*arguments: str, **programs: str) -> subprocess.CompletedProcess:
        for name, body in programs.items():
            path = tmp_path / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        command = ["/bin/sh", str(SCRIPT), *arguments]
        return subprocess.run(command, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True)

    return run


def test_does_nothing_when_nothing_is_missing(machine):
    """A command that is there is not installed again: no root, no package index."""
    done = machine("ffmpeg=ffmpeg", ffmpeg="exit 0", apt_get="echo apt-get ran; exit 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_installs_only_what_is_missing(machine):
    """As root: the index is updated once, then the missing package installed."""
    done = machine("ffmpeg=ffmpeg", "espeak-ng=espeak", ffmpeg="exit 0", id="echo 0", apt_get='echo "$*"')
    update, install = done.stdout.splitlines()
    assert update.startswith("update")
    assert install.startswith("install") and install.endswith(" espeak") and "ffmpeg" not in install


def test_says_what_to_type_without_root(machine):
    """Someone who is not root reads the one command to run, and make stops."""
    done = machine("ffmpeg=ffmpeg", "chromium=chromium", id="echo 1000", apt_get="echo apt-get ran")
    assert done.returncode == 1
    assert "sudo apt-get install -y ffmpeg chromium" in done.stderr
    assert done.stdout == ""


def test_says_what_is_missing_without_apt(machine):
    """A machine with another package manager is told the names."""
    done = machine("ffmpeg=ffmpeg", id="echo 0")
    assert done.returncode == 1
    assert "missing: ffmpeg" in done.stderr


def test_a_failed_install_stops(machine):
    """apt-get's failure is the script's."""
    done = machine("ffmpeg=ffmpeg", id="echo 0", apt_get='test "$1" = update')
    assert done.returncode != 0
