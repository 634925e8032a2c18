"""How many tokens are generated per second just now. Pure; the time is passed in."""

WINDOW_S = 10
LEAST_S = 1.0
"""What has just begun is not called infinitely fast."""


class TokenRate:
    """Tokens of the last `WINDOW_S` seconds, counted by the second that they came in."""

    def __init__(self) -> None:
        self._tokens: dict[int, float] = {}

    def add(self, tokens: int, now_s: float, over_s: float = 0.0) -> None:
        """They came just now, or one after the other within the last `over_s` seconds."""
        seconds = range(int(now_s - over_s), int(now_s) + 1)
        for second in seconds[-WINDOW_S:]:
            self._tokens[second] = self._tokens.get(second, 0.0) + tokens / len(seconds)
        self._forget(now_s)

    def per_s(self, now_s: float) -> float:
        """Over the time since the first token that counts, so that an answer that has just begun shows its speed."""
        self._forget(now_s)
        if not self._tokens:
            return 0.0
        return sum(self._tokens.values()) / max(LEAST_S, now_s - min(self._tokens))

    def _forget(self, now_s: float) -> None:
        for second in [second for second in self._tokens if second <= now_s - WINDOW_S]:
            del self._tokens[second]
