"""A row per epoch in ``history.csv``, and one per evaluation in the middle of an epoch; the curves in ``history.png``.

    epoch,global_step,train/tol_loss,eval/tol_loss,eval/acc,lr,seconds      # lr/<name> where there are several groups

In a loop of your own, without a ``TemplateModel``:

    history = History("history.csv")
    for epoch in range(1, 31):
        ...
        history.log({"train_loss": loss, "val_acc": acc}, epoch=epoch)
    history.close()

The png needs matplotlib (``pip install matplotlib``); without it the csv is all.

A row is appended, and a checkpoint holds the newest rows alone, with how many are before them: a run costs the same in epoch
10,000 as in epoch 1. A resumed run cuts the file back to its place, or takes the rows from the file beside its checkpoint.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.nested import loader_length
from ..hooks import Callback
from ..metrics.best import best_in_rows, key_in_rows
from ..output.csv_table import CsvTable, digest, number_in, read
from ..output.curves_process import draw
from ..output.named_values import epoch_behind, numbers_of
from ..output.run_folder import replace_file, told_when_it_fails
from ..update.lr_scheduler import rates_by_name

if TYPE_CHECKING:
    from ..template import TemplateModel

_FILE = "history.csv"
_KEY = "global_step"
_AT_THE_END = ("lr", "seconds")
_FEWEST, _MOST = 8, 24  # rows that a checkpoint holds: those before them were brought to the disk, which costs a wait
_PNG_EVERY_SECONDS = 30.0
_PNG_SHARE = 0.01  # of the time of the training, at most


class History(Callback):
    """Writes each row when its epoch is over; a resumed run goes on behind the last row of its checkpoint.

    Args:
        path: of the table in a loop of your own, "history.csv". If it is there already, its rows can be read, and ``log``
            goes on behind them. None in a ``TemplateModel``, where it lies in the folder of the run.
        png: draw ``history.png`` now and then, which takes at most 1 % of the time, and at the end.
        key: the quantity whose best value stands in the title of the png, in a loop of your own; None: the first score, else
            the first loss. A ``TemplateModel`` has ``key_metric``.
        mode: "max" or "min", whether more or less of ``key`` is better in a loop of your own; None: as its name says.

    Raises:
        ValueError: a bad argument, or ``path`` is the history of a ``TemplateModel`` or no table.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, png: bool = True, key: str | None = None,
                 mode: str | None = None) -> None:
        if mode not in (None, "max", "min"):
            raise ValueError(f"mode must be 'max', 'min' or None, got {mode!r}.")
        self.png = png
        self.key = key
        self.mode = mode
        self._newest: list[dict[str, Any]] = []      # rows, of which all before the last one are over
        self._earlier = 0                            # rows before them, which are in the file alone
        self._digest = 0                             # of those
        self._row: dict[str, Any] | None = None      # of the epoch that is trained but not written
        self._is_written = True
        self._table: Any = None
        self._started = 0.0                          # when the epoch began, on time.perf_counter's clock
        self._began: float | None = None             # when the first epoch of this process did
        self._drawn = 0.0                            # when the last picture was drawn
        self._drawing = 0.0                          # seconds that all pictures took
        self._one_drawing = 1.0                      # that one takes
        self._drawn_row: Any = None                  # the last one in the picture
        self._own = self._own_table(path)            # in a loop of your own
        self._logged: Any = None                     # the epoch of its last row
        self._row_ended = time.perf_counter()        # when that was logged

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, read from the file: ``{"epoch": 1, "global_step": 40, "train/tol_loss": 0.7, …}``."""
        earlier = self._earlier_in(self._table.path) if self._earlier and self._table else []
        read_back = [{name: number_in(cell) for name, cell in row.items()} for row in earlier]
        return read_back + [dict(row) for row in self._newest]

    # --- in a loop of your own ------------------------------------------------------------------------------------

    def log(self, values: Mapping[str, Any], epoch: float | None = None) -> None:
        """Write the row of an epoch.

        Args:
            values: a number for each name. "train_loss" and "val_loss" (also "valid_", "eval_", "test_") are the columns
                "train/loss" and "eval/loss"; "lr" is the learning rate. A name without such a beginning is taken for one of
                training.
            epoch: its number; None: one more than before. The same number again adds to the values that are there. A smaller
                one takes the place of all rows from there on, as when a training is taken up again.

        Raises:
            TypeError: a value, or ``epoch``, is no number.
            ValueError: this history has no path.
        """
        table, rows, now = self._table_to_log_in(), self._newest, time.perf_counter()
        if epoch is None and self._logged is None and rows:
            print(f"{table.path} has {len(rows)} rows already: it goes on after epoch {rows[-1]['epoch']}. Give log() the "
                  "number of the epoch, or delete the file, to begin anew.")
        epoch = epoch_behind(rows, epoch)
        row: dict[str, Any] = {"epoch": epoch} | numbers_of(values, "History")
        given_up = []
        while rows and rows[-1]["epoch"] >= epoch:
            given_up.append(rows.pop())
        if epoch == self._logged and given_up:
            row = given_up[-1] | row
        else:
            self._started = self._row_ended
        row["seconds"] = round(now - self._started, 3)
        rows.append({sys.intern(name): value for name, value in row.items()})
        self._logged, self._row_ended = epoch, now
        is_the_last = [old["epoch"] for old in given_up] in ([], [epoch])
        self._write(table, row if is_the_last else None, instead_of_last=bool(given_up))
        if self._is_time_to_draw():
            self._draw_own()

    def close(self) -> None:
        """Draw what is not drawn yet, and write what could not be written: call it behind your loop."""
        if self._logged is None:
            return
        table = self._table_to_log_in()
        if not (self._is_written and table.is_there()):
            self._write(table)
        if self._drawn_row != self._newest[-1]:
            self._draw_own()

    def _own_table(self, path):
        """The table of a loop of your own, with the rows that it has."""
        if path is None:
            return None
        if isinstance(path, bool) or Path(path).suffix.lower() != ".csv":
            raise ValueError(f"path must be the name of a table that ends in .csv, as \"history.csv\" does, got {path!r}. "
                             "To have no picture, write History(png=False).")
        table = CsvTable(path, "epoch", _AT_THE_END, is_whole=False)
        self._newest = [{sys.intern(name): number_in(cell) for name, cell in row.items()}
                        for row in read(table.path, _KEY) or table.read()]
        return table

    def _table_to_log_in(self):
        if self._own is None:
            raise ValueError("History.log() needs to know its file. In a loop of your own write "
                             "history = History(\"history.csv\"); in a TemplateModel it logs by itself.")
        if self._newest and _KEY in self._newest[-1]:
            raise ValueError(f"{self._own.path} was written by the training of a TemplateModel, whose rows can be read here "
                             "and not be continued. Give your own loop another file.")
        if self._began is None:
            self._began = self._row_ended
            with told_when_it_fails(self._own.path):
                self._own.path.parent.mkdir(parents=True, exist_ok=True)
        return self._own

    def _draw_own(self):
        key = key_in_rows(self._newest, self.key)
        best = best_in_rows(self._newest, {key: self.mode} if key and self.mode else None)
        path = self._own.path
        self._draw_picture(path.with_suffix(".png"), path.parent.resolve().name, key, best)

    # --- events ---------------------------------------------------------------------------------------------------

    def on_run_start(self, model: TemplateModel) -> None:
        if self._own is not None:
            raise ValueError(f"In a TemplateModel, history.csv lies in the folder of the run, {model.path_of('.')}. Write "
                             f"History() without the path {str(self._own.path)!r}.")

    def on_train_start(self, model: TemplateModel) -> None:
        self._finish_row(model)  # of an epoch that was not evaluated
        self._started = time.perf_counter()
        self._began = self._began or self._started

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        self._row = {"epoch": model.epoch, _KEY: model.global_step}
        self._row |= {f"train/{name}": value for name, value in result.items() if isinstance(value, float)}
        self._row |= _rates(model)
        self._row["seconds"] = round(time.perf_counter() - self._started, 3)

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        if model.lifetime.is_mid_epoch:
            row: Any = {"epoch": _place(model), _KEY: model.global_step} | _rates(model)
        else:
            row = self._row or next((dict(row) for row in self._newest if row["epoch"] == model.epoch), None)
        if row is None:  # an evaluation before any training
            return
        row |= {f"eval/{name}": float(value) for name, value in result.items() if isinstance(value, float)}
        self._row = row
        self._finish_row(model)

    def on_exit(self, model: TemplateModel) -> None:
        self._finish_row(model)
        if not model.is_main or not self._newest:
            return
        table = self._table_of(model)
        if not (self._is_written and table.is_there()):
            self._write(table)
        if self._drawn_row != self._newest[-1]:
            self._draw(model)

    # --- rows -----------------------------------------------------------------------------------------------------

    def _finish_row(self, model):
        """The row is complete; it takes the place of those that are not before it."""
        if self._row is None:
            return
        row, self._row = {sys.intern(name): value for name, value in self._row.items()}, None
        given_up = [old[_KEY] for old in self._newest if old[_KEY] >= row[_KEY]]
        self._newest[len(self._newest) - len(given_up):] = [row]
        if model.is_main:
            table = self._table_of(model)
            self._write(table, row if given_up in ([], [row[_KEY]]) else None, instead_of_last=bool(given_up))
            if self._is_time_to_draw():
                self._draw(model)
        else:
            self._is_written = True
        if self._is_written and len(self._newest) > _MOST:
            self._hold_fewer(model)

    def _write(self, table, row=None, instead_of_last=False):
        """One row if the file is as it should be for that; else all of them."""
        was_written, self._is_written = self._is_written, False
        with told_when_it_fails(table.path):  # the next row, or the end, writes all
            if row is None or not was_written or not table.append(row, instead_of_last):
                earlier = self._earlier_in(table.path) if self._earlier else []
                if row is not None and len(earlier) < self._earlier:
                    print(f"{table.path} was deleted or changed. It goes on with {len(earlier)} of the {self._earlier} rows "
                          f"before epoch {self._newest[0]['epoch']}.")
                self._write_all(table, earlier)
            self._is_written = True

    def _write_all(self, table, earlier):
        """``earlier`` and the newest rows; what would be lost of the present file, and no checkpoint holds, is kept."""
        present = table.read()
        written = {_as_text(row) for row in (*earlier, *self._newest)}
        lost = [row for row in present if _as_text(row) not in written]
        if len(lost) > _FEWEST or not present and table.has_lines():
            first = self._newest[-1 if table is self._own else 0]["epoch"]
            print(f"{table.path} is written anew from epoch {first} on. What it held is kept in {table.set_aside().name}.")
        table.replace([*earlier, *self._newest])
        self._earlier, self._digest = len(earlier), digest(earlier)

    def _earlier_in(self, path):
        """The rows of a file that are before the newest ones."""
        return [row for row in read(path, _KEY) if row[_KEY] < self._newest[0][_KEY]]

    def _hold_fewer(self, model):
        """The older ones of the newest rows are brought to the disk, and need not be in the checkpoints any more."""
        with told_when_it_fails(_FILE):
            if model.is_main:
                self._table_of(model).sync()
            older, self._newest = self._newest[:-_FEWEST], self._newest[-_FEWEST:]
            self._earlier, self._digest = self._earlier + len(older), digest(older, self._digest)

    def _table_of(self, model):
        path = model.path_of(_FILE)
        if self._table is None or self._table.path != path:
            self._table = CsvTable(path, _KEY, _AT_THE_END)
        return self._table

    # --- resume ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The newest rows, and how many are before them in the file with what they hold: see ``take_files``."""
        rows = self._newest + ([self._row] if self._row is not None else [])
        return {"rows": [dict(row) for row in rows], "earlier": self._earlier, "digest": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Before 0.2.0 a checkpoint held all rows."""
        self._newest = [{sys.intern(name): value for name, value in row.items()} for row in state["rows"]]
        self._earlier, self._digest = state.get("earlier", 0), state.get("digest", 0)
        self._row, self._is_written = None, False

    def take_files(self, model: TemplateModel, folder: Path) -> list[str]:
        """After ``load_state``: the rows of the checkpoint, whose older ones lie beside it in ``folder``, are those of the
        run.

        Returns:
            Messages about rows that are not there any more, or are not what they were.
        """
        if not model.is_main or not self._newest or self._is_written:  # as by a file without a history
            return []
        notes: list[str] = []
        with told_when_it_fails(folder / _FILE):
            earlier, notes = self._find_earlier(folder)
            self._write_all(self._table_of(model), earlier)
            self._is_written = True
        return notes

    def _find_earlier(self, folder):
        """Those that were there when the checkpoint was made, if a file has them; else what there is."""
        if not self._earlier:
            return [], []
        paths = [folder / _FILE, *sorted(folder.glob("history_kept*.csv"))]
        found = [self._earlier_in(path) for path in paths]
        for rows in found:
            if len(rows) == self._earlier and digest(rows) == self._digest:
                return rows, []
        what, rows = f"{paths[0]} was deleted or changed since this checkpoint was written", found[0]
        if len(rows) == self._earlier:
            return rows, [f"{what}: its rows stay as they are now"]
        return rows, [f"{what}: it has {len(rows)} of the {self._earlier} rows before epoch {self._newest[0]['epoch']}. "
                      "Nothing else needs them: the training goes on exactly"]

    # --- the picture ----------------------------------------------------------------------------------------------

    def _is_time_to_draw(self):
        """When the last picture is half a minute old and one more takes no more than its share of the time until now."""
        now = time.perf_counter()
        training = now - (now if self._began is None else self._began)
        return now - self._drawn > _PNG_EVERY_SECONDS and self._drawing + self._one_drawing <= _PNG_SHARE * training

    def _draw(self, model):
        path = model.path_of("history.png")
        best = {name: (epoch, model.best_metric[name]) for name, epoch in model.best_epoch.items()}
        best = {name.removeprefix("train/"): place for name, place in best.items()} | best  # as the panels are called
        self._draw_picture(path, path.parent.resolve().name, model.key_metric, best)

    def _draw_picture(self, path, title, key, best):
        """All rows, with a star at the best value of each quantity; resumed runs as a whole."""
        if not self.png:
            return
        started = time.perf_counter()
        try:
            with told_when_it_fails(path):
                replace_file(path, draw(self.rows, title, key, best))
        except ImportError:
            self.png = False
            print(f"{path.name} is not drawn: the package is missing. pip install matplotlib")
        self._drawn_row, self._drawn = self._newest[-1], time.perf_counter()
        self._one_drawing = self._drawn - started
        self._drawing += self._one_drawing


def _rates(model):
    rates = rates_by_name(model.optimizer_list)
    return {"lr" if len(rates) == 1 else f"lr/{name}": rate for name, rate in rates.items()}


def _place(model):
    """How far the training is in its epochs: 2.25 within the third. Nobody knows where the middle of a loader without a
    length is: all of its places are 2.5."""
    batches = loader_length(model.train_batches)
    share = 0.5 if not batches else model.batches_done / (batches * model.world.size)
    return round(model.epoch - 1 + min(share, 0.999), 6)


def _as_text(row):
    return frozenset((name, str(value)) for name, value in row.items())
