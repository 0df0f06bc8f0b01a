"""SwanLab: ``pip install swanlab``, and ``swanlab login`` once.

    trainer.callbacks = [SwanLab(project="digits")]

Without a key, or with ``mode="offline"``, everything is written to the folder ``swanlog/``, and ``swanlab sync`` sends it
later.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from .base import About, Tracker, x_of

_HEAD = 7         # bytes
_IN_DOUBT = 2000  # points that may be in a buffer of swanlab's when a process is killed


class SwanLab(Tracker):
    """Sends to a run of SwanLab; ``self.run`` is that run, for what you want to log yourself. A process has one at a time.

    Args:
        project: that the run is in; None: the name of the working directory.
        mode: "online", "offline", "local" or "disabled"; None: what ``SWANLAB_MODE`` says, else "online" where there is a
            key.
        init: further arguments of ``swanlab.init`` (workspace, group, tags, …).
    """

    package = "swanlab"

    def __init__(self, project: str | None = None, mode: str | None = None, save_checkpoints: bool = False,
                 save_code: bool = False, **init: Any) -> None:
        super().__init__(save_checkpoints, save_code)
        self.project = project
        self.mode = mode
        self.init = init

    def start(self, about: About, id: str | None) -> str:
        import swanlab  # type: ignore  # optional

        mode = self.mode or os.environ.get("SWANLAB_MODE")
        if mode is None and not _has_key():
            mode = "offline"
            self.note("There is no key of SwanLab, so the run is offline. swanlab login, and then swanlab sync, sends it.")
        options = {"project": self.project, "name": about.name, "config": about.config, "resume": "allow", **self.init}
        self.run = swanlab.init(mode=mode, id=id or options.pop("id", None) or secrets.token_hex(10), **options)
        return self.run.id

    def received(self, sent: int) -> int:
        """What the files of an offline run hold is read; an online one says it to swanlab, which sends nothing twice."""
        folder = Path(self.run.dir)
        for file in folder.parent.glob(f"run-*-{self.id}/run-{self.id}.swanlab"):
            if file.parent != folder and self.run.mode != "online":
                for name, step in _points(file):
                    self.known[name] = max(step, self.known.get(name, -1))
        return 0 if self.run.mode != "online" else max(sent - _IN_DOUBT, 0)

    def scalars(self, values: dict[str, float], update: int, epoch: int, time: float) -> None:
        for place in {x_of(name, update, epoch) for name in values}:
            self.run.log({name: value for name, value in values.items() if x_of(name, update, epoch) == place}, step=place)

    def picture(self, name: str, png: Path, update: int, epoch: int) -> None:
        import swanlab

        self.run.log({name: swanlab.Image(str(png))}, step=update)

    def text(self, name: str, text: str, update: int, epoch: int) -> None:
        import swanlab

        self.run.log({name: swanlab.Text(text)}, step=update)

    def file(self, path: Path, kind: str) -> None:
        self.run.save(str(path), base_path=str(path.parent), policy="now")

    def finish(self, status: str) -> None:
        error = "see log.txt" if status == "failed" else None
        self.run.finish(state={"finished": "success", "stopped": "aborted", "failed": "crashed"}[status], error=error)


def _has_key():
    from swanlab import Settings

    return bool(os.environ.get("SWANLAB_API_KEY") or getattr(Settings(), "api_key", None))


def _points(path):
    """(name, step) of what the file of a run holds, up to the last one that is complete."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record  # type: ignore  # optional
    from swanlab.sdk.internal.core_python.store import DataStoreReader  # type: ignore  # optional

    reader = DataStoreReader()
    if path.stat().st_size < _HEAD:
        return
    reader.open(path)
    for content in reader:
        record = Record()
        record.ParseFromString(content)
        for kind in ("scalar", "media"):
            if record.HasField(kind):
                yield getattr(record, kind).key, getattr(record, kind).step
    reader.close()
