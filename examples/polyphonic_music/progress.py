"""Progress of a long command, shown by tqdm."""

from __future__ import annotations

import math
import sys
from typing import Any

from tqdm.auto import tqdm


class _Lines:
    """A stream that prints each state of tqdm's bar on a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip("\r\n").rstrip(), flush=True)

    def flush(self) -> None:
        pass


class Progress(tqdm):  # type: ignore[misc]
    """A bar in a terminal or a notebook; in a log file a line for each tenth of the work."""

    def __init__(self) -> None:
        options: dict[str, Any] = {"total": 100, "leave": False, "smoothing": 0, "mininterval": 0}
        if sys.stdout.isatty() or "ipykernel" in sys.modules:
            layout = "{percentage:3.0f} %|{bar:24}| {desc}, {remaining} left"
            super().__init__(file=sys.stdout, bar_format=layout, **options)
        else:  # a delay avoids a line for 0 %
            layout = "{percentage:3.0f} % {desc}, {remaining} left"
            options |= {"miniters": 10, "maxinterval": math.inf, "delay": 1e-9}
            super().__init__(file=_Lines(), bar_format=layout, **options)

    def show(self, done: float, text: str) -> None:
        """Show the fraction of the work that is done, from 0 to 1, and a text."""
        self.set_description_str(text, refresh=False)
        self.update(int(100 * done + 1e-9) - self.n)
