"""The states that the unit decoder learns from: which token they predict, and how the question was asked."""

import pytest
import torch
from tiny_ear import NUM_MELS, WIDTH, encoder

from omni.model import config, tiny
from omni.model.llm import Llama
from omni.train import answer_states, speech
from omni.train.ear import Ear, new_adaptor
from omni.train.instructions import Example


def test_tokens_end_within_their_words():
    """The byte tokenizer makes every letter a token; a space belongs to the word before it."""
    ends = answer_states.token_ends(tiny.byte_tokenizer(), "ab c")
    assert ends == [(0, 0.5), (0, 1.0), (0, 1.0), (1, 1.0)]


def test_the_states_are_those_that_predict_each_token():
    """Row i comes from the position before token i; its logits choose that token where the LLM agrees."""
    settings = config.parse(tiny.CONFIG)
    llm = Llama(settings.llm, settings.vocab_size, settings.tied_embeddings).eval()
    prompts, answers = [[5, 6, 7], [9]], [[1, 2], [3, 4, 8]]
    found = answer_states.states_of(llm, [llm.embed(torch.tensor(prompt)) for prompt in prompts], answers)
    alone = llm(llm.embed(torch.tensor([[5, 6, 7, 1]])))[0, 2:]
    torch.testing.assert_close(found[0][0].float(), alone, atol=2e-3, rtol=1e-2)
    assert [len(hidden) for hidden, _ in found] == [2, 3]
    chosen = llm.logits(alone).argmax(-1)
    assert found[0][1] == pytest.approx(float((chosen == torch.tensor([1, 2])).float().mean()))


def test_a_question_is_asked_aloud_where_a_shard_has_it(tmp_path):
    from omni.model import config
    from omni.model.llm import Llama

    settings = config.parse(tiny.CONFIG)
    llm = Llama(settings.llm, settings.vocab_size, settings.tied_embeddings).eval()
    heard_by = Ear(encoder(), new_adaptor(64, WIDTH, 1, ""))
    said = speech.Spoken(Example("Hi", "Hello.", "chitchat", "hi"), "Hi", "v", torch.randn(30, NUM_MELS).half())
    speech.write_shard(tmp_path / "v-0000.safetensors", [said])
    prompts = answer_states.Prompts(llm, tiny.byte_tokenizer(), seed=0)

    def embed(text):
        return llm.embed(torch.tensor(tiny.byte_tokenizer()(text).input_ids))

    begin, written, end = embed(answer_states.USER), embed("Hi"), embed(answer_states.ASSISTANT)
    assert prompts({"instruction": "Hi"}).equal(torch.cat((begin, written, end)))
    prompts.listen(tmp_path, heard_by)
    heard = heard_by([said.mel])[0][0].detach()
    assert prompts({"instruction": "Hi"}).equal(torch.cat((begin, heard, end)))
    assert prompts({"instruction": "Hi", "prompt": [5, 6, 7]}).equal(llm.embed(torch.tensor([5, 6, 7])))
    assert prompts({"instruction": "Bye"}).shape[0] == len(begin) + 3 + len(end)
