"""Search for settings: train with many of them, and say which did best.

    def make_trainer(params):
        return Digits(Options(lr=params["lr"], batch_size=params["batch_size"]))

    result = search(make_trainer, {"lr": ("log", 1e-4, 1e-1), "batch_size": [32, 64, 128]}, trials=30, epochs=10,
                    ckpt_dir="check_point/digits-search")
    print(result.best_params)

Which settings are tried next, and which trials end early, is decided by optuna (``pip install optuna``). A grid, where every
list is tried with every other, needs no optuna. It trains one trial after another in this process. The winner was chosen on
the eval set, so its value there is too good to publish: score it once on data that the search has not seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.seeding import rng_kept, seed_of_run
from ..hooks import Callback
from ..metrics.best import better_when, find_name
from ..output.text_table import text_table
from ..parallel.ranks import is_asked_for
from ..run.trials import Trials

if TYPE_CHECKING:
    from ..template import TemplateModel

Space = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]
_STUDY = "search"
_DATABASE = "optuna.db"
_PLOTS = ("optimization_history", "intermediate_values", "param_importances", "slice", "parallel_coordinate")


@dataclass
class Search:
    """What ``search`` found. ``print`` shows the trials as a table, and the best one below it."""

    rows: list[dict[str, Any]]
    """For each trial its number, its settings, its best value, "done", "pruned" or "failed", its epochs and seconds."""
    metric: str
    """The metric or loss that decides."""
    mode: str
    """"max" or "min"."""
    best_params: dict[str, Any]
    """The settings of the best trial; empty where all failed."""
    best_value: float
    """Its best value; NaN where all failed."""
    best_trial: str
    """Its folder in ``ckpt_dir``, with ``best.pth``."""
    ckpt_dir: str
    study: Any = field(default=None, repr=False)
    """The ``optuna.Study``; None for a grid."""

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={_shown(value)}" for name, value in self.best_params.items())
        best = f"best: {self.best_trial}, {self.metric} {self.best_value:.6g} with {settings}" if self.best_params else (
            "no trial gave a value")
        return f"{text_table(self.rows)}\n{best}"

    def plots(self) -> list[Path]:
        """Draw optuna's own plots into ``ckpt_dir``, with matplotlib: history, learning curves, importances, slices,
        parallel coordinates. Returns the files. A plot that these trials are too few for is left out, with the reason."""
        if self.study is None:
            raise ValueError("These plots are optuna's, and a grid is searched without it. Call search(…, trials=<number>).")
        import warnings
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise ModuleNotFoundError("The plots need matplotlib: pip install matplotlib") from None
        from optuna.visualization import matplotlib as drawn  # type: ignore  # optional
        files = []
        for name in _PLOTS:
            before = set(plt.get_fignums())
            try:
                with warnings.catch_warnings(), _quiet():
                    warnings.simplefilter("ignore")  # the module is called experimental
                    axes = getattr(drawn, f"plot_{name}")(self.study)
                figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
                files.append(Path(self.ckpt_dir, f"{name}.png"))
                figure.savefig(files[-1], dpi=120, bbox_inches="tight")
            except (ValueError, RuntimeError, ImportError) as error:
                print(f"search: {name} is not drawn: {error}")
            except AssertionError:  # optuna asks for a canvas that not every backend has
                print(f"search: {name} is not drawn: optuna cannot draw it with matplotlib's backend {plt.get_backend()}. "
                      "Call matplotlib.use('agg') before.")
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
        return files


def search(make_trainer: Callable[[dict[str, Any]], TemplateModel], space: Space, trials: int | None = None,
           epochs: int | None = None, *, metric: str | None = None, mode: str | None = None, prune: bool = True,
           seed: int = 0, ckpt_dir: str | Path | None = None, sampler: Any = None, pruner: Any = None) -> Search:
    """Train one trial after another, each with other settings. Called again with the same ``ckpt_dir`` it reads the trials
    that are done, goes on with the one that was cut short, to the same bits, and adds what ``trials`` is larger by.

    Each trial has the folder ``<ckpt_dir>/trial<number>`` and the TensorBoard run ``<name of ckpt_dir>/trial<number>``; the
    HPARAMS tab shows all of them. A trial whose loss is not finite, or that does not fit into the GPU's memory, counts as
    failed, and the next one begins.

    Args:
        make_trainer: function of a dict of settings that returns a new trainer with a new model, before ``check_init``.
        space: what to try, by name: a list of choices, ``(low, high)``, which gives whole numbers where both are whole, or
            ``("log", low, high)``. Or a function of an ``optuna.Trial`` that returns the dict.
        trials: number of trials in all, chosen by optuna; None: every combination of lists, without optuna.
        epochs: of each trial; None: the trainer's ``total_epochs``. They are trained by ``trainer.fit(epochs)``.
        metric: what decides, by its best value in a trial; None: the trainer's ``key_metric``.
        mode: "max" or "min"; None: as the trainer treats that metric.
        prune: end trials early that do worse than the others did by then; not in the first third of ``epochs``, and not in
            a grid.
        seed: of optuna's choices, and of every trial's training: trials differ in their settings alone.
        ckpt_dir: the folder of all trials; None: a new one with a time stamp. ``optuna.db`` in it is the study.
        sampler, pruner: optuna's, in the place of TPESampler and MedianPruner.

    Raises:
        ValueError: a space that cannot be searched, a call with another space in the same folder, or no metric to decide.
        ModuleNotFoundError: optuna is asked for and missing.
    """
    if mode not in (None, "max", "min"):
        raise ValueError(f"mode must be 'max', 'min' or None, got {mode!r}.")
    is_grid = trials is None
    choices = dict(space) if isinstance(space, Mapping) else space
    _require_space(choices, trials)
    if not is_grid:
        _import_optuna()
        if is_asked_for():
            raise RuntimeError("search() with optuna runs in one process, because optuna would choose other settings in "
                               "each one. Start it without torchrun, or search a grid: lists alone, and trials=None.")
    metric, mode = _goal(make_trainer, choices, metric, mode)
    told = {name: str(value) for name, value in choices.items()} if isinstance(choices, dict) else "a function"
    settings = {"space": told, "by": "grid" if is_grid else "optuna", "metric": metric, "mode": mode, "seed": seed}
    with Trials("search", ckpt_dir, settings) as group:
        if is_grid:
            rows, study = _grid(group, make_trainer, choices, epochs, metric, seed), None
        else:
            rows, study = _by_optuna(group, make_trainer, choices, trials, epochs, metric, mode, seed, sampler,
                                     pruner, prune)
    sign = 1 if mode == "max" else -1
    scored = [row for row in rows if row[metric] is not None]
    best = max(scored, key=lambda row: sign * row[metric]) if scored else None
    found = Search([row["shown"] for row in rows], metric, mode, best["params"] if best else {},
                   best[metric] if best else math.nan, f"trial{best['number']}" if best else "", str(group.folder), study)
    print(found)
    return found


# --- one trial --------------------------------------------------------------------------------------------------------


def _train(group, make_trainer, number, params, epochs, metric, seed, watcher=None):
    """The row of one trial, which is trained, continued or read."""

    def make():
        trainer = make_trainer(dict(params))
        if watcher is not None and hasattr(trainer, "callbacks"):
            trainer.callbacks = [*(trainer.callbacks or ()), watcher]
        return trainer

    name = f"trial{number}"
    try:
        note = group.run(name, make, seed, epochs, arg=params,
                         finish=lambda trainer, folder: {"pruned": watcher is not None and watcher.pruned})
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"{name} failed, and the search goes on: {error}")
        note = {**group.note_of(name), "result": {}, "failed": str(error), "best": {}, "epochs": None, "seconds": None}
        group.write_note(name, note)
    return _row(number, params, note, metric)


def _row(number, params, note, metric):
    """What the table shows of a trial, and what decides."""
    key = find_name(metric, note["best"])
    if key is None and note["best"]:
        raise ValueError(f"search looks at {metric!r}, and the trials gave {list(note['best'])}. Set metric to one of "
                         "these.")
    value = note["best"][key] if key else None
    state = "failed" if value is None else "pruned" if note.get("pruned") else "done"
    shown = {"trial": number, **params, metric: value, "state": state, "epochs": note["epochs"], "seconds": note["seconds"]}
    return {"number": number, "params": dict(params), metric: value, "state": state, "shown": shown}


class _Watcher(Callback):
    """Tells optuna the result of each epoch, and ends the trial when it says so.

    Args:
        trial: the ``optuna.Trial``.
        metric: name of the value that decides.
        reported: the epochs that optuna has heard of before the trial was continued.
        prune: False only reports.
    """

    def __init__(self, trial, metric, reported, prune):
        self.trial, self.metric, self.reported, self.prune = trial, metric, set(reported), prune
        self.pruned = False

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        name = find_name(self.metric, result)
        if name is None or model.epoch in self.reported:
            return
        self.reported.add(model.epoch)
        self.trial.report(float(result[name]), model.epoch)
        if self.prune and self.trial.should_prune():
            self.pruned = model.should_stop = True
            print(f"search: {name} {result[name]:.6g} is worse than other trials were in epoch {model.epoch}, so this one "
                  "ends.")

    def state_dict(self) -> dict[str, Any]:
        return {"pruned": self.pruned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pruned = state["pruned"]


# --- a grid -----------------------------------------------------------------------------------------------------------


def _grid(group, make_trainer, choices, epochs, metric, seed):
    rows = []
    for number, values in enumerate(itertools.product(*choices.values())):
        rows.append(_train(group, make_trainer, number, dict(zip(choices, values)), epochs, metric, seed))
    return rows


# --- optuna -----------------------------------------------------------------------------------------------------------


def _by_optuna(group, make_trainer, choices, count, epochs, metric, mode, seed, sampler, pruner, prune):
    optuna = _import_optuna()
    storage = f"sqlite:///{(group.folder / _DATABASE).resolve().as_posix()}"
    with _quiet():
        patient = optuna.pruners.MedianPruner(n_warmup_steps=(epochs or 0) // 3)  # warm-up and high rates look bad early
        study = optuna.create_study(storage=storage, study_name=_STUDY, load_if_exists=True, pruner=pruner or patient,
                                    direction="maximize" if mode == "max" else "minimize")
        # a sampler that began anew with the same seed would choose the same settings again
        study.sampler = sampler or optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    running, waiting = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING
    rows = {}
    for frozen in study.get_trials(deepcopy=False):
        if frozen.state not in (running, waiting):
            rows[frozen.number] = _told(group, make_trainer, frozen, epochs, metric, seed)
    while True:
        left = [frozen for frozen in study.get_trials(deepcopy=False) if frozen.state == running]
        if not left and len(rows) >= count:
            break
        with _quiet():
            trial = optuna.trial.Trial(study, left[0]._trial_id) if left else study.ask()
        if left:
            print(f"search: trial{trial.number} was cut short and goes on.")
        params = _chosen(choices, trial)
        trial.set_user_attr("params", _plain(params))
        watcher = _Watcher(trial, metric, left[0].intermediate_values if left else (), prune)
        row = rows[trial.number] = _train(group, make_trainer, trial.number, params, epochs, metric, seed, watcher)
        states = {"pruned": optuna.trial.TrialState.PRUNED, "failed": optuna.trial.TrialState.FAIL}
        with _quiet():
            study.tell(trial, None if row["state"] != "done" else row[metric], state=states.get(row["state"]))
    return [rows[number] for number in sorted(rows)], study


def _told(group, make_trainer, frozen, epochs, metric, seed):
    """The row of a trial that is over: from its folder, or where that was deleted from the study."""
    params = frozen.user_attrs.get("params", frozen.params)
    if "result" in group.note_of(f"trial{frozen.number}"):
        return _train(group, make_trainer, frozen.number, params, epochs, metric, seed)
    best = {metric: frozen.value} if frozen.value is not None else {}
    note = {"best": best, "pruned": frozen.state.name == "PRUNED", "epochs": None, "seconds": None}
    return _row(frozen.number, params, note, metric)


def _plain(params):
    return {name: value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
            for name, value in params.items()}


def _chosen(choices, trial) -> dict[str, Any]:
    """The settings that an optuna trial takes."""
    if not isinstance(choices, dict):
        params = choices(trial)
        if not isinstance(params, Mapping):
            raise TypeError(f"space(trial) must return a dict of settings, got {params!r}.")
        return dict(params)
    params = {}
    for name, choice in choices.items():
        if isinstance(choice, list):
            params[name] = trial.suggest_categorical(name, choice)
            continue
        *log, low, high = choice
        suggest = trial.suggest_int if isinstance(low, int) and isinstance(high, int) else trial.suggest_float
        params[name] = suggest(name, low, high, log=bool(log))
    return params


def _import_optuna() -> Any:
    try:
        import optuna  # type: ignore  # optional
    except ImportError:
        raise ModuleNotFoundError("search() with a number of trials, ranges or a function chooses with optuna: pip install "
                                  "optuna. Without it, give lists alone and leave trials out: every combination is "
                                  "tried.") from None
    return optuna


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's own lines, which would stand between those of the trainings."""
    logging = _import_optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


