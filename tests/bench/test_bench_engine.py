"""`omni bench engine`: full steps of every size, against work that is counted and a line that is measured."""

import pytest
import torch

from bench import ceilings, engine, shapes, work
from bench.ceilings import Ceilings
from omni.model.omni import Omni


def test_engine(bench):
    """1, 2 and 3 rows: one call a step, a position a row through the LLM, 25 through the unit decoder."""
    found, said = bench("engine", "--shape", "tiny", "--max-batch", "3", "--steps", "6")
    for each, rows in zip(found["batches"], (1, 2, 3), strict=True):
        assert each["rows"] == rows
        assert (each["calls_per_step"], each["text_rows_per_step"], each["unit_rows_per_step"]) == (1, rows, 25 * rows)
        assert each["tokens_per_second"] > 0 and each["step_p95"] >= each["step"] > 0
        assert each["of_line"] == pytest.approx(max(each["of_bandwidth"], each["of_products"]))
        assert each["kept_bytes"] == rows * found["batches"][0]["kept_bytes"] > 0
    assert min(found["ceilings"].values()) > 0
    assert "| rows | tokens/s |" in said and "GB/s read plus written" in said


def test_sizes():
    assert engine.sizes(1) == [1] and engine.sizes(8) == [1, 2, 4, 8] and engine.sizes(12) == [1, 2, 4, 8, 12]


def test_the_published_shapes_need_what_is_known():
    """A step of one row reads 15.0 GB of LLM in 16 bits, 0.85 of unit decoder, and 128 KiB a position of context."""
    config, encoder = shapes.published_config()
    with torch.device("meta"):
        omni = Omni(config, encoder, shapes.word_tokenizer(8))
    empty = work.decode_step(omni, 1, 0, 0, 2, 2)
    assert empty.num_bytes == pytest.approx(15.01e9 + 0.851e9, rel=0.001)
    full = work.decode_step(omni, 1, 400, 0, 2, 2)
    assert full.num_bytes - empty.num_bytes == 400 * 131_072
    # 2 FLOP a weight; the unit decoder with its first q, k, v and its input projection once a token: 18.06 GFLOP
    assert empty.flops == pytest.approx(15.01e9 + 18.06e9, rel=0.01)
    spoken = work.decode_step(omni, 1, 0, 100, 2, 2)
    assert spoken.num_bytes - empty.num_bytes == pytest.approx(100 * 416 * 1024, rel=0.001)
    assert work.decode_step(omni, 8, 0, 0, 2, 2).flops == 8 * empty.flops


def test_the_line_is_whichever_takes_longer():
    assert Ceilings(100.0, 10.0).seconds(200, 10) == 2.0 and Ceilings(100.0, 10.0).seconds(200, 50) == 5.0


def test_ceilings_are_measured(monkeypatch):
    """Small ones here, for the sake of time."""
    monkeypatch.setitem(ceilings.COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(ceilings.PRODUCT_SIZE, "cpu", 64)
    found = ceilings.measure(torch.device("cpu"), torch.float32)
    assert found.bandwidth > 1e6 and found.products > 1e6


def test_rows_are_ordered_by_the_checkpoints_own_pace(monkeypatch):
    """A unit lasts as long as its vocoder says."""
    loaded = shapes.load("tiny")
    monkeypatch.setattr(loaded.vocoder, "config", {**loaded.vocoder.config, "frames_per_unit": 4.0})
    assert engine.filled(loaded, 2, 1, "float").scheduler.config.seconds_per_unit == pytest.approx(0.08)


def test_no_memory_is_a_row_of_the_table(monkeypatch):
    """A batch that does not fit is told, and the smaller ones stand."""
    from omni.engine.sequence import OutOfMemory

    def refuse(*_: object) -> None:
        raise OutOfMemory("lower num_slots")

    monkeypatch.setattr(engine, "filled", refuse)
    loaded = shapes.load("tiny")
    limits = Ceilings(1.0, 1.0)
    found = engine.judge(engine.measure(loaded, limits, 4, 2), limits)
    assert found == {"rows": 4, "out_of_memory": True}
    told = {"batches": [found], "dtype": "float32", "weights": "float"}
    told["ceilings"] = {"copy_bytes_per_second": 1.0, "flops_per_second": 1.0}
    assert "| 4 | out of memory |" in engine.summary(loaded, told)


@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")
@pytest.mark.parametrize("weights", ["float", "int8", "fp8"])
def test_the_script_for_a_gpu_runs_in_small(bench, weights: str):
    """`--shape 8b` with one layer and an eighth of the widths, in every form of the weights: all rows, every step."""
    cut = ["--shape", "8b", "--layers", "1", "--narrow", "8", "--device", "cpu", "--dtype", "bfloat16"]
    found, printed = bench("engine", *cut, "--weights", weights, "--max-batch", "2", "--steps", "2")
    assert [each["rows"] for each in found["batches"]] == [1, 2]
    assert [each["unit_rows_per_step"] for each in found["batches"]] == [25, 50]
    assert "only 1 layers" in printed and "divided by 8" in printed and f"{weights} weights" in printed
