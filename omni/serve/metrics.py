"""Numbers to watch, in Prometheus' form. A registry per controller; nothing is registered at import.

Every turn is counted once when it starts and once when it ends: started = ok + cancelled + rejected + failed + live.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

OUTCOMES = ("ok", "cancelled", "rejected", "failed")
LATENCY_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # seconds
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.started = Counter("omni_turns_started", "Requests for an answer that arrived.", registry=registry)
        self.ended = Counter("omni_turns_ended", "Turns by how they ended.", ["outcome"], registry=registry)
        self.errors = Counter("omni_errors", "Turns ended by an error, by its code.", ["code"], registry=registry)
        self.live = Gauge("omni_turns_live", "Turns between their arrival and their end.", registry=registry)
        self.sockets = Gauge("omni_sockets", "Open live conversations.", registry=registry)
        self.first_audio = Histogram(
            "omni_first_audio_seconds",
            "From the question's last byte to the answer's first audio sent.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.turn_seconds = Histogram(
            "omni_turn_seconds",
            "From arrival to end, of turns that ended ok.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.audio_in = Counter("omni_audio_in_seconds", "Speech received.", registry=registry)
        self.audio_out = Counter("omni_audio_out_seconds", "Speech sent.", registry=registry)
        self.bytes_in = Counter("omni_received_bytes", "Bytes of request bodies.", registry=registry)
        self.bytes_out = Counter("omni_sent_bytes", "Bytes of response bodies of turns.", registry=registry)
        self.tokens = Counter("omni_tokens", "Text tokens of finished answers.", registry=registry)
        self.units = Counter("omni_units", "Speech units of finished answers.", registry=registry)
        self.workers = Gauge("omni_workers", "Workers that serve, by kind.", ["kind"], registry=registry)
        self.ready = Gauge("omni_ready", "1 while turns are answered.", registry=registry)
        for outcome in OUTCOMES:
            self.ended.labels(outcome)  # a counter that stands at 0 can be watched; one that is missing cannot

    def text(self) -> bytes:
        return generate_latest(self.registry)
