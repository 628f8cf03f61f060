"""How far a long command has come."""

from __future__ import annotations

import shutil
import sys
import time


class Progress:
    """A bar that redraws itself on a terminal; elsewhere a line for every tenth of the way."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.terminal = sys.stdout.isatty()
        self.tenths = 0

    def show(self, done: float, text: str) -> None:
        """A share of the way that is done, from 0 to 1, and what is at hand."""
        left = (time.perf_counter() - self.begin) * (1 - done) / done if done > 0 else 0.0
        if self.terminal:
            line = f"[{'#' * round(24 * done):24}] {text}, {left:.0f} s left"
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\033[K", end="", flush=True)
        elif int(10 * done) > self.tenths:
            self.tenths = int(10 * done)
            print(f"{10 * self.tenths:3d} % {text}, {left:.0f} s left", flush=True)

    def end(self) -> None:
        """Clear the line for what is printed next."""
        if self.terminal:
            print("\r\033[K", end="", flush=True)
