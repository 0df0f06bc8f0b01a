"""What a ``TemplateModel`` can be asked around its loop: files, predictions, learning rates, reports, the names of 2021.

Base class of ``TemplateModel``, so that ``template.py`` holds the training alone. It keeps no state of its own.
"""

from contextlib import nullcontext
from pathlib import Path

import torch

from ..checkpoint import files, saver, sharded, state
from ..data.loaders import make_batches
from ..metrics.one_forward import eval_mode
from ..output import run_folder
from ..output.event_writer import make_writer
from ..output.summary import print_summary
from . import checks
from .defaults import input_of, parameter_dtype


class RunTools:
    """Methods that stand beside the loop: each is called by a person, none by the training itself."""

    @property
    def test_loader(self):
        return self.eval_loader

    @test_loader.setter
    def test_loader(self, loader):
        self.eval_loader = loader

    @property
    def warm_up_type(self):
        return self.warm_up_mode

    @warm_up_type.setter
    def warm_up_type(self, mode):
        self.warm_up_mode = mode

    @property
    def writer(self):
        """The run's TensorBoard ``SummaryWriter``, made when first asked for; None when TensorBoard is off or absent."""
        if self._writer == "auto" and self.hooks is not None:
            self._writer = make_writer(Path(run_folder.TENSORBOARD_ROOT) / self.run_name)
        return None if self._writer == "auto" else self._writer

    @writer.setter
    def writer(self, writer):
        self._writer = writer

    def path_of(self, name):
        """Where the run keeps a file: in ``ckpt_dir``, as seen from where ``check_init`` was called, also after a chdir."""
        return Path(self.started_in, self.ckpt_dir, name)

    def adopt_old_names(self):
        """``train_loss_per_batch`` was ``loss_per_batch`` in the first version of 2021."""
        if hasattr(self, "train_loss_per_batch"):
            self.loss_per_batch = self.train_loss_per_batch

    def predict(self, loader):
        """``inference`` on every batch of ``loader``, joined, on the CPU; works before ``check_init`` too.

        Args:
            loader: batches ``x``, ``(x,)`` or ``(x, …, y)``, whose label is left off, or dicts, which go in whole. A tensor
                counts as one batch.
        """
        device = torch.device(self.device)
        batches = [loader.to(device)] if isinstance(loader, torch.Tensor) else make_batches(loader, 0, device).epoch(0)
        dtype = parameter_dtype(self.model_list)
        autocast = self.autocast if self.stepper is not None else nullcontext
        with eval_mode(self.model_list), torch.no_grad(), autocast():
            return torch.cat([self.inference(input_of(batch, dtype)).cpu() for batch in batches])

    def save_state(self, fname, optim=True):
        """Write models, counters and best values to ``fname``; ``optim`` adds all that continuing needs."""
        checks.require_init(self)
        self._saver.wait()
        saved = state.collect(self, optim)
        self.world.from_main(lambda: files.write(saved, fname))
        print(f"save model state at {fname}")

    def load_state(self, fname, optim=True, lr_list=None, strict=True):
        """Continue from a checkpoint, of this version or of 2021.

        Args:
            fname: path; "best" and "last" stand for the files of ``ckpt_dir``; "auto" takes the newest valid one, also
                from the run before this one when ``ckpt_dir`` is the default, and says so when there is none. "auto" and
                a ``last.pth`` continue that run in its own folder, any other file begins a branch in a new one.
            optim: False loads weights, counters and best values only.
            lr_list: rates that replace the restored ones, one per optimizer.
            strict: False loads the weights that fit and lists the others.

        Returns:
            The path that was loaded, or None.

        Raises:
            FileNotFoundError, CheckpointError: there is no such file, or it is damaged.
            ValueError: the weights do not fit. Nothing was changed.
        """
        if optim:
            checks.require_init(self)
        self._saver.wait()
        saver.wait_for_others()
        path, saved = self._find_state(str(fname))
        if saved is None:
            return None
        if "shards" in saved and not self.is_sharded:
            saved = sharded.plain_state(saved)
        if optim and not {"optimizer_list0", "shards"} & saved.keys():
            optim = False
            print(f"{path} holds weights only: optimizers, schedules and the order of data stay as they are.")
        notes = state.apply(self, saved, optim, strict)
        self._open_epoch = self._evaluated_epoch = None
        self._half_evaluated, self._saved_step = False, self.global_step
        if optim and (fname == "auto" or path.name == "last.pth"):
            if self.world.is_main:
                files.continue_in(self, path.parent, saved)
            self.ckpt_dir, self.run_name = self.world.share((self.ckpt_dir, self.run_name))
        if optim and saved.get("seed") not in (None, self.seed):
            notes.append(f"seed {saved['seed']} instead of {self.seed}: the order of data goes on as it began")
            self.seed = saved["seed"]
            for batches in (self.train_batches, *self._eval_batches.values()):
                batches.set_seed(self.seed)
        if lr_list is not None:
            self.change_lr(lr_list)
        print(f"load model state from {path}: epoch {self.epochs_done} done, {self.global_step} updates")
        for note in notes:
            print(f"  {note}")
        return str(path)

    def _find_state(self, name):
        """``(path, state)``, or two None; rank 0 decides, every rank reads."""
        found = {}

        def find():
            found["path"], found["state"] = files.find_state(self, name)
            return found["path"]

        path = self.world.from_main(find)
        if path is None:
            return None, None
        return path, found["state"] if self.world.is_main else files.read(path)

    @property
    def is_main(self):
        """Whether this is the process that prints and writes: the only one, or rank 0."""
        return self.world.is_main

    def updates_begun(self):
        """Updates of the present epoch, also one of which only a part of the batches is done."""
        return -(-self.batches_done // (self.accumulate_steps * self.world.size))

    def save_model(self, fname):
        """Pickle the whole modules as ``{"model0": …}``: ``torch.load(fname, weights_only=False)`` gives them back where
        their classes can be imported. For a file that outlives the code, use ``save_state``."""
        models = {f"model{i}": state.unwrap(model) for i, model in enumerate(self.model_list)}
        self.world.from_main(lambda: torch.save(models, fname))
        print(f"save model at {fname}")

    def update_lr_scheduler(self, key_metric=None, avg_batch_loss=None):
        """Step warm-up or schedule for the present epoch; ``train_loop`` and ``eval`` already do, and one epoch counts
        once."""
        self.lr_schedule.after_epoch(self.epoch, key_metric, avg_batch_loss)

    def change_lr(self, lr_list):
        """Set the rate of every group of each optimizer; schedules go on in proportion, a warm-up takes it as its goal.

        Args:
            lr_list: one rate per optimizer.
        """
        if len(lr_list) != len(self.optimizer_list):
            raise ValueError(f"lr_list needs one rate per optimizer ({len(self.optimizer_list)}), got {lr_list!r}.")
        for index, (optimizer, lr) in enumerate(zip(self.optimizer_list, lr_list)):
            ratios = [lr / group["lr"] if group["lr"] else 1.0 for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = lr
            if self.lr_schedule is not None:
                self.lr_schedule.rescale(index, ratios)

    @property
    def skipped_updates(self):
        """Updates skipped until now because a loss or gradient was not finite, see ``skip_non_finite``."""
        return self.stepper.skipped

    def tell_skipped(self, in_a_row):
        """Called by the guard; refuses to go on where skipping does not help.

        Raises:
            FloatingPointError: too many in a row, or a buffer of a model became NaN, which skipping cannot undo.
        """
        where = f"epoch {self.epoch}, update {self.global_step + 1}, up to batch {self.batches_done}"
        spoiled = [name for model in self.model_list for name, buffer in model.named_buffers() if buffer.isnan().any()]
        if in_a_row > self.skip_non_finite or spoiled:
            reason = f"the buffers {spoiled} are NaN, which no skipped update can undo" if spoiled else \
                f"{in_a_row} updates in a row are not, and skip_non_finite is {self.skip_non_finite}"
            raise FloatingPointError(
                f"Loss and gradients must stay finite; {reason} ({where}). Training stops; the files on disk are from "
                "before. Lower the learning rate, warm up, clip gradients, or look at the data."
            )
        print(f"Skipped an update: loss or gradient was not finite ({where}); {self.skipped_updates} so far.")

    def num_parameters(self):
        """Print and return the number of trainable parameters over all models."""
        count = sum(p.numel() for model in self.model_list for p in model.parameters() if p.requires_grad)
        self._say(f"Trainable parameters: {count:,}")
        return count

    def get_model_info(self, fake_inp):
        """Print a table of layers for ``fake_inp``, an input with batch dimension, and write the graph to TensorBoard."""
        with self._session():
            print_summary(self, fake_inp)
            for callback in self.hooks.callbacks:
                if hasattr(callback, "write_graph"):
                    callback.write_graph(self, fake_inp)

    def print_best_metrics(self):
        self._say("Best metrics:", *(f"  {name}: {value:.6g} (epoch {self.best_epoch.get(name, '?')})"
                                     for name, value in self.best_metric.items()))

    def print_final_lr(self):
        self._say("Final learning rate:", *(f"  optimizer {i}: {[group['lr'] for group in optimizer.param_groups]}"
                                            for i, optimizer in enumerate(self.optimizer_list)))

    def print_all_member(self, print_model=False):
        """Print every attribute that was set; loaders, internals and, unless asked for, the models are left out."""
        hidden = {"best_metric", "train_loader", "eval_loader", "hooks", "stepper", "lr_schedule", "stdout_logger",
                  "running_losses", "attribute_names", "train_batches", "started_in"}
        hidden |= set() if print_model else {"model_list"}
        self._say("Template config:", *(f"  {name}: {value}" for name, value in vars(self).items()
                                        if name not in hidden and not name.startswith("_")))

    def _say(self, *lines):
        """Print into the log too, also when training has given stdout back."""
        with self.stdout_logger or nullcontext():
            print("\n".join(lines))
