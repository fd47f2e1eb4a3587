"""A checkpoint's name finds its folders, made whole or not at all."""

from pathlib import Path

import pytest

from omni import checkpoints


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNI_CACHE", str(tmp_path))
    return tmp_path


def test_tiny_is_made_on_first_use_and_found_on_the_second(empty_cache):
    first = checkpoints.resolve("tiny")
    written = (first.model / "model.safetensors").stat().st_mtime_ns
    assert first.name == "tiny"
    assert (first.vocoder / "config.json").is_file()
    assert checkpoints.resolve("tiny") == first
    assert (first.model / "model.safetensors").stat().st_mtime_ns == written


def test_a_failed_write_leaves_nothing_behind(empty_cache):
    def write(directory: Path) -> None:
        (directory / "half").write_text("done")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.make_once("broken", write)
    assert list(empty_cache.iterdir()) == []


def test_the_slower_of_two_writers_takes_what_the_faster_one_made(empty_cache):
    def write(directory: Path) -> None:
        (directory / "mine").touch()
        (empty_cache / "both").mkdir()
        (empty_cache / "both" / "theirs").touch()

    assert [path.name for path in checkpoints.make_once("both", write).iterdir()] == ["theirs"]
    assert [path.name for path in empty_cache.iterdir()] == ["both"]


def test_a_directory_without_config_is_refused_by_name(empty_cache):
    with pytest.raises(checkpoints.UnknownCheckpoint, match="neither mini, tiny"):
        checkpoints.resolve(str(empty_cache))


def test_a_directory_without_a_vocoder_says_where_one_should_be(empty_cache):
    (empty_cache / "config.json").write_text("{}")
    with pytest.raises(checkpoints.UnknownCheckpoint, match="--vocoder"):
        checkpoints.resolve(str(empty_cache))


def test_a_directory_of_ones_own_is_known_by_its_last_name(empty_cache):
    tiny = checkpoints.resolve("tiny")
    own = checkpoints.resolve(str(tiny.model), vocoder=tiny.vocoder)
    assert own.name == tiny.model.name
    assert own.vocoder == tiny.vocoder
