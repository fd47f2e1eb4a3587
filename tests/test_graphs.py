"""Around recorded graphs: shapes are counted, and shapes that a GPU refuses run as they are. Recording needs a GPU."""

import pytest
import torch

from omni import graphs
from omni.graphs import Graphs

CPU = torch.device("cpu")


def twice(shape: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    assert x.shape == (shape,)
    return x * 2, x.sum()[None]


class FakeGraph:
    """As _Graph on a GPU: own inputs, the function run once on them, outputs in the room that all shapes share."""

    refused: tuple[int, ...] = ()
    recorded = 0

    def __init__(self, run, fed, room, pool) -> None:
        if len(fed[0]) in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.run, self.fed, self.room = run, fed, room
        self.given = room(run())
        FakeGraph.recorded += 1

    def __call__(self, *fed):
        for own, each in zip(self.fed, fed, strict=True):
            own.copy_(each)
        for place, each in zip(self.given, self.run(), strict=True):
            place.copy_(each)
        return self.given


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def recording(monkeypatch) -> Graphs:
    monkeypatch.setattr(graphs, "_Graph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "recorded", 0)
    made = Graphs(twice, CPU, record=False)
    made.recording = True
    return made


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)


def test_without_recording_the_function_runs_as_it_is():
    plain = Graphs(twice, CPU, record=False)
    doubled, total = plain(3, values(1, 2, 3))
    assert doubled.tolist() == [2, 4, 6] and total.tolist() == [6]
    plain.warm_up({2: [values(1, 2)], 3: [values(1, 2, 3)]}, "twice")
    assert list(plain.shapes) == [3, 2]


def test_each_shape_is_recorded_once_and_fed_anew(recording):
    """What a shape was recorded with does not stick; outputs of all shapes lie in the same memory."""
    recording.warm_up({3: [values(0, 0, 0)], 2: [values(0, 0)]}, "twice")
    for _ in range(2):
        doubled, total = recording(3, values(1, 2, 3))
        assert doubled.tolist() == [2, 4, 6] and total.tolist() == [6]
        smaller, _ = recording(2, values(5, 6))
        assert smaller.tolist() == [10, 12]
        assert smaller.data_ptr() == doubled.data_ptr()
    assert FakeGraph.recorded == 2


def test_a_shape_that_cannot_be_recorded_runs_as_it_is(recording, monkeypatch, caplog):
    """And so does what comes after it; what was recorded before goes on being replayed."""
    monkeypatch.setattr(FakeGraph, "refused", (2,))
    recording.warm_up({each: [torch.zeros(each)] for each in (3, 2, 1)}, "twice")
    assert not recording.recording and FakeGraph.recorded == 1
    assert "shape 2 cannot be recorded" in caplog.text
    assert [recording(each, torch.ones(each))[0].tolist() for each in (3, 2, 1)] == [[2, 2, 2], [2, 2], [2]]


def test_only_a_gpu_records():
    with pytest.raises(AssertionError, match="only a CUDA device"):
        Graphs(twice, CPU, record=True)
