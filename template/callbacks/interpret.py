"""What goes wrong in an evaluation: the samples with the largest loss, and which classes are taken for which.

    trainer.callbacks = [Interpret(k=16)]                       # the largest losses
    trainer.callbacks = [Interpret(largest=False)]              # the smallest ones
    trainer.callbacks = [Interpret(score=lambda pred, y: pred.softmax(1).max(1).values, largest=False)]   # unsure ones

In the folder of the run: ``interpret/largest_loss.csv`` (index, score, label, prediction), ``interpret/largest_loss.png``
where the samples are images, ``interpret/confusion.csv`` and ``interpret/confusion.png``; of ``trainer.test()`` the same
with ``test_`` before the name. All of it is in TensorBoard too. The pictures need matplotlib.

Of an evaluation it keeps the k samples, the counts, and the candidates of the last few batches: 16 batches at most, and
about 64 MB. Nothing waits for the device at each batch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..hooks import Callback
from ..output.pictures import Pictures, moment_of, require_matplotlib, step_of, to_pixels
from ..output.run_folder import replace_file, told_when_it_fails
from ..output.text_table import text_table
from ..output.warn import warn

if TYPE_CHECKING:
    from ..template import TemplateModel

_FOLDER = "interpret"
_BATCHES_AT_ONCE = 16          # after so many, the candidates are brought to the host,
_BYTES_AT_ONCE = 64 * 1024**2  # or when they take so much memory
_MOST_CLASSES = 1000           # that are counted against each other
_MOST_NUMBERED = 20            # classes of which the picture shows each count
_MOST_NAMED = 60
_MOST_VALUES = 8               # of a label or a prediction that is shown
_MOST_TEXT = 300               # characters of a sample


class Interpret(Callback):
    """The ``k`` samples that stand out in each evaluation, and its confusion matrix.

    Args:
        k: how many samples are kept.
        largest: those of the largest score; False: of the smallest. A score that is NaN counts as the largest.
        score: function of ``(predictions, labels)`` that gives a score for each sample [N]; None: the loss of each sample.
        class_names: of the classes 0, 1, …, for tables and pictures.
        every: evaluations from one table to the next.

    Samples whose integer label is negative (-100 is the label that torch ignores) are left out.

    Raises:
        ValueError: ``k`` or ``every`` is not a whole number of at least 1.
    """

    def __init__(self, k: int = 16, largest: bool = True, score: Callable[[Any, Any], torch.Tensor] | None = None,
                 class_names: Sequence[str] | None = None, every: int = 1) -> None:
        for name, value in (("k", k), ("every", every)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        self.k = k
        self.largest = largest
        self.score = score
        self.class_names = class_names
        self.every = every
        self.evaluations = 0
        self.samples: list[dict[str, Any]] = []
        """Of the last evaluation, the first stands out most: index, score, label, prediction, and loader where there are
        several; "sample" is a CPU tensor or a text, where there is one."""
        self.confusion: dict[str, torch.Tensor] = {}
        """``{prefix of the loader, "" for one alone: counts [C, C]}``; row: true class, column: predicted class."""
        self._is_told = False
        self._pictures = Pictures(_FOLDER)
        self._begin()

    def _begin(self):
        self._pending: list[dict[str, Any]] = []      # candidates of the newest batches, on the device
        self._bytes = 0
        self._kept: list[dict[str, Any]] = []         # the best ones until now
        self._cells: dict[str, Any] = {}              # counts [C * C + 1] on the device by prefix
        self._is_wanted = True
        self._seen = 0

    # --- events ---------------------------------------------------------------------------------------------------

    def on_eval_start(self, model: TemplateModel) -> None:
        self._begin()

    def on_eval_predictions(self, model: TemplateModel, batch: Any, predictions: Any, labels: Any, losses: Any) -> None:
        if not self._is_due(model):
            return
        found = model.evaluator.classes_of(predictions, labels)
        if found is not None:
            self._count(model.evaluator.prefix, found[0], found[1], model.evaluator.without_ignored(labels))
        scores = losses if self.score is None else self._score_of(predictions, labels)
        if scores is None:
            self._tell_no_losses()
            return
        indices = model.evaluator.sample_indices
        is_ignored = self._is_ignored(model.evaluator.without_ignored(labels), scores)
        self._pick(batch, scores, indices, labels, predictions, found, model.evaluator.prefix, is_ignored)

    def on_eval_result(self, model: TemplateModel, result: dict[str, Any]) -> None:
        if self._is_due(model):
            self._finish(model, "")
        self.evaluations += 1
        self._begin()

    def on_eval_end(self, model: TemplateModel) -> None:
        if model.evaluator.is_test and model.evaluator.is_complete:
            self._finish(model, "test_")
        self._begin()

    def _is_due(self, model):
        return model.evaluator.is_test or self.evaluations % self.every == 0

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluations = state["evaluations"]

    # --- batches --------------------------------------------------------------------------------------------------

    def _score_of(self, predictions, labels):
        scores = self.score(predictions, labels) if self.score is not None else None
        if not isinstance(scores, torch.Tensor) or scores.dim() != 1:
            got = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else repr(scores)
            raise ValueError("The score of Interpret must give a tensor with one number for each sample, shape [N]; "
                             f"{self.name} gave {got}. Take the mean over the other dimensions.")
        return scores

    def _tell_no_losses(self):
        if not self._is_told:
            self._is_told = True
            warn("Interpret knows no loss of each sample: the criterion has no reduction='none', or your own code computes "
                 "the loss. Give Interpret(score=function of (predictions, labels)), or call self.note_predictions(pred, "
                 "y, losses) in your loss_per_batch.")

    def _count(self, prefix, predicted, num_classes, labels):
        if num_classes > _MOST_CLASSES:
            return
        true, predicted = labels.reshape(-1).long(), predicted.reshape(-1)
        is_class = (true >= 0) & (true < num_classes)
        index = torch.where(is_class, true * num_classes + predicted, num_classes * num_classes)
        cells = self._cells.get(prefix)
        if cells is None or len(cells) != num_classes * num_classes + 1:
            cells = torch.zeros(num_classes * num_classes + 1, dtype=torch.int64, device=index.device)
        self._cells[prefix] = cells.index_add(0, index, torch.ones_like(index))

    @staticmethod
    def _is_ignored(labels, scores):
        """Which samples do not count, [N]; None where all do."""
        is_class = isinstance(labels, torch.Tensor) and labels.shape == scores.shape and not labels.is_floating_point()
        return labels < 0 if is_class else None

    def _pick(self, batch, scores, indices, labels, predictions, found, prefix, is_ignored=None):
        """The candidates of one batch. What is copied of them is chosen on the device: nothing waits for it."""
        count = len(scores)
        keys = scores.detach().float()
        keys = torch.where(keys.isnan(), math.inf, keys)
        keys = keys if self.largest else -keys
        if is_ignored is not None:
            keys = torch.where(is_ignored, -math.inf, keys)
        keys, places = keys.topk(min(self.k, count))
        chosen = {"label": _small(labels, count), "prediction": _small(predictions if found is None else found[0], count),
                  "sample": _sample_of(batch, count)}
        rows = {name: part.index_select(0, places) for name, part in chosen.items() if isinstance(part, torch.Tensor)}
        texts = chosen["sample"] if isinstance(chosen["sample"], list) else None
        self._pending.append({"keys": keys, "places": places, "scores": scores.detach().float().index_select(0, places),
                              "rows": rows, "texts": texts, "indices": indices, "prefix": prefix, "number": self._seen})
        self._seen += 1
        self._bytes += sum(part.nbytes for part in rows.values())
        if len(self._pending) >= _BATCHES_AT_ONCE or self._bytes > _BYTES_AT_ONCE:
            self._fetch()

    def _fetch(self):
        """Bring the candidates' numbers to the host and keep the best ``k`` of all."""
        pending, self._pending, self._bytes = self._pending, [], 0
        if not pending:
            return
        keys = torch.cat([part["keys"] for part in pending]).tolist()
        scores = torch.cat([part["scores"] for part in pending]).tolist()
        places = torch.cat([part["places"] for part in pending]).tolist()
        owners = [(part, row) for part in pending for row in range(len(part["keys"]))]
        for key, score, place, (part, row) in zip(keys, scores, places, owners):
            if key > -math.inf:
                indices = part["indices"]
                self._kept.append({"key": key, "order": (part["number"], place), "score": score, "part": part, "row": row,
                                   "place": place, "loader": part["prefix"],
                                   "index": indices[place] if indices is not None else None})
        self._kept.sort(key=_rank)
        del self._kept[self.k:]
        for kept in self._kept:
            if "part" in kept:
                self._take(kept)

    @staticmethod
    def _take(kept):
        """Copy what belongs to a sample, so that the rest of its batch can go."""
        part, row, place = kept.pop("part"), kept.pop("row"), kept.pop("place")
        for name, rows in part["rows"].items():
            kept[name] = rows[row].detach().cpu().clone()
        if part["texts"] is not None:
            kept["sample"] = part["texts"][place]

    # --- results --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of its files: "largest_loss", "smallest_entropy"."""
        name = "loss" if self.score is None else getattr(self.score, "__name__", "score")
        return f"{'largest' if self.largest else 'smallest'}_{'score' if name == '<lambda>' else name}"

    def _finish(self, model, before):
        self._fetch()
        world = model.world
        self.samples = [_plain(sample) for sample in self._of_all_ranks(world, self._kept)]
        found = world.gather({prefix: cells.tolist() for prefix, cells in self._cells.items()})
        self.confusion = {}
        for prefix in dict.fromkeys(prefix for part in found for prefix in part):
            cells = torch.tensor([part[prefix] for part in found if prefix in part]).sum(0)
            self.confusion[prefix] = cells[:-1].reshape(math.isqrt(len(cells) - 1), -1)
        if model.is_main:
            if self.samples:
                self._show_samples(model, before)
            for prefix, counts_CC in self.confusion.items():
                self._show_confusion(model, before + "_".join(filter(None, ["confusion", prefix.rstrip("/")])), counts_CC)

    def _of_all_ranks(self, world, kept):
        """The best ``k`` of the best ``k`` of each. Batches are dealt out in turn, which decides between equal scores."""
        if world.size == 1:
            return kept
        ranks = world.gather([(sample["key"], sample["order"]) for sample in kept])
        places = [(-key, order[0], rank, order[1], number) for rank, part in enumerate(ranks)
                  for number, (key, order) in enumerate(part)]
        best = sorted(places)[:self.k]
        own = {place[4]: kept[place[4]] for place in best if place[2] == world.rank}
        samples = world.gather(own)
        return [samples[rank][number] for _, _, rank, _, number in best]

    def _show_samples(self, model, before):
        rows = self._rows()
        self._write(model, f"{before}{self.name}.csv", rows)
        is_test = bool(before)
        title = f"{self.name.replace('_', ' ')}, {'test' if is_test else moment_of(model)}"
        texts = [str(sample["sample"]) for sample in self.samples if isinstance(sample.get("sample"), str)]
        shown = [row | {"text": sample["sample"][:_MOST_TEXT]} if texts else row for row, sample in zip(rows, self.samples)]
        if model.writer is not None and hasattr(model.writer, "add_text"):
            model.writer.add_text(f"{_FOLDER}/{before}{self.name}", _as_markdown(shown), step_of(model))
        images = [sample.get("sample") for sample in self.samples]
        if all(isinstance(image, torch.Tensor) and _is_image(image) for image in images):
            figure = self._draw_samples(images, title)
            if figure is not None:
                self._pictures.show(model, f"{before}{self.name}", figure)
        elif texts or is_test:  # numbers alone would only push the lines of the training away
            print(f"{title}:\n{text_table(shown)}")

    def _rows(self):
        several = len({sample["loader"] for sample in self.samples}) > 1 or any(s["loader"] for s in self.samples)
        names = ("index", "score", "label", "prediction")
        rows = [{name: self._named(name, sample.get(name)) for name in names} for sample in self.samples]
        return [row | ({"loader": sample["loader"].rstrip("/")} if several else {})
                for row, sample in zip(rows, self.samples)]

    def _named(self, column, value):
        if column in ("label", "prediction") and type(value) is int and self.class_names is not None:
            return self._class(value)
        return value

    def _class(self, number):
        names = self.class_names
        return str(names[number]) if names is not None and 0 <= number < len(names) else str(number)

    def _write(self, model, file, rows):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = Path(model.path_of(f"{_FOLDER}/{file}"))
        with told_when_it_fails(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.getvalue())

    def _draw_samples(self, images, title):
        module = require_matplotlib("The picture of the samples")
        if module is None:
            return None
        columns = min(len(images), max(4, math.ceil(math.sqrt(len(images)))))
        rows = math.ceil(len(images) / columns)
        figure = module.Figure(figsize=(1.7 * columns, 2.1 * rows + 0.4), dpi=100)
        height = 2.1 * rows + 0.4
        figure.text(0.5, 1 - 0.2 / height, title, size=11, ha="center", va="center")
        # placed by hand: matplotlib's own layout takes longer than the drawing
        figure.subplots_adjust(0.01, 0.05 / height, 0.99, 1 - 0.85 / height, hspace=0.34, wspace=0.06)
        for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
            axes.axis("off")
        for axes, image, sample in zip(grid.flat, images, self.samples):
            pixels = to_pixels(_stretched(image))
            axes.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255,
                        interpolation="nearest")
            what = self.name.partition("_")[2].replace("_", " ")
            where = f"{sample['loader']}{sample['index']}" if sample["index"] is not None else ""
            axes.set_title(f"#{where} · {what} {sample['score']:.3g}\n{self._verdict(sample)}", size=8)
        return figure

    def _verdict(self, sample):
        label, prediction = sample.get("label"), sample.get("prediction")
        told = [self._class(value) if type(value) is int else f"{value:.3g}" if isinstance(value, float) else ""
                for value in (label, prediction)]
        return f"{told[0]} taken for {told[1]}" if all(told) and told[0] != told[1] else told[1] or told[0]

    def _show_confusion(self, model, name, counts_CC):
        labels = [self._class(number) for number in range(len(counts_CC))]
        rows = [{"true \\ predicted": label} | dict(zip(_distinct(labels), row))
                for label, row in zip(labels, counts_CC.tolist())]
        self._write(model, f"{name}.csv", rows)
        if len(labels) <= _MOST_NUMBERED and model.writer is not None and hasattr(model.writer, "add_text"):
            model.writer.add_text(f"{_FOLDER}/{name}", _as_markdown(rows), step_of(model))
        moment = "" if name.startswith("test_") else f", {moment_of(model)}"
        figure = _draw_confusion(counts_CC.numpy(), labels, name.replace("_", " ") + moment)
        if figure is not None:
            self._pictures.show(model, name, figure)


