"""Which worker a named conversation was with."""

from omni.serve.affinity import Affinity


def test_the_last_worker_is_found():
    affinity = Affinity()
    affinity.note("talk", "w1")
    affinity.note("talk", "w2")
    assert (affinity.find("talk"), affinity.find("other")) == ("w2", "")


def test_a_conversation_without_a_name_is_not_kept():
    """Nor is one that nobody has answered."""
    affinity = Affinity()
    affinity.note("", "w1")
    affinity.note("talk", "")
    assert (affinity.find(""), affinity.find("talk")) == ("", "")


def test_those_used_longest_ago_are_forgotten():
    affinity = Affinity(max_conversations=2)
    for key in ("a", "b", "a", "c"):
        affinity.note(key, "w")
    assert [affinity.find(key) for key in "abc"] == ["w", "", "w"]
