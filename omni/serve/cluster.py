"""The workers as the controller sees them: one object to generate, vocode and describe.

`Cluster` is what a `Turn` needs; `RayCluster` has it over two Ray Serve deployments. Tests put fakes in its place.
Knows nothing of turns' rules (turn.py) and nothing of HTTP.
"""

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

from omni.serve.protocol import ReadRequest, Tokens, TurnRequest
from omni.vocoder.streaming import Chunk, ChunkReply

Kind = Literal["model", "vocoder"]


class Cluster(Protocol):
    """Everything raised is an `errors.OmniError`: WorkerLost where another worker may do better."""

    def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        """Answer the turn at the least loaded model worker. Closing the iterator frees the worker's slot."""
        ...

    async def read(self, request: ReadRequest) -> str:
        """Have a model worker read what a question will come after; who did. Cancelling it ends the reading."""
        ...

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        """Vocode one chunk at the least loaded vocoder worker; batched there with chunks of other turns."""
        ...

    def suspect(self, kind: Kind, turn_id: str) -> bool:
        """The worker that has this turn is silent: prefer others for a while. False: no worker had taken it yet."""
        ...

    async def describe(self) -> dict[str, Any]:
        """The state behind /v1/cluster.

        {"workers": [{"kind": "model" | "vocoder", "id": str, "node": str, "pid": int, "state": "ready" | "silent",
                      "slots": int, "running": int, "waiting": int, "answered": int, "read": int (ahead)}, …],
         "wanted": {"model": int, "vocoder": int}}
        """
        ...

    def ready(self) -> bool:
        """At least one model worker and one vocoder worker take turns."""
        ...