def _rank(kept):
    return -kept["key"], kept["order"]


def _plain(sample):
    """As a person reads it."""
    found = {name: sample.get(name) for name in ("index", "score", "label", "prediction", "loader")}
    for name in ("label", "prediction"):
        value = found[name]
        if isinstance(value, torch.Tensor):
            found[name] = value.item() if value.numel() == 1 else str([_short(number) for number in value.tolist()])
    return found | ({"sample": sample["sample"]} if "sample" in sample else {})


def _short(number):
    return float(f"{number:.4g}") if isinstance(number, float) else number


def _small(part, count):
    """A column of numbers, or of a few for each sample, [N, …]; else None."""
    if not isinstance(part, torch.Tensor) or not part.dim() or len(part) != count or part[0].numel() > _MOST_VALUES:
        return None
    return part.detach().flatten(1) if part.dim() > 1 else part.detach()


def _sample_of(batch, count):
    """Images [N, C, H, W] or [N, H, W] of a batch, or a list of N texts; else None."""
    parts = list(_parts_of(batch))
    images = [part for part in parts if isinstance(part, torch.Tensor) and len(part) == count and _is_image(part[0])]
    if images:
        return images[0].detach()
    return next((list(part) for part in parts if isinstance(part, (list, tuple)) and len(part) == count
                 and all(isinstance(entry, str) for entry in part)), None)


