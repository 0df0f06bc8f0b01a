"""A row per epoch in ``history.csv``, and the curves in ``history.png``.

    epoch,global_step,train/tol_loss,eval/tol_loss,eval/acc,lr,seconds

The png needs matplotlib (``pip install matplotlib``); without it the csv is all.
"""

from __future__ import annotations

import csv
import io
import time
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..output.run_folder import replace_file, told_when_it_fails

if TYPE_CHECKING:
    from ..template import TemplateModel

_PNG_EVERY_SECONDS = 30.0


class History(Callback):
    """Writes each row when its epoch is over; a resumed run goes on behind the last row of its checkpoint.

    Args:
        png: draw ``history.png``, at most every 30 s and at the end.
    """

    def __init__(self, png: bool = True) -> None:
        self.png = png
        self.rows: list[dict[str, Any]] = []
        self._row: dict[str, Any] | None = None  # of the epoch that is trained but not written
        self._is_on_disk = True
        self._started = 0.0
        self._drawn = 0.0

    def on_train_start(self, model: TemplateModel) -> None:
        self._finish_row(model)  # of an epoch that was not evaluated
        self._started = time.perf_counter()

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        self._row = {"epoch": model.epoch, "global_step": model.global_step}
        self._row |= {f"train/{name}": value for name, value in result.items()}
        self._row["lr"] = float(model.optimizer_list[0].param_groups[0]["lr"])  # a tensor would change
        self._row["seconds"] = round(time.perf_counter() - self._started, 3)

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        row = self._row or next((row for row in self.rows if row["epoch"] == model.epoch), None)
        if row is None:  # an evaluation before any training
            return
        row |= {f"eval/{name}": value for name, value in result.items() if isinstance(value, float)}
        self._row = row
        self._finish_row(model)

    def on_exit(self, model: TemplateModel) -> None:
        self._finish_row(model)
        if not self._is_on_disk:
            self._write(model.path_of("history.csv"))
        if model.is_main:
            self._draw(model)

    def _finish_row(self, model):
        if self._row is None:
            return
        self.rows = [row for row in self.rows if row["epoch"] < self._row["epoch"]] + [self._row]
        self._row = None
        if not model.is_main:
            return
        self._write(model.path_of("history.csv"))
        if time.perf_counter() - self._drawn > _PNG_EVERY_SECONDS:
            self._draw(model)

    def _write(self, path):
        """The whole small table each time, renamed into place: columns that come later fit, a crash cuts no line."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        columns = [name for name in columns if name not in ("lr", "seconds")] + ["lr", "seconds"]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self._is_on_disk = False
        with told_when_it_fails(path):  # the next row, or the end, writes the whole table again
            replace_file(path, text.getvalue())
            self._is_on_disk = True

    def _draw(self, model):
        """One chart per quantity, training and evaluation in it together; a star marks each metric's best."""
        if not self.png or len(self.rows) < 2:
            return
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore  # optional
            from matplotlib.figure import Figure  # type: ignore  # optional
            from matplotlib.ticker import MaxNLocator  # type: ignore  # optional
        except ImportError:
            self.png = False
            print("history.png is not drawn: the package is missing. pip install matplotlib")
            return
        self._drawn = time.perf_counter()
        names = [name for row in self.rows for name in row if name.startswith(("train/", "eval/"))]
        quantities = list(dict.fromkeys(name.partition("/")[2] for name in names))
        figure = Figure(figsize=(5.2 * len(quantities), 3.8), layout="constrained")
        FigureCanvasAgg(figure)  # no pyplot: no display is asked for, and the user's figures stay theirs
        for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities):
            for part, color in (("train", "tab:blue"), ("eval", "tab:orange")):
                points = [(row["epoch"], row[f"{part}/{quantity}"]) for row in self.rows if f"{part}/{quantity}" in row]
                if points:
                    axes.plot(*zip(*points), label=part, color=color, marker="o", markersize=3, linewidth=1.4)
            best = model.best_epoch.get(quantity)
            if best is not None:
                axes.plot([best], [model.best_metric[quantity]], "*", color="crimson", markersize=12,
                          label=f"best {model.best_metric[quantity]:.4g} (epoch {best})")
            axes.set_title(quantity)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
        path = model.path_of("history.png")
        with told_when_it_fails(path):
            image = io.BytesIO()
            figure.savefig(image, dpi=110)
            replace_file(path, image.getvalue())

    def state_dict(self) -> dict[str, Any]:
        rows = self.rows + ([self._row] if self._row is not None else [])
        return {"rows": [dict(row) for row in rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self._row = None
