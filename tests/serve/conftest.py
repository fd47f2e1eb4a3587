"""A cluster for the tests: a fake one for each, and one real one for all that need it.

    async def test_something(url, cluster):       # a controller over a fake cluster, in this process
    def test_something(up):                       # `omni up` on the tiny checkpoint, two workers of each kind

The real one starts once per test session, and at its end nothing of it may be left: no process, no port, no file.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fake_cluster import FakeCluster, config, over_tcp
from fastapi import FastAPI
from up import Up, assert_gone, end_up, start_up

from omni.serve.controller import make_app


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = start_up(tmp_path_factory.mktemp("up"), "--silence-deadline", "3")
    try:
        yield running
    finally:
        assert end_up(running) == 0, running.log.read_text()
        assert_gone(running)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def app(tmp_path: Path, cluster: FakeCluster) -> FastAPI:
    return make_app(config(tmp_path), cluster)


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    async with over_tcp(app) as url:
        yield url
