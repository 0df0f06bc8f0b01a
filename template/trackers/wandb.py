"""Weights & Biases: ``pip install wandb``, and ``wandb login`` once.

    trainer.callbacks = [Wandb(project="digits")]

Without a key, or with ``mode="offline"``, everything is written to the folder ``wandb/``, and ``wandb sync`` sends it later.
"""

from __future__ import annotations

import html
import json
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .base import About, Tracker

_BLOCK = 32768  # bytes, of the file of an offline run


class Wandb(Tracker):
    """Sends to a run of wandb; ``self.run`` is that run, for what you want to log yourself.

    Args:
        project: that the run is in; None: wandb's own choice.
        mode: "online", "offline" or "disabled"; None: what ``WANDB_MODE`` says, else "online" where there is a key.
        init: further arguments of ``wandb.init`` (entity, group, tags, …).
    """

    package = "wandb"

    def __init__(self, project: str | None = None, mode: str | None = None, save_checkpoints: bool = False,
                 save_code: bool = False, **init: Any) -> None:
        super().__init__(save_checkpoints, save_code)
        self.project = project
        self.mode = mode
        self.init = init

    def start(self, about: About, id: str | None) -> str:
        import wandb  # type: ignore  # optional

        mode = self.mode or os.environ.get("WANDB_MODE")
        options = {"project": self.project, "name": about.name, "config": about.config, "resume": "allow", **self.init}
        settings = wandb.Settings(console="off") if "settings" not in options else options.pop("settings")
        if mode is None and not _has_key():
            mode = "offline"
            self.note("There is no key of wandb, so the run is offline. wandb login, and then wandb sync, sends it.")
        options |= {"id": id or options.get("id") or secrets.token_hex(4), "reinit": "create_new", "settings": settings}
        try:
            self.run = wandb.init(mode=mode, **options)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, TimeoutError) as error:
            self.note(f"{str(error).strip()[:300]} The run is offline; wandb sync sends it.")
            self.run = wandb.init(mode="offline", **options)
        self.run.define_metric("update", hidden=True)
        self.run.define_metric("epoch", hidden=True)
        for names, step in (("train/*", "update"), ("lr", "update"), ("lr/*", "update"), ("eval/*", "update"),
                            ("epoch/*", "epoch"), ("best/*", "epoch")):
            self.run.define_metric(names, step_metric=step)
        return self.run.id

    def received(self, sent: int) -> int:
        """Each point is a step of wandb's, numbered from 0 on: an online run says at which it goes on, and the files of an
        offline one are read."""
        if not self.run.offline:
            return self.run.starting_step
        folder = Path(self.run.dir).parent
        files = [file for file in folder.parent.glob(f"*run-*-{self.id}/run-{self.id}.wandb") if file.parent != folder]
        return 1 + max((step for file in files for step in _steps(file)), default=-1)

    def scalars(self, values: dict[str, float], update: int, epoch: int, time: float) -> None:
        self._log(values, update, epoch)

    def picture(self, name: str, png: Path, update: int, epoch: int) -> None:
        import wandb

        self._log({name: wandb.Image(str(png))}, update, epoch)

    def text(self, name: str, text: str, update: int, epoch: int) -> None:
        import wandb

        self._log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>")}, update, epoch)

    def _log(self, values, update, epoch):
        self.run.log({**values, "update": update, "epoch": epoch}, step=self.number, commit=True)

    def file(self, path: Path, kind: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind)
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        self.run.finish(exit_code=1 if status == "failed" else 0)


def _has_key():
    import wandb

    try:
        return wandb.login(prompt=False)
    except TypeError:  # before wandb 0.30
        return bool(wandb.api.api_key)


def _steps(path: Path) -> Iterator[int]:
    """The steps that are in the file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore  # optional

    for content in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        yield from (json.loads(item.value_json) for item in record.history.item
                    if "_step" in (item.key, *item.nested_key))


def _records(data: bytes) -> Iterator[bytes]:
    """Of a file in blocks, up to the last one that is complete.

    Source: the log format of LevelDB, https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0 or place + 7 + length > len(data):
            return
        whole = (b"" if kind in (1, 2) else whole) + data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
