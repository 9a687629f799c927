"""Whether to ask something that may have failed for good."""

import time


class Breaker:
    """Asks always, until `max_failures` in a row had no answer; then once in `retry_after_s`, until there is one.

    One thread reports and asks.
    """

    def __init__(self, max_failures: int, retry_after_s: float) -> None:
        self._max_failures = max_failures
        self._retry_after_s = retry_after_s
        self._failures = 0
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is asked once in a while only."""
        return self._failures >= self._max_failures

    def allows(self) -> bool:
        """Whether to ask now; to be reported."""
        now = time.monotonic()
        if self.is_open and now < self._retry_at:
            return False
        self._retry_at = now + self._retry_after_s  # one whose report never comes must not be the last
        return True

    def report(self, answered: bool) -> None:
        self._failures = 0 if answered else self._failures + 1
        self._retry_at = time.monotonic() + self._retry_after_s
