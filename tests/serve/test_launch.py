"""`omni up`, `omni join` and `omni status` as a user meets them. The cluster itself is tested in test_cluster.py."""

import argparse
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from up import Up
from waiting import free_port, wait_until

from omni.serve import join, launch, ray_node, status
from omni.serve.config import ConfigError, ServeConfig


def omni(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "omni.cli", *words], capture_output=True, text=True, timeout=120)


def test_everything_carries_its_mark(up: Up):
    """All processes of a cluster can be told from those of another, which is how the last one is found at the end."""
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in up.processes()]
    for part in ("omni.serve.driver", "omni.serve.gradio_web", "gcs_server", "raylet", "ModelWorker", "VocoderWorker"):
        assert any(part in command for command in commands), f"{part} is not among them"


def test_the_token_is_the_owners_alone(up: Up):
    token = up.state_dir / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() not in up.log.read_text()
    assert all(token.read_text() not in Path(f"/proc/{pid}/cmdline").read_text() for pid in up.processes())


def test_controller_and_page_run_without_torch(up: Up):
    """They start fast and stay small: no library of torch is mapped into them."""
    for part in ("omni.serve.driver", "omni.serve.gradio_web"):
        pid = next(pid for pid in up.processes() if part in Path(f"/proc/{pid}/cmdline").read_text())
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_status_shows_every_worker(up: Up):
    for kind in ("model", "vocoder"):
        up.both_there(kind)  # an earlier test may have killed some
    shown = omni("status", up.url)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("model", "vocoder") and "ready" in row] == [
        "model",
        "model",
        "vocoder",
        "vocoder",
    ]


