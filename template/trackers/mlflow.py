"""MLflow: ``pip install mlflow``. ``mlflow ui`` in the same folder opens the dashboard.

    trainer.callbacks = [MLflow(experiment="digits")]

Without ``tracking_uri`` and ``MLFLOW_TRACKING_URI`` everything is in ``mlflow.db`` and ``mlruns/`` of the working directory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..output.named_values import flat
from .base import About, Tracker, x_of

_STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_MOST_PARAMS = 100   # that one call takes
_MOST_LETTERS = 6000  # of a parameter


class MLflow(Tracker):
    """Sends to a run of MLflow: ``mlflow.tracking.MlflowClient().get_run(self.id)``.

    Args:
        experiment: that the run is in; it is made if it is not there.
        tracking_uri: of the store or the server; None: MLflow's own choice.
        tags: of the run.
    """

    package = "mlflow"

    def __init__(self, experiment: str = "Default", tracking_uri: str | None = None, tags: dict[str, Any] | None = None,
                 save_checkpoints: bool = False, save_code: bool = False) -> None:
        super().__init__(save_checkpoints, save_code)
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.tags = tags

    def start(self, about: About, id: str | None) -> str:
        from mlflow import MlflowClient  # type: ignore  # optional
        from mlflow.entities import Param  # type: ignore  # optional

        self.run = client = MlflowClient(self.tracking_uri)
        if id is None:
            found = client.get_experiment_by_name(self.experiment)
            place = found.experiment_id if found else client.create_experiment(self.experiment)
            id = client.create_run(place, run_name=about.name, tags=self.tags).info.run_id
        else:
            client.update_run(id, status="RUNNING")
        there = client.get_run(id).data.params
        config = {_legal(name): str(value)[:_MOST_LETTERS] for name, value in flat(about.config)}
        new = [Param(name, value) for name, value in config.items() if name not in there]
        for start in range(0, len(new), _MOST_PARAMS):
            client.log_batch(id, params=new[start:start + _MOST_PARAMS])
        for name, value in config.items():  # a parameter cannot be changed, a tag can
            if name in there and there[name] != value:
                client.set_tag(id, f"changed.{name}", value)
        return id

    def received(self, sent: int) -> int:
        """A call returns when its point is in the store; the last one may be there without having returned."""
        self.known = {metric.key: metric.step for metric in self.run.get_run(self.id).data._metric_objs}
        return sent

    def scalars(self, values: dict[str, float], update: int, epoch: int, time: float) -> None:
        from mlflow.entities import Metric

        self.run.log_batch(self.id, metrics=[Metric(_legal(name), value, int(time * 1000), x_of(name, update, epoch))
                                             for name, value in values.items()])

    def picture(self, name: str, png: Path, update: int, epoch: int) -> None:
        self.run.log_artifact(self.id, str(png), f"pictures/{_legal(name)}/{update:09d}")

    def text(self, name: str, text: str, update: int, epoch: int) -> None:
        self.run.log_text(self.id, text, f"texts/{_legal(name)}/{update:09d}.txt")

    def file(self, path: Path, kind: str) -> None:
        self.run.log_artifact(self.id, str(path), kind)

    def finish(self, status: str) -> None:
        self.run.set_terminated(self.id, _STATES[status])


def _legal(name):
    """As MLflow takes it: "acc@1" becomes "acc_1"."""
    return re.sub(r"[^\w\-. /]", "_", str(name))[:250]
