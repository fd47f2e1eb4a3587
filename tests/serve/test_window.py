"""Which turns leave a session's memory."""

import pytest
from fake_cluster import config

from omni.serve.window import BASE_POSITIONS, TEMPLATE_POSITIONS, Size, Window

WINDOW = Window(positions=1000 + BASE_POSITIONS, seconds=60, turns=10, keep=0.5)


def test_nothing_leaves_within_the_limits():
    assert WINDOW.overflow(Size(), [Size(100, 6)] * 10) == 0


@pytest.mark.parametrize(
    ("turns", "leaving"),
    [
        ([Size(251, 1)] * 4, 3),  # positions: 1004 of 1000, then at most half of them
        ([Size(1, 13)] * 5, 3),  # seconds
        ([Size(1, 1)] * 11, 6),  # turns
        ([Size(900, 1), Size(200, 1)], 1),
        ([Size(100, 1), Size(2000, 1)], 1),  # the last one stays, whether it fits or not
    ],
    ids=["positions", "seconds", "turns", "one", "too much"],
)
def test_the_oldest_leave_down_to_what_is_kept(turns, leaving):
    assert WINDOW.overflow(Size(), turns) == leaving


def test_instructions_take_room_too():
    assert WINDOW.overflow(Size(800), [Size(150)] * 2) == 1
    assert not WINDOW.fits(Size(1001), [Size(1)])


def test_sizes():
    """Ten positions a second, or 300 where utterances are padded; text never too low."""
    assert WINDOW.spoken(16_001) == Size(11 + TEMPLATE_POSITIONS, 16_001 / 16_000)
    assert Window(1, 1, 1, padded=True).spoken(16_000).positions == 300 + TEMPLATE_POSITIONS
    assert WINDOW.written("né").positions == 3 + TEMPLATE_POSITIONS
    assert WINDOW.generated(7).positions == 7 + TEMPLATE_POSITIONS


def test_it_is_read_from_the_configuration(tmp_path):
    """The slot's positions less the longest answer's; the checkpoint's own defaults."""
    settings = config(tmp_path, max_new_tokens=48, window_seconds=20, window_turns=3, window_keep=0.7)
    assert Window.of(settings) == Window(2000, 20, 3, 0.7, padded=True)
