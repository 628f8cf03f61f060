"""Progress of a long command, shown by tqdm."""

from __future__ import annotations

import math
import sys

from tqdm.auto import tqdm


class _Lines:
    """A stream that prints each state of tqdm's bar on a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip("\r\n").rstrip(), flush=True)

    def flush(self) -> None:
        pass


class Progress(tqdm):  # type: ignore[type-arg]
    """A bar in a terminal or a notebook; in a log file a line for each tenth of the work."""

    def __init__(self) -> None:
        if sys.stdout.isatty() or "ipykernel" in sys.modules:
            layout = "{l_bar}{bar:24}| {remaining} left"
            super().__init__(total=100, file=sys.stdout, leave=False, smoothing=0, bar_format=layout)
        else:
            layout = "{percentage:3.0f} % {desc}{remaining} left"
            super().__init__(
                total=100,
                file=_Lines(),
                leave=False,
                smoothing=0,
                bar_format=layout,
                miniters=10,
                mininterval=0,
                maxinterval=math.inf,
                delay=1e-9,  # no line for 0 %
            )

    def show(self, done: float, text: str) -> None:
        """Show the fraction of the work that is done, from 0 to 1, and what is being done."""
        self.set_description_str(f"{text}, " if self.delay else text, refresh=False)
        self.update(int(100 * done + 1e-9) - self.n)
