"""docs/protocol.md names every event and setting of /v1/realtime, and no other."""

import json
import re
from pathlib import Path

from fake_cluster import (
    config,
)

from omni.serve.realtime_events import CLIENT_EVENTS, SERVER_EVENTS
from omni.serve.realtime_settings import IGNORED, NEUTRAL, Settings


def table(heading: str) -> list[list[str]]:
    """The rows under a heading of docs/protocol.md."""
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    section = re.search(rf"### {heading}\n(.*?)(\n### |\n## )", text, re.S)
    assert section, heading
    rows = [
        line.strip("|").split("|")
        for line in section[1].splitlines()
        if line.startswith("| `") or line.startswith("| …")
    ]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_document_has_every_client_event_and_its_fields():
    rows = {row[0].strip("`"): row for row in table("Client events")}
    assert set(rows) == set(CLIENT_EVENTS)
    for kind, model in CLIENT_EVENTS.items():
        assert set(re.findall(r"`(\w+)`", rows[kind][1])) == set(model.model_fields) - {"type", "event_id"}, kind


def test_the_document_has_every_server_event():
    assert {row[0].strip("`") for row in table("Server events")} == SERVER_EVENTS


def test_the_document_has_every_setting_and_its_default(tmp_path):
    """Every setting of a session is in the table, and the default that is told there is the default."""
    settings = config(tmp_path)
    shown, names, parent = Settings().shown(settings), [], ""
    for row in table("The session"):
        inner = row[0].startswith("…")
        told = re.findall(r"`[^`]+`|[\d.]+|true|false|the server's|as the input's", row[1])
        here = re.findall(r"`\.?([\w.]+)`", row[0])
        parent = parent if inner else here[0]
        for i, name in enumerate(f"{parent}.{each}" if inner else each for each in here):
            names.append(name)
            value = shown
            for part in name.split("."):
                assert part in value, name
                value = value[part]
            default = told[i if len(told) == len(here) else 0].strip("`")
            if default == "server_vad":
                assert value["type"] == default
            elif default == "as the input's":
                assert value == shown["audio"]["input"]["format"]
            elif default != "the server's":
                assert value == json.loads(default), name
    everything = {"type", "model", "omni.model_rate", *NEUTRAL, *IGNORED} | {
        f"audio.input.{name}" for name in ("noise_reduction", "turn_detection.type", "turn_detection.idle_timeout_ms")
    }
    assert set(leaves(Settings().model_dump())) <= {*names, *everything, "audio.output.speed"}, "all of them"


def leaves(shown: dict, above: str = "") -> list[str]:
    found = []
    for name, value in shown.items():
        inner = isinstance(value, dict) and name != "format"
        found += leaves(value, f"{above}{name}.") if inner else [f"{above}{name}"]
    return found