def _parts_of(batch):
    if isinstance(batch, torch.Tensor):
        if batch.dim():
            yield batch
    elif isinstance(batch, dict):
        for part in batch.values():
            yield from _parts_of(part)
    elif isinstance(batch, (list, tuple)):
        if batch and all(isinstance(entry, str) for entry in batch):
            yield batch
        else:
            for part in batch:
                yield from _parts_of(part)


def _is_image(tensor):
    return tensor.dim() == 2 and min(tensor.shape) > 3 or tensor.dim() == 3 and tensor.shape[0] in (1, 3)


def _stretched(image):
    """Normalised inputs have any range of values: the lowest becomes black and the highest white."""
    if image.dtype == torch.uint8:
        return image
    image = image.float()
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=1e-12)


def _distinct(names):
    return [name if names.count(name) == 1 else f"{number}: {name}" for number, name in enumerate(names)]


def _as_markdown(rows):
    """A table as TensorBoard's text shows it."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value):
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _draw_confusion(counts_CC, names, title):
    """Shares of each true class as colors, the counts as numbers."""
    module = require_matplotlib("The confusion matrix")
    if module is None:
        return None
    classes = len(names)
    shares = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    size = min(3.0 + 0.42 * classes, 12.0)
    figure = module.Figure(figsize=(size + 1, size), dpi=100, layout="constrained")
    axes = figure.subplots()
    # few mistakes in a class of many must be seen beside what is right
    image = axes.imshow(shares, cmap="Blues", norm=module.mpl.colors.PowerNorm(0.5, 0, 1))
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    right = counts_CC.trace() / max(counts_CC.sum(), 1)
    axes.set(title=f"{title}: {counts_CC.sum():,} labels, {right:.2%} right", xlabel="predicted", ylabel="true")
    if classes <= _MOST_NAMED:
        is_long = max(map(len, names)) > 2
        axes.set_xticks(range(classes), names, rotation=90 if is_long else 0, size=8 if classes <= 30 else 6)
        axes.set_yticks(range(classes), names, size=8 if classes <= 30 else 6)
    if classes <= _MOST_NUMBERED:
        for row in range(classes):
            for column in range(classes):
                if count := counts_CC[row, column]:
                    axes.text(column, row, f"{count:,}", ha="center", va="center", size=7,
                              color="white" if shares[row, column] > 0.3 else "black")
    return figure