# --- what is asked for --------------------------------------------------------------------------------------------------


def _require_space(choices, trials):
    if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
        raise ValueError(f"trials must be a whole number of at least 1, or None for a grid; got {trials!r}.")
    if not isinstance(choices, dict):
        if not callable(choices):
            raise TypeError(f"space must be a dict or a function of an optuna trial, got {choices!r}.")
        if trials is None:
            raise ValueError("A space that is a function is searched by optuna: say with trials=<number> how often.")
        return
    if not choices:
        raise ValueError("space is empty: there is nothing to search. Give for example {'lr': [1e-3, 1e-2]}.")
    for name, choice in choices.items():
        is_range = isinstance(choice, tuple) and (len(choice) == 2 or len(choice) == 3 and choice[0] == "log")
        if isinstance(choice, list) and choice:
            continue
        if not is_range or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in choice[-2:]):
            raise ValueError(f"space[{name!r}] must be a list of choices, (low, high) or ('log', low, high) with numbers; "
                             f"got {choice!r}.")
        low, high = choice[-2:]
        if not low < high or len(choice) == 3 and low <= 0:
            more = ", and 0 < low for a log range" if len(choice) == 3 else ""
            raise ValueError(f"space[{name!r}] needs low < high{more}; got {choice!r}.")
        if trials is None:
            raise ValueError(f"Without trials=<number> every combination of lists is tried, and space[{name!r}] is the "
                             f"range {choice!r}. Give a list, or say how many trials optuna may choose.")


def _goal(make_trainer, choices, metric, mode):
    """``(metric, mode)`` that decide, by a trainer with some of the settings."""
    if metric is not None and mode is not None:
        return metric, mode
    with rng_kept():
        if isinstance(choices, dict):
            trainer = make_trainer({name: choice[0] if isinstance(choice, list) else choice[-2]
                                    for name, choice in choices.items()})
        else:
            with _quiet():
                trainer = make_trainer(_chosen(choices, _import_optuna().create_study().ask()))
    seed_of_run(None)
    metric = metric or getattr(trainer, "key_metric", None)
    if metric is None:
        raise ValueError("search needs to know which metric or loss decides. Set self.key_metric in the trainer, or call "
                         "search(…, metric=\"acc\").")
    return metric, mode or better_when(trainer, metric)


def _shown(value):
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
