"""Progress on stderr: one line that is redrawn on a terminal, a line every few seconds elsewhere."""

import sys
import time

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_REDRAWS = 0.1


class Progress:
    """Counts bytes towards a known total."""

    def __init__(self, what: str, total_bytes: int, stream=None):
        self.what = what
        self.total_bytes = total_bytes
        self.stream = stream = stream or sys.stderr
        self.done_bytes = 0
        self._before = 0
        self._started = self._shown = time.monotonic()
        self._pause = SECONDS_BETWEEN_REDRAWS if stream.isatty() else SECONDS_BETWEEN_LINES

    def resume(self, count: int) -> None:
        """Count bytes that were there before. The rate is that of what is made from now on."""
        if count:
            self.done_bytes += count
            self._before, self._started = self.done_bytes, time.monotonic()
            self.note(f"going on at {100 * self.done_bytes / self.total_bytes:.0f} %")

    def note(self, text: str) -> None:
        """Say what happens meanwhile."""
        self._show(f"{self.what}: {text}")

    def advance(self, count: int) -> None:
        self.done_bytes += count
        now = time.monotonic()
        if now - self._shown >= self._pause:
            self._shown = now
            rate = (self.done_bytes - self._before) / (now - self._started)
            left = (self.total_bytes - self.done_bytes) / rate if rate else 0.0
            share = 100 * self.done_bytes / max(self.total_bytes, 1)
            self._show(f"{self.what}: {share:3.0f} %, {rate / 1e6:.0f} MB/s, {left:.0f} s left")

    def finish(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        made = self.done_bytes - self._before
        rate = made / seconds / 1e6
        self._show(f"{self.what}: {made / 1e6:.1f} MB in {seconds:.1f} s ({rate:.0f} MB/s)")
        if self.stream.isatty():
            self.stream.write("\n")

    def _show(self, line: str) -> None:
        self.stream.write(f"\r{line}\x1b[K" if self.stream.isatty() else f"{line}\n")
        self.stream.flush()