def test_join_adds_places_for_one_kind_and_takes_them_away(up: Up, tmp_path: Path):
    """A third vocoder worker comes with the machine that joins, and goes with it; the others never notice."""
    for kind in ("model", "vocoder"):
        up.both_there(kind)
    before = {worker["pid"] for kind in ("model", "vocoder") for worker in up.workers(kind)}
    address = next(line.split()[4] for line in up.log.read_text().splitlines() if "another machine" in line)
    command = [sys.executable, "-m", "omni.cli", "join", address, "--roles", "vocoder"]
    with (tmp_path / "join.log").open("wb") as log:
        joining = subprocess.Popen(
            [*command, "--token-file", str(up.state_dir / "token")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: len(up.workers("vocoder")) == 3, joining)
        assert before < {worker["pid"] for kind in ("model", "vocoder") for worker in up.workers(kind)}
    finally:
        joining.send_signal(signal.SIGINT)
        assert joining.wait(60) == 0, (tmp_path / "join.log").read_text()
    wait_until(lambda: before == {worker["pid"] for kind in ("model", "vocoder") for worker in up.workers(kind)})


def test_a_taken_port_is_told_before_anything_starts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = omni("up", "--model", "tiny", "--port", port, "--web-port", str(free_port()))
    assert told.returncode == 2
    assert f"127.0.0.1:{port}" in told.stderr and "--port" in told.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slots": 0}, "slots"),
        ({"web_port": 8000}, "web_port"),
        ({"port": 70_000}, "port"),
        ({"model_gpus": 1.5}, "model_gpus"),
        ({"first_chunk": 90}, "chunk"),
        ({"model_weights": "fp8"}, "model_weights"),
        ({"prefill_beside": 0}, "prefill_beside"),
        ({"vocoder_backend": "theirs"}, "vocoder_backend"),
        ({"queue_deadline": 0}, "queue_deadline"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_setting_stops_the_start(changes, named):
    """The message names the setting and its value."""
    with pytest.raises(ConfigError, match=f"{named} is "):
        ServeConfig(model_name="tiny", model=".", vocoder="./vocoder", **changes)


def test_a_checkpoint_that_is_none(tmp_path: Path, capsys):
    assert launch.main(options("--model", str(tmp_path))) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_gpus_that_are_not_there(monkeypatch, capsys):
    monkeypatch.setattr(ray_node, "num_gpus", lambda: 1)
    given = options("--model", "tiny", "--model-workers", "3", "--model-gpus", "0.5")
    given.port, given.web_port = free_port(), free_port()
    assert launch.main(given) == 2
    assert "1.5 GPUs" in capsys.readouterr().err


def test_the_configuration_survives_its_file(tmp_path: Path):
    config = ServeConfig(model_name="tiny", model="m", vocoder="v", web_port=None, slots=3, queue_deadline=1.5)
    config.write(tmp_path / "config.json")
    assert ServeConfig.read(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere", "--roles", "model", "--token", "x"], "HOST:PORT"),
        (["127.0.0.1:1", "--roles", "model"], "token"),
        (["127.0.0.1:1", "--roles", "model", "--token", "x", "--workers", "0"], "--workers"),
        (["127.0.0.1:1", "--roles", "model", "--token-file", "/nowhere"], "/nowhere"),
    ],
    ids=["address", "token", "workers", "token-file"],
)
def test_join_says_what_is_wrong(words, told, capsys, monkeypatch):
    monkeypatch.delenv(join.TOKEN_VARIABLE, raising=False)
    parser = argparse.ArgumentParser()
    join.add_arguments(parser)
    assert join.main(parser.parse_args(words)) == 2
    assert told in capsys.readouterr().err


def test_status_of_nobody(capsys):
    parser = argparse.ArgumentParser()
    status.add_arguments(parser)
    assert status.main(parser.parse_args([f"http://127.0.0.1:{free_port()}"])) == 1
    assert "does not answer" in capsys.readouterr().err


def test_status_names_missing_workers():
    controller = {"model": "tiny", "live_turns": 3, "max_turns": 8, "draining": True}
    worker = {"kind": "model", "id": "a", "state": "ready", "running": 3, "slots": 8}
    shown = status.table({"controller": controller, "workers": [worker], "wanted": {"model": 1, "vocoder": 2}})
    assert "3 of 8 turns · draining" in shown
    assert "2 of 2 vocoder workers are not there" in shown


def test_sweep_ends_only_what_carries_the_mark(tmp_path: Path):
    """A process of another cluster, or of nobody, is left alone."""
    command = [sys.executable, "-c", "input()"]
    ours, theirs = (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, env=os.environ | {ray_node.STATE_VARIABLE: str(tmp_path / name)}
        )
        for name in ("ours", "theirs")
    )
    try:
        wait_until(lambda: ray_node.leftovers(tmp_path / "ours") == [ours.pid])
        ray_node.sweep(tmp_path / "ours")
        assert ours.wait(10) == -signal.SIGKILL
        assert theirs.poll() is None
    finally:
        for process in (ours, theirs):
            process.kill()
            process.communicate()


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)
    return parser.parse_args(words)


def test_logs_are_kept_beside_those_of_an_earlier_cluster(tmp_path: Path):
    """The second Ctrl-C with one --log-dir used to end in a traceback, and left the cluster's folder behind."""
    config = ServeConfig(model_name="tiny", model=".", vocoder="./vocoder")
    for number in (1, 2):
        state = tmp_path / f"state{number}"
        logs = state / "ray" / f"session_2026-{number}" / "logs"
        logs.mkdir(parents=True)
        (state / "ray.log").write_text(str(number))
        (logs / f"worker-{number}.log").write_text("")
        launch.Launch(config, None, None, str(tmp_path))._clean(state)
        assert not state.exists()
    assert (tmp_path / "ray-ray.log").read_text() == "2"
    assert {each.name for each in (tmp_path / "ray-logs").iterdir()} == {"worker-1.log", "worker-2.log"}


def test_a_token_file_that_is_not_there_leaves_nothing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = options("--model", "tiny", "--no-web", "--port", str(free_port()), "--token-file", "/nowhere")
    assert launch.main(given) == 1
    assert "/nowhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
