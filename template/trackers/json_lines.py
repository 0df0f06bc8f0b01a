"""``numbers.jsonl`` in the run's folder: a line for each point, and no tracker at all.

    trainer.callbacks = [JsonLines()]

    {"update": 5, "epoch": 1, "time": 1795788280.25, "train/tol_loss": 0.7, "lr": 0.001}

``pandas.read_json("check_point/<run>/numbers.jsonl", lines=True)`` reads it. A resumed run cuts it back to its checkpoint.
"""

from __future__ import annotations

from .base import Tracker


class JsonLines(Tracker):
    """Writes each point when it comes. A picture is named, with its file."""

    cuts = True

    def __init__(self) -> None:
        super().__init__()

    def _file_name(self, model):
        return "numbers.jsonl"
