"""Chunks gather while others are computed; an idle worker starts at once."""

import threading

from omni.serve.vocoder_worker import Gathering
from omni.vocoder.streaming import Chunk, ChunkReply


def test_what_arrives_meanwhile_is_rendered_together_and_the_first_waits_for_nobody():
    """The first chunk alone, the three that came during its rendering in one call of at most two, then the rest."""
    sizes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def render(chunks):
        sizes.append(len(chunks))
        begun.set()
        assert go_on.wait(30)
        return [ChunkReply(chunk.number, b"", ()) for chunk in chunks]

    gathering = Gathering(render, batch=2)
    replies = [gathering.put(Chunk.whole([1]))]
    assert begun.wait(30)
    replies += [gathering.put(Chunk.whole([1])) for _ in range(3)]
    go_on.set()
    assert [reply.result(30).number for reply in replies] == [0, 0, 0, 0]
    gathering.stop()
    assert sizes == [1, 2, 1] and (gathering.rendered, gathering.batches) == (4, 3)
