"""What a process does while a server does not answer: it stops asking, and says so now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from redis_batches.core.errors import Unanswered


class Breaker:
    """Lets attempts fail at once while a server is known not to answer.

    An attempt that failed slowly opens it. After a pause, which doubles each time, one attempt is
    let through: if it does well, or fails quickly, all others are let through again.

    Args:
        server: What is asked, for the error.
        slow: Seconds; who fails sooner than that keeps nobody waiting.
        pause: Seconds to the first attempt after it opened.
        longest: Seconds between two attempts, at most.
        followers: Breakers before the same server, which open and close with this one.
        clock: Returns seconds; it must never go back.
    """

    def __init__(
        self,
        server: str,
        *,
        slow: float,
        pause: float,
        longest: float,
        followers: tuple[Breaker, ...] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._server = server
        self._slow = slow
        self._first, self._longest = pause, longest
        self._followers = followers
        self._clock = clock
        #: 0.0 while it is closed.
        self._pause = 0.0
        self._until = 0.0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Guards a block.

        Raises:
            Unanswered: It is open; nothing was tried.
        """
        began = self._clock()
        if self._pause:
            if began < self._until:
                raise Unanswered(self._server, self._until - began)
            # Who comes while this attempt is made does not wait for the server, too.
            self._until = began + self._pause
        try:
            yield
        except Exception:
            if self._clock() - began >= self._slow:
                self._open()
            else:
                self._close()
            raise
        self._close()

    def _open(self) -> None:
        self._pause = min(2 * self._pause or self._first, self._longest)
        self._until = self._clock() + self._pause
        for follower in self._followers:
            follower._open()

    def _close(self) -> None:
        if self._pause:
            self._pause = 0.0
        for follower in self._followers:
            follower._close()


class Quiet:
    """Says when a line may be logged again: once a minute for each cause.

    Args:
        clock: Returns seconds; it must never go back.
    """

    #: Seconds between two lines.
    PAUSE = 60.0
    #: Causes that are remembered.
    MOST = 1000

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def may_say(self, cause: str) -> bool:
        """Returns whether nothing was said of this cause for a minute; notes that it is now."""
        now = self._clock()
        if now - self._said.get(cause, -self.PAUSE) < self.PAUSE:
            return False
        if len(self._said) >= self.MOST:
            self._said.clear()
        self._said[cause] = now
        return True
