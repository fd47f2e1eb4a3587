"""Where the time goes: attributes of any objects wrapped so that each call's time is booked under a stage.

    watch = Stopwatch(device)
    with watch.on((omni, "mel", "mel"), (omni, "encoder", "encode")):
        ...
    watch.seconds, watch.calls          # by stage

A stage inside another is not counted twice: the outer one gets what the inner one leaves. On a GPU every stage begins
and ends with waiting for the device, so that total times are to be taken without a stopwatch.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner: list[float] = []  # seconds of the stages inside each open one

    @contextmanager
    def on(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """(object, attribute, stage): an attribute that is not there is left out."""
        found = [place for place in places if hasattr(place[0], place[1])]
        olds = [(owner, name, vars(owner).get(name, _MISSING)) for owner, name, _ in found]
        for owner, name, stage in found:
            # straight into the dict: torch's modules refuse anything but a module in a module's place
            vars(owner)[name] = _Timed(self, getattr(owner, name), stage)
        try:
            yield
        finally:
            for owner, name, old in olds:
                if old is _MISSING:
                    del vars(owner)[name]
                else:
                    vars(owner)[name] = old

    def call(self, stage: str, function: Any, args: tuple, kwargs: dict) -> Any:
        self._wait()
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            return function(*args, **kwargs)
        finally:
            self._wait()
            spent = time.perf_counter() - started
            self.seconds[stage] += spent - self._inner.pop()
            self.calls[stage] += 1
            if self._inner:
                self._inner[-1] += spent

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_MISSING = object()


class _Timed:
    """Called, it is timed; looked into, it is the original."""

    def __init__(self, watch: Stopwatch, original: Any, stage: str) -> None:
        self._watch, self._original, self._stage = watch, original, stage

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch.call(self._stage, self._original, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
