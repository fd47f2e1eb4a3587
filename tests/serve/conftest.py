"""One real cluster for all tests that need one: `omni up` on the tiny checkpoint, two workers of each kind.

    def test_something(up):
        httpx.get(f"{up.url}/v1/models")

It starts once per test session, and at its end nothing of it may be left: no process, no port, no file.
"""

from collections.abc import Iterator

import pytest
from up import Up, assert_gone, end_up, start_up


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = start_up(tmp_path_factory.mktemp("up"), "--silence-deadline", "3")
    try:
        yield running
    finally:
        assert end_up(running) == 0, running.log.read_text()
        assert_gone(running)
