"""Trackio: ``pip install trackio``. Everything stays on this machine, and ``trackio show`` opens the dashboard.

    trainer.callbacks = [Trackio(project="digits")]
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from .base import About, Tracker


class Trackio(Tracker):
    """Sends to a run of Trackio; ``self.run`` is that run, for what you want to log yourself.

    Args:
        project: that the run is in.
        init: further arguments of ``trackio.init`` (space_id, group, …).
    """

    package = "trackio"

    def __init__(self, project: str = "default", save_checkpoints: bool = False, save_code: bool = False,
                 **init: Any) -> None:
        super().__init__(save_checkpoints, save_code)
        self.project = project
        self.init = init

    def start(self, about: About, id: str | None) -> str:
        import trackio  # type: ignore  # optional

        options = {"embed": False, "config": about.config, **self.init}
        name = options.pop("name", about.name)
        id = id or f"{name}-{secrets.token_hex(2)}"  # a name stands for one run
        self.run = trackio.init(project=self.project, name=id, resume="allow", **options)
        return id

    def received(self, sent: int) -> int:
        """Each point is a row of the database on this machine. A Space, or a server, is not asked."""
        if not self.run._is_local:
            return sent
        from trackio.sqlite_storage import SQLiteStorage  # type: ignore  # optional

        return SQLiteStorage.get_log_count(self.project, self.run.name, run_id=self.run.id)

    def scalars(self, values: dict[str, float], update: int, epoch: int, time: float) -> None:
        self.run.log({**values, "epoch": epoch}, step=update)

    def picture(self, name: str, png: Path, update: int, epoch: int) -> None:
        import trackio

        self.run.log({name: trackio.Image(str(png)), "epoch": epoch}, step=update)

    def text(self, name: str, text: str, update: int, epoch: int) -> None:
        import trackio

        self.run.log({name: trackio.Markdown(f"```\n{text}\n```"), "epoch": epoch}, step=update)

    def file(self, path: Path, kind: str) -> None:
        import trackio

        artifact = trackio.Artifact(f"{kind}-{self.run.name}", type=kind)
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        self.run.finish()
