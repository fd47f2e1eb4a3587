"""What a unit decoder says while it learns can be listened to, beside what it should say."""

import numpy as np
import pytest
import tone_voice
import torch
from test_killed import write_states
from test_vocoder import SHAPE

from omni import cli
from omni.audio import wav
from omni.model.config import BlockConfig, RopeConfig
from omni.model.unit_decoder import UnitDecoder
from omni.train.base_llm import write_tiny
from omni.train.listening import Listening, ListeningError
from omni.train.stage2 import Spoken
from omni.vocoder import checkpoint
from omni.vocoder.code_hifigan import CodeHiFiGAN
from omni.vocoder.render import offline


@pytest.fixture
def vocoder(tmp_path):
    torch.manual_seed(0)
    config = SHAPE | {"num_embeddings": 8}
    checkpoint.save(CodeHiFiGAN(config), config, tmp_path / "vocoder")
    return tmp_path / "vocoder"


def samples(path):
    return wav.read(path, allow_silence=True)


def test_answers_are_written_as_the_vocoder_speaks_their_units(vocoder, tmp_path):
    decoder = UnitDecoder(BlockConfig(1, 32, 2, 2, 16, 64, 1e-5, RopeConfig()), 16, num_units=8, upsample=4)
    answer = Spoken("Two words.", torch.randn(3, 16), [1, 2, 3], None)
    listen = Listening(vocoder, tmp_path, [answer], blank=8)
    assert (tmp_path / "samples" / "0.txt").read_text() == "Two words.\n"
    model = checkpoint.load(vocoder)
    np.testing.assert_allclose(samples(tmp_path / "samples/recorded/0.wav"), offline(model, [1, 2, 3]), atol=1e-4)
    decoder.output_proj.weight.data.zero_()  # every position says the same unit
    decoder.output_proj.bias.data = torch.nn.functional.one_hot(torch.tensor(5), 9).float()
    listen(decoder, step=20)
    np.testing.assert_allclose(samples(tmp_path / "samples/00000020/0.wav"), offline(model, [5]), atol=1e-4)


def test_a_decoder_that_says_nothing_yet_leaves_an_empty_file(vocoder, tmp_path):
    decoder = UnitDecoder(BlockConfig(1, 32, 2, 2, 16, 64, 1e-5, RopeConfig()), 16, num_units=8, upsample=4)
    decoder.output_proj.weight.data.zero_()
    decoder.output_proj.bias.data = torch.nn.functional.one_hot(torch.tensor(8), 9).float()  # the blank
    Listening(vocoder, tmp_path, [Spoken("Hm.", torch.randn(3, 16), [1], None)], blank=8)(decoder, step=1)
    assert (tmp_path / "samples/00000001/0.wav").stat().st_size == 44


def test_a_vocoder_of_other_units_is_refused(vocoder, tmp_path):
    with pytest.raises(ListeningError, match="speaks 8 units; this voice has 9"):
        Listening(vocoder, tmp_path, [], blank=9)


def test_stage_2_leaves_samples_of_held_out_answers(tmp_path, monkeypatch, capsys):
    write_states(tmp_path / "states", tone_voice.write(tmp_path / "voice", ["abc defg h", "hgf edc ba", "ad cf"]))
    write_tiny(tmp_path / "llm")
    torch.manual_seed(0)
    for name, num_units in (("vocoder", len(tone_voice.LETTERS)), ("other", 5)):
        config = SHAPE | {"num_embeddings": num_units}
        checkpoint.save(CodeHiFiGAN(config), config, tmp_path / name)

    def run(vocoder: str) -> int:
        argv = ["train", "stage2", "train", "--states", str(tmp_path / "states"), "--voice", str(tmp_path / "voice"),
                "--llm", str(tmp_path / "llm"), "--shape", "(1,32,2,64)", "--batch", "2", "--heldout", "1", "--steps",
                "4", "--listen-every", "2", "--output", str(tmp_path / "out"), "--vocoder",
                str(tmp_path / vocoder)]  # fmt: skip
        monkeypatch.setattr("sys.argv", ["omni", *argv])
        return cli.main(argv)

    assert run("other") == 2
    assert "speaks 5 units; this voice has 9" in capsys.readouterr().err
    assert run("vocoder") == 0
    assert (tmp_path / "out" / "samples" / "0.txt").read_text() == "ad cf\n"
    found = {str(path.relative_to(tmp_path / "out")) for path in tmp_path.rglob("samples/*/*.wav")}
    assert found == {f"samples/{name}/0.wav" for name in ("recorded", "00000002", "00000004")}
