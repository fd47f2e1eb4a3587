"""How fast something may come: a burst, and after it a rate. Decides only; the time is passed in.

allowance = Allowance(burst=60.0, rate=1.25)      # seconds of sound, and seconds of sound a second
allowance.take(0.02, now)                         # False: too much, nothing is taken
"""


class Allowance:
    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._left = burst
        self._then: float | None = None

    def take(self, amount: float, now: float) -> bool:
        if self._then is not None:
            self._left = min(self._burst, self._left + self._rate * (now - self._then))
        self._then = now
        if amount > self._left:
            return False
        self._left -= amount
        return True
