"""Count the weights that a merge has changed, for a progress display."""

from __future__ import annotations

from dataclasses import dataclass

from nola_codec.progress import Progress


@dataclass
class WeightCounter:
    """Counts weights over all components of a pipeline, and tells the caller's progress function.

    Attributes:
        progress: Called as (stage, done, total), or None.
        stage: The name of the stage.
        total: The number of weights in all.
        done: The number of weights so far.
    """

    progress: Progress | None
    stage: str
    total: int = 0
    done: int = 0

    def count(self, weights: int = 1) -> None:
        """Count weights that are done: one, or all those of an earlier run that was killed."""
        self.done += weights
        if self.progress is not None:
            self.progress(self.stage, self.done, self.total)
