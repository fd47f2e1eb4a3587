"""Five frames make one speech embedding; with context, an embedding also sees its neighbours."""

from dataclasses import replace

import pytest
import torch

from omni.model import config as configs
from omni.model.adaptor import Adaptor, with_tokens
from omni.model.tiny import CONFIG


def adaptor(context: int, blocks: bool = False) -> Adaptor:
    torch.manual_seed(0)
    config = configs.parse(CONFIG | ({"adaptor_blocks": "(2,64,4,96)"} if blocks else {}))
    return Adaptor(replace(config, adaptor_context=context))


@pytest.mark.parametrize("num_frames", [0, 4, 5, 9, 10, 1500])
@pytest.mark.parametrize("context", [0, 1, 2])
def test_a_rest_of_frames_is_dropped(num_frames, context):
    out = adaptor(context)(torch.randn(2, num_frames, 64))
    assert out.shape == (2, num_frames // 5, 64)


def test_published_windows_are_frames_in_order():
    frames = torch.arange(2 * 10 * 64, dtype=torch.float32).view(2, 10, 64)
    windows = adaptor(0).windows(frames)
    assert windows[1, 1].equal(torch.cat([frames[1, t] for t in range(5, 10)]))


def test_context_windows_are_neighbours_in_order_with_zeros_at_the_ends():
    frames = torch.randn(1, 20, 64)
    plain, windows = adaptor(0).windows(frames)[0], adaptor(2).windows(frames)[0]
    nothing = torch.zeros_like(plain[0])
    padded = [nothing, nothing, *plain, nothing, nothing]
    for i, window in enumerate(windows):
        assert window.equal(torch.cat(padded[i : i + 5]))


@pytest.mark.parametrize("context", [0, 1, 3])
def test_an_embedding_hears_its_context_and_no_further(context):
    module = adaptor(context)
    frames = torch.randn(1, 50, 64)
    changed = frames.clone()
    changed[:, 25:30] += 1.0  # window 5
    different = (module(frames) != module(changed)).any(-1)[0].nonzero()[:, 0].tolist()
    assert different == list(range(5 - context, 5 + context + 1))


def test_with_blocks_an_embedding_hears_the_whole_row():
    module = adaptor(1, blocks=True)
    frames = torch.randn(1, 50, 64)
    changed = frames.clone()
    changed[:, 25:30] += 1.0
    assert (module(frames) != module(changed)).any(-1).all()


@torch.inference_mode()
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(context, blocks):
    """Also where what lies past a row's end is anything but zeros, and where frames are left over."""
    module, lengths = adaptor(context, blocks), [50, 5, 13, 40]
    frames = torch.randn(4, 50, 64)
    together = module(frames, torch.tensor(lengths))
    for row, length, own in zip(frames, lengths, together, strict=True):
        alone = module(row[None, : length // 5 * 5])[0]
        torch.testing.assert_close(own[: length // 5], alone, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_blocks_that_say_nothing_leave_the_plain_adaptor():
    """Training starts so: a block adds its output, which is nothing at first."""
    module = adaptor(2, blocks=True)
    for block in module.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    plain = adaptor(2)
    plain.load_state_dict({name: x for name, x in module.state_dict().items() if name.startswith("linear")})
    frames = torch.randn(2, 35, 64)
    assert module(frames).equal(plain(frames))


def test_blocks_of_another_width_than_the_llms_are_refused():
    with pytest.raises(configs.ConfigError, match="Select the LLM's width, 64"):
        configs.parse(CONFIG | {"adaptor_blocks": "(2,32,4,96)"})


def hearing_tokens(num_tokens: int = 30) -> Adaptor:
    torch.manual_seed(0)
    module = Adaptor(replace(configs.parse(CONFIG), adaptor_context=1, adaptor_tokens=num_tokens))
    tokens = module.tokens
    tokens.table.copy_(torch.randn(num_tokens + 1, 64) + 0.3)
    tokens.mean.copy_(tokens.table.mean(0))
    tokens.norms.copy_((tokens.table[:-1] - tokens.mean).norm(dim=-1))
    tokens.blank.copy_(torch.nn.functional.normalize(torch.randn(64), dim=0))
    return module


@torch.inference_mode()
def test_tokens_are_the_nearest_embeddings_without_blanks_and_repeats():
    """Against the obvious way: cosines with every centred embedding, collapsed one by one."""
    module = hearing_tokens()
    tokens = module.tokens
    said = [7, 7, 30, 7, 3, 30, 30, 12]  # 30 is the blank
    directions = torch.cat((tokens.table[:-1] - tokens.mean, tokens.blank[None]))
    x = tokens.mean + torch.nn.functional.normalize(directions[said], dim=-1) + 0.01 * torch.randn(8, 64)
    cosines = torch.nn.functional.cosine_similarity((x - tokens.mean)[:, None], directions[None], dim=-1)
    assert cosines.argmax(-1).tolist() == tokens.classes(x[None])[0].tolist() == said
    silence = tokens.table[-1]
    expected = torch.stack([*tokens.table[[7, 7, 3, 12]], silence, silence, silence, silence])
    assert tokens(x[None])[0].equal(expected)


@torch.inference_mode()
def test_tokens_of_a_ragged_batch_are_those_of_each_row_alone():
    module, lengths = hearing_tokens(), [50, 5, 13, 40]
    frames = torch.randn(4, 50, 64)
    together = module(frames, torch.tensor(lengths))
    for row, length, own in zip(frames, lengths, together, strict=True):
        alone = module(row[None, : length // 5 * 5])[0]
        assert own[: length // 5].equal(alone)


def test_an_adaptors_token_ids_become_the_llms_embeddings():
    embeddings = torch.randn(10, 4)
    adaptor = with_tokens({"linear1.bias": torch.ones(3), "tokens.ids": torch.tensor([7, 2, 5])}, embeddings)
    assert adaptor["tokens.table"].equal(embeddings[[7, 2, 5]])
    torch.testing.assert_close(adaptor["tokens.norms"], (embeddings[[7, 2]] - embeddings.mean(0)).norm(dim=-1))
    assert with_tokens({"linear1.bias": torch.ones(3)}, embeddings).keys() == {"linear1.bias"}
