"""A language model behind an endpoint hears what was asked and answered before."""

from fake_chat import serving

from omni.train.chat import Chat


def test_a_history_comes_between_the_system_text_and_the_question():
    with serving(lambda body: "No.") as fake:
        chat = Chat.named(f"openai:{fake.url}#llama")
        assert chat("Be brief.", "And now?", history=[("Is it late?", "Yes."), ("Dark?", "Yes.")]) == "No."
        assert chat("Be brief.", "And now?") == "No."
    first, second = (body["messages"] for body, _ in fake.requests)
    assert [(each["role"], each["content"]) for each in first] == [
        ("system", "Be brief."),
        ("user", "Is it late?"),
        ("assistant", "Yes."),
        ("user", "Dark?"),
        ("assistant", "Yes."),
        ("user", "And now?"),
    ]
    assert second == [first[0], first[-1]]
