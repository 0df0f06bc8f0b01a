"""The curves while they grow: one figure in a notebook that is redrawn in place, characters in a terminal.

    trainer.callbacks = [LivePlot()]

    plot = LivePlot(epochs=30)                       # or in any loop of your own
    for epoch in range(1, 31):
        ...
        plot.log({"train_loss": loss, "val_acc": acc}, epoch=epoch)
    plot.close()

It needs no other package, and writes no file: ``history.png`` is the work of ``History``.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..metrics.best import best_in_rows, find_name, key_in_rows, quantities_in
from ..output.curves import short_number
from ..output.curves_svg import figure
from ..output.curves_text import characters_for, text_figure
from ..output.named_values import epoch_behind, numbers_of
from ..output.time_left import TimeLeft, clock
from ..update.lr_scheduler import rates_by_name

if TYPE_CHECKING:
    from ..template import TemplateModel

_SHARE, _CREDIT = 0.01, 1.0  # of the time, and seconds beside it, that drawing takes at most
_EVERY_SECONDS = {"notebook": 0.1, "terminal": 1.0}  # at most; a terminal scrolls
_LINE_EVERY_SECONDS = 0.5
_MOST_ROWS = 4000          # that are held; of more, every second one is left out
_BAR_WIDTH = 12            # characters
_MOST_WITHIN = 200         # evaluations of an epoch among which the best one is looked for
_PLACES = ("notebook", "terminal", "nowhere")


class LivePlot(Callback):
    """Draws training and evaluation of each quantity with a star at the best value, once an epoch at most. Where epochs are
    short it draws less often: a terminal gets one figure a second at most, and drawing takes no more than a second and 1 %
    of the time. The end is always drawn.

    In a notebook, a line below the figure shows how far the run is and how long it still takes, in place of the progress
    bar. In a terminal the figure is printed on stderr, and so it does not get into ``log.txt``.

    Args:
        epochs: how many there will be, for the time that is left; a ``TemplateModel`` knows it.
        key: the quantity whose best value is told; None: ``key_metric``, or in a loop of your own the first score, else the
            first loss.
        mode: "max" or "min", whether more or less of ``key`` is better in a loop of your own; None: as its name says. A
            ``TemplateModel`` has ``key_metric_mode``.
        where: "notebook" or "terminal"; None: where it runs. "nowhere" draws nothing.

    Raises:
        ValueError: a bad argument.
    """

    def __init__(self, epochs: int | None = None, key: str | None = None, mode: str | None = None,
                 where: str | None = None) -> None:
        if where not in (None, *_PLACES):
            raise ValueError(f"where must be one of {list(_PLACES)} or None, got {where!r}.")
        if mode not in (None, "max", "min"):
            raise ValueError(f"mode must be 'max', 'min' or None, got {mode!r}.")
        self.epochs = epochs
        self.key = key
        self.mode = mode
        self.rows: list[dict[str, Any]] = []  # {"epoch": 1, "train/loss": 0.7, …}; assign those of a run that goes on
        self._where = where
        self._title = ""
        self._unit = "epoch"          # "update" where the loader has no length
        self._window: dict[str, float] = {}  # losses of the last log point
        self._best: dict[str, tuple[int, float]] = {}
        self._has_begun = False
        self._is_drawn = True         # all that is known is in the figure
        self._drawn = 0.0             # when it was drawn, on time.perf_counter's clock
        self._one_drawing = 0.0       # seconds that it took
        self._drawing = 0.0           # that all of them took
        self._started: float | None = None  # when the first one was wanted
        self._line_shown = 0.0
        self._time_left = TimeLeft()
        self._figure = _Cell()
        self._line = _Cell()

    @property
    def shows_progress(self) -> bool:
        """Whether it shows how far the training is, so that a progress bar need not."""
        return self._place() == "notebook"

    # --- in a loop of your own ------------------------------------------------------------------------------------

    def log(self, values: Mapping[str, Any], epoch: int | None = None) -> None:
        """Add the values of an epoch, and draw when it is time.

        Args:
            values: a number for each name. "train_loss" and "val_loss" (also "valid_", "eval_", "test_") are the two curves
                of "loss"; "lr" is the learning rate. A name without such a beginning is taken for one of training.
            epoch: its number; None: one more than before. The same number again adds to the values that are there, and a
                smaller one replaces what came later, as when a training is taken up again.

        Raises:
            TypeError: a value, or ``epoch``, is no number.
        """
        epoch = epoch_behind(self.rows, epoch)
        self._note(numbers_of(values, "LivePlot"), epoch)
        self._time_left.mark(epoch)
        if self._is_time_to_draw():
            self._draw_own()
        elif self._place() == "notebook" and time.perf_counter() - self._line_shown >= _LINE_EVERY_SECONDS:
            self._show_line(self._look())

    def close(self) -> None:
        """Draw what is not drawn yet: call it behind your loop."""
        if not self._is_drawn and self.rows:
            self._draw_own()

    def _draw_own(self):
        started = time.perf_counter()
        text = self._look()
        looking, is_first = time.perf_counter() - started, not self._drawn
        self._draw(text)
        self._one_drawing += 0.0 if is_first else looking
        self._drawing += 0.0 if is_first else looking
        self._show_line(text)

    def _look(self):
        """Look at all rows for what is best, which takes too long to be done for each row.

        Returns:
            The line that says how far the loop is.
        """
        self._best = self._best_in_rows()
        return self._progress(short_number(self.rows[-1]["epoch"]), self.epochs)

    def _best_in_rows(self):
        return best_in_rows(self.rows, {self._key(): self.mode} if self.mode else None)

    # --- in a TemplateModel ---------------------------------------------------------------------------------------

    def on_train_start(self, model: TemplateModel) -> None:
        if not self._begin(model):
            return
        self._draw_if_it_is_time()  # of an epoch that was not evaluated
        self._mark(model, model.epoch - 1)

    def on_log(self, model: TemplateModel, values: dict[str, float]) -> None:
        self._window = values
        if not model.is_main or self._place() != "notebook":
            return
        if time.perf_counter() - self._line_shown >= _LINE_EVERY_SECONDS:
            done, total = self._updates_of(model)
            if total or model.total_updates:
                self._mark(model, model.epoch - 1 + min(done / (total or done), 1))
            self._show_line(self._place_in_run(model, model.epoch, done, total, values))

    def on_train_end(self, model: TemplateModel, result: dict[str, float]) -> None:
        if not model.is_main:
            return
        rates = rates_by_name(model.optimizer_list)
        self._note({f"train/{name}": float(value) for name, value in result.items()}
                   | {"lr" if len(rates) == 1 else f"lr/{name}": rate for name, rate in rates.items()}, self._moment(model))
        if self._place() == "notebook":
            self._draw_if_it_is_time()

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        if not model.is_main or not model.epoch:
            return
        self._begin(model)
        values = {f"eval/{name}": value for name, value in result.items() if isinstance(value, float)}
        if self._unit == "update" and model.lifetime.is_mid_epoch:  # whose epoch may never end
            values |= {f"train/{name}": value for name, value in self._window.items()}
        self._note(values, self._moment(model))
        self._best = self._best_of(model)

    def on_eval_end(self, model: TemplateModel) -> None:
        if not model.is_main or not self._has_begun:
            return
        if self._place() == "notebook" or self._unit == "update" or not model.lifetime.is_mid_epoch:
            self._draw_if_it_is_time()  # a terminal scrolls: there it is once an epoch

    def on_exit(self, model: TemplateModel) -> None:
        if not model.is_main or not self._has_begun:
            return
        if self._line.is_here:
            self._mark(model, model.epochs_done)
            self._show_line(self._last_line(model))
        self._has_begun = False
        if not self._is_drawn and self.rows:
            self._draw()

    def _begin(self, model):
        """The first epoch of this process or cell: what was before comes from the history."""
        if not model.is_main:
            return False
        if not self._has_begun:
            self._has_begun, self._title = True, Path(model.path_of(".")).resolve().name
            self.key, self._unit = self.key or model.key_metric, "epoch" if model.updates_per_epoch() else "update"
            others = (other for other in model.hooks.callbacks if other is not self)
            if earlier := next((other.rows for other in others if hasattr(other, "rows")), []):
                self._take(earlier, model)
            if self._place() == "notebook":
                self._figure.begin()
                self._line.begin()
                if self.rows:
                    self._draw()
                else:
                    self._figure.show({"text/plain": "The curves appear when the first epoch is over."})
                self._show_line(self._place_in_run(model, model.epoch))
        self.key = find_name(model.key_metric, quantities_in(self.rows)) or self.key
        return True

    def _take(self, earlier, model):
        """The rows of the history until now."""
        self.rows = [{"epoch": row["global_step" if self._unit == "update" else "epoch"]}
                     | {name: value for name, value in row.items() if name.startswith(("train/", "eval/", "lr"))}
                     for row in earlier if row["epoch"] <= model.epoch]
        self._best, self._is_drawn = self._best_of(model), False

    def _moment(self, model):
        """Where the present values stand: an evaluation in the middle of epoch 3 at 2.5."""
        if self._unit == "update":
            return model.global_step
        if not model.lifetime.is_mid_epoch:
            return model.epoch
        done = model.batches_done / (model.accumulate_steps * model.world.size)
        return round(model.epoch - 1 + min(done / model.updates_per_epoch(), 0.999), 6)

    def _best_of(self, model):
        """The best values, at the place of the evaluation that gave them."""
        best = {}
        for name, epoch in model.best_epoch.items():
            value, end = model.best_metric[name], len(self.rows)
            if self._unit == "epoch":
                end = bisect_right(self.rows, epoch, key=lambda row: row["epoch"])
            near = reversed(self.rows[max(end - _MOST_WITHIN, 0):end])
            best[name] = next((row["epoch"] for row in near if row.get(f"eval/{name}") == value), epoch), value
        return best

    # --- what is known --------------------------------------------------------------------------------------------

    def _note(self, values, epoch):
        """Add to the row of this epoch; what came later is not true any more."""
        while self.rows and self.rows[-1]["epoch"] > epoch:
            self.rows.pop()
        if not self.rows or self.rows[-1]["epoch"] < epoch:
            self.rows.append({"epoch": epoch})
        self.rows[-1].update(values)
        if len(self.rows) > _MOST_ROWS:
            best, last = {epoch for epoch, _ in self._best_in_rows().values()}, len(self.rows) - 1
            self.rows[:] = [row for number, row in enumerate(self.rows)
                            if number % 2 == 0 or number == last or row["epoch"] in best]
        self._is_drawn = False

    def _key(self):
        return key_in_rows(self.rows, self.key)

    # --- what is shown --------------------------------------------------------------------------------------------

    def _place(self):
        if self._where is None:
            is_terminal = sys.stderr is not None and sys.stderr.isatty()
            self._where = "notebook" if _in_notebook() else "terminal" if is_terminal else "nowhere"
        return self._where

    def _is_time_to_draw(self):
        """When there is something new, and all drawing takes no more than its share of the time. The first one under a cell
        comes at once."""
        now = time.perf_counter()
        self._started = now if self._started is None else self._started
        has_time = (now - self._drawn >= _EVERY_SECONDS.get(self._place(), 0.0)
                    and self._drawing + self._one_drawing <= _CREDIT + _SHARE * (now - self._started))
        return not self._is_drawn and (has_time or self._place() == "notebook" and not self._figure.is_here)

    def _draw_if_it_is_time(self):
        if self._is_time_to_draw():
            self._draw()

    def _draw(self, text=""):
        started, place, key = time.perf_counter(), self._place(), self._key()
        self._is_drawn, is_first = True, not self._drawn
        if place == "notebook":
            svg = figure(self.rows, self._title, key, self._best, self._unit)
            # the text is seen in a notebook that is not trusted yet, whose font seldom has braille of its own width
            text_of_it = text_figure(self.rows, key, self._best, characters="blocks")
            self._figure.show({"image/svg+xml": svg, "text/plain": text_of_it})
        elif place == "terminal":
            self._print(key, text)
        self._drawn = time.perf_counter()
        self._one_drawing = 0.0 if is_first else self._drawn - started  # the first one takes longer than all others will
        self._drawing += self._one_drawing

    def _print(self, key, text):
        is_terminal = sys.stderr.isatty()
        colors = is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        width = shutil.get_terminal_size().columns - 1 if is_terminal else 99  # the last column makes some terminals wrap
        characters = characters_for(sys.stderr.encoding)
        drawing = text_figure(self.rows, key, self._best, width, characters=characters, colors=colors)
        try:
            print(drawing, *([text] if text else []), sep="\n", file=sys.stderr, flush=True)
        except OSError as error:  # the terminal was closed
            self._where = "nowhere"
            print(f"LivePlot draws no more: {error.strerror or error}.")

    def _mark(self, model, epochs):
        """How far the run is, for the time that is left: in epochs, or in hundredths of a run that counts updates."""
        self._time_left.mark(100 * model.global_step / model.total_updates if model.total_updates else epochs)

    def _place_in_run(self, model, epoch, done=0, of=None, values=None):
        if not model.total_updates:
            return self._progress(epoch, model.total_epochs, done, of, values)
        bar = _bar(model.global_step, model.total_updates)
        return self._progress(epoch, 100, values=values, begin=f"update {model.global_step}/{model.total_updates} {bar}")

    def _last_line(self, model):
        """It tells of a run that ended before its end, whether somebody or a callback stopped it or an error."""
        is_early = model.global_step < model.total_updates if model.total_updates else (
            model.lifetime.is_mid_epoch or bool(model.total_epochs) and model.epochs_done < model.total_epochs)
        if not is_early:
            return self._place_in_run(model, model.epochs_done)
        self._time_left = TimeLeft()  # nothing is left until it goes on
        if model.lifetime.is_mid_epoch:
            return f"stopped in {self._place_in_run(model, model.epoch, *self._updates_of(model))}"
        return f"stopped after {self._place_in_run(model, model.epochs_done)}"

    def _updates_of(self, model):
        """Of the present epoch: ``(done, all)``."""
        return -(-model.batches_done // (model.accumulate_steps * model.world.size)), model.updates_per_epoch()

    def _progress(self, epoch, total, done=0, of=None, values=None, begin=None):
        """"epoch 3/30 ████░░░░ 183/274, tol_loss 0.7276, 12:40 left, best acc 0.9304 (epoch 2)"."""
        fields = [begin or (f"epoch {epoch}/{total}" if total else f"epoch {epoch}")]
        if of:
            fields[0] += f" {_bar(done, of)} {done}/{of}"
        elif total and not begin and self._place() == "notebook":
            fields[0] += f" {_bar(float(epoch), total)}"
        fields += [f"{name} {value:.4g}" for name, value in list((values or {}).items())[:1]]
        left = self._time_left.seconds(total)
        if left:
            fields.append(f"{clock(left)} left")
        key = self._key()
        if key in self._best:
            fields.append(f"best {key} {self._best[key][1]:.4g} ({self._unit} {short_number(self._best[key][0])})")
        return ", ".join(fields)

    def _show_line(self, text):
        if self._place() == "notebook":
            self._line.show({"text/plain": text})
            self._line_shown = time.perf_counter()


class _Cell:
    """A place in the output of a notebook, whose content is replaced. In a cell that is run later it is a new one."""

    def __init__(self):
        self._handle: Any = None
        self._of = None

    @property
    def is_here(self):
        """Whether something is shown under the cell that runs now."""
        return self._handle is not None and self._of == _cell_number()

    def begin(self):
        self._handle = None

    def show(self, data):
        from IPython.display import DisplayHandle  # type: ignore  # only in a notebook, where it is

        if self.is_here:
            self._handle.update(data, raw=True)
        else:
            self._handle, self._of = DisplayHandle(), _cell_number()
            self._handle.display(data, raw=True)


def _bar(done, of):
    full = min(round(_BAR_WIDTH * done / of), _BAR_WIDTH)
    return f"{'█' * full}{'░' * (_BAR_WIDTH - full)}"


def _shell():
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _in_notebook():
    return hasattr(_shell(), "kernel")


def _cell_number():
    """Which run of a cell this is."""
    return getattr(_shell(), "execution_count", None)
