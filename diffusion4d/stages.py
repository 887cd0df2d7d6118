"""The stages of a run by name: how far each has come, and how long it took."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

Progress = Callable[[int, int], None]
"""Called with (units done, units in all)."""


class Stages:
    """Times stages, and tells whoever listens how far they are.

    Args:
        report: called as `report(stage, done, total)`, with done = 0 when a stage begins and done = total at its end.
        say: called with a line that the user should read before what follows, such as the memory it will take.

    Attributes:
        seconds: by the name of each finished stage, in the order they ran.
    """

    def __init__(
        self,
        report: Callable[[str, int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._report = report
        self._say = say
        self.seconds: dict[str, float] = {}

    def say(self, line: str) -> None:
        """Tell whoever listens."""
        if self._say is not None:
            self._say(line)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Run a stage. Yields what a stage of several units may call after each of them."""
        total_seen = 1

        def progress(done: int, total: int) -> None:
            nonlocal total_seen
            total_seen = total
            if self._report is not None:
                self._report(name, done, total)

        since = time.perf_counter()
        progress(0, 1)
        yield progress
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - since
        self.seconds[name] = round(spent, 3)
        progress(total_seen, total_seen)


def bars_with_notes() -> "rich.progress.Progress":
    """Bars of a training run: each task has a field `note`, such as its last loss."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
