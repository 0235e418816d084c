"""How often something may happen (guest floor): the keys `calls_per_second` and `calls_burst`; used by `guard`."""

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class RateLimit:
    """Allows `burst` at once and `per_second` in the long run."""

    def __init__(self, per_second: float, burst: int, clock: "Callable[[], float]" = monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left = float(burst)
        self._when = clock()

    def take(self) -> float:
        """Takes one, and gives 0; or gives in how many seconds there is one again."""
        now = self._clock()
        self._left = min(float(self._burst), self._left + (now - self._when) * self._per_second)
        self._when = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._per_second
