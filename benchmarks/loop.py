"""What an update costs: this template against the same loop written by hand, and against other trainers.

    python -m benchmarks.loop                           # in about five minutes
    python -m benchmarks.loop --only tensors peers --rounds 3

Three hand-written loops: one that only trains and evaluates ("plain"), one with progress bar, TensorBoard, finite losses,
history and checkpoints ("equipped"), and for data in memory both over slices of whole tensors instead of a DataLoader. The
template runs with its defaults, which are what the equipped loop has; its history.png, drawn every half minute, comes on
top where matplotlib is there. In the table "lines" the equipped loop is what many scripts are: it has TensorBoard and a line
every 50 updates, and checkpoints. There the template, which has all of the above, logs every 50 updates too. Final loss and
accuracy show that all did equal work; without it there are no figures.

How times and ratios come about stands in ``measuring.py``. Peers run as their users run them, each epoch evaluated, in so
far as they can be imported. Nothing here says how long a large network takes: there, all are equal.
"""

import argparse
import os
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from template import TensorLoader
from template.template import TemplateModel

from . import peers
from .by_hand import (
    CNN,
    EVAL_BATCH,
    LINE_EVERY,
    LOG_EVERY,
    MLP,
    SEED,
    Contender,
    Equipped,
    Lines,
    Plain,
    Slices,
    load,
)
from .measuring import Process, in_rounds, ratio, require_equal_work, steady_conditions

EPOCHS = 2  # of each contender in a round
STARTS = 3  # of each contender's process


class Trainer(TemplateModel):
    def __init__(self, job, form, log_every=LOG_EVERY):
        super().__init__()
        train, held_out = job.data()
        self.model_list = [job.model()]
        self.optimizer_list = [job.optimizer(self.model_list[0].parameters())]
        self.criterion = nn.CrossEntropyLoss()
        if form == "slices":
            self.train_loader = TensorLoader(*train, batch_size=job.batch_size, shuffle=True)
            self.eval_loader = TensorLoader(*held_out, batch_size=EVAL_BATCH)
        elif form == "iterable":  # a class with __iter__, of which nothing else is known
            self.train_loader = Slices(*train, job.batch_size, shuffle=True)
            self.eval_loader = Slices(*held_out, EVAL_BATCH)
        else:
            self.train_loader = load(form, *train, job.batch_size, shuffle=True)
            self.eval_loader = load(form, *held_out, EVAL_BATCH)
        self.device, self.seed, self.ckpt_dir, self.log_per_step = "cpu", SEED, "check_point/benchmark", log_every


class Template(Contender):
    log_every = LOG_EVERY

    def __init__(self, job, form, folder):
        os.chdir(folder)
        self.updates = job.updates
        self.trainer = Trainer(job, form, self.log_every)
        self.trainer.check_init()

    def train(self):
        self.trainer.train_loop()

    def evaluate(self):
        self.trainer.eval()

    def finish(self):
        self.trainer.wait_for_saves()

    def result(self):
        return self.trainer.eval_result["tol_loss"], self.trainer.eval_result["acc"]


class TemplateWithLines(Template):
    log_every = LINE_EVERY


PLAIN, EQUIPPED, TEMPLATE = "by hand, plain", "by hand, equipped", "this template"
MEASURED = {"epochs": "whole epochs: evaluation, logging and checkpoints included",
            "training": "training alone: no evaluation, no write beside it"}


def contenders_on(form):
    return {PLAIN: (Plain, form), EQUIPPED: (Equipped, form), TEMPLATE: (Template, form)}


TABLES = {  # title, job, {name: (class, form of the data)}, what of MEASURED
    "samples": ("Tiny MLP 64-64-10, batch 32, a DataLoader that cannot be sliced", MLP, contenders_on("samples"), MEASURED),
    "tensors": ("Tiny MLP 64-64-10, batch 32, DataLoader(TensorDataset)", MLP, contenders_on("tensors"), MEASURED),
    "slices": ("Tiny MLP 64-64-10, batch 32, tensors in memory; by hand the best slicing loop", MLP, {
        PLAIN: (Plain, "slices"), EQUIPPED: (Equipped, "slices"), f"{TEMPLATE}, TensorLoader": (Template, "slices"),
        f"{TEMPLATE}, DataLoader(TensorDataset)": (Template, "tensors"),
    }, MEASURED),
    "lines": (f"Tiny MLP 64-64-10, batch 32, tensors in memory; a log point every {LINE_EVERY} updates", MLP, {
        PLAIN: (Plain, "slices"), EQUIPPED: (Lines, "slices"), f"{TEMPLATE}, TensorLoader": (TemplateWithLines, "slices"),
        f"{TEMPLATE}, a class with __iter__": (TemplateWithLines, "iterable"),
    }, MEASURED),
    "cnn": ("Small CNN on 8x8 images, batch 64, DataLoader(TensorDataset)", CNN, contenders_on("tensors"), MEASURED),
    "peers": ("Other trainers: tiny MLP 64-64-10, batch 32, DataLoader(TensorDataset)", MLP,
              contenders_on("tensors") | peers.present(), ["epochs"]),
}


def measure(folder, job, contenders, methods, epochs, rounds):
    """The rounds are shared out among a few sets of processes: two of the same code differ by up to 4%, for as long as they
    live.

    Returns:
        ``({(name, method): [seconds per update of each round]}, {name: (loss, accuracy)})``.
    """
    seconds = {}
    starts = min(STARTS, rounds)
    for start in range(starts):
        share = rounds // starts + (start < rounds % starts)
        part, results = _measure_once(folder / str(start), job, contenders, methods, epochs, share)
        for key, values in part.items():
            seconds[key] = seconds.get(key, []) + values
    return seconds, results


def _measure_once(folder, job, contenders, methods, epochs, rounds):
    def one(name, method):
        return lambda: {(name, method): processes[name](method, epochs)}

    with ExitStack() as stack:
        processes = {}
        for number, (name, (kind, *arguments)) in enumerate(contenders.items()):
            own_folder = folder / str(number)
            own_folder.mkdir(parents=True)
            processes[name] = stack.enter_context(Process(kind, job, *arguments, own_folder, steady=True))
        seconds = in_rounds(rounds, [one(name, method) for name in contenders for method in methods])
        results = {name: process("result") for name, process in processes.items()}
    require_equal_work({name: loss for name, (loss, _) in results.items()})
    return seconds, results


def tell(title, seconds, results):
    print(f"\n{title}")
    for method in dict.fromkeys(method for _, method in seconds):
        print(f"  {MEASURED[method]:<60}us/update   {'of plain':<20}{'of equipped':<20}{'loss':<9}accuracy")
        for name, (loss, accuracy) in results.items():
            own = seconds[name, method]
            ratios = ["" if name in (PLAIN, other) else ratio(own, seconds[other, method]) for other in (PLAIN, EQUIPPED)]
            print(f"    {name:<56}{1e6 * statistics.median(own):>11.1f}   {ratios[0]:<20}{ratios[1]:<20}"
                  f"{loss:<9.4f}{accuracy:.4f}", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="which tables")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each contender in a round")
    parser.add_argument("--updates", type=int, help="per epoch; else what suits the network")
    parser.add_argument("--folder", default=".", help="where runs write: the file system that checkpoints go to")
    options = parser.parse_args(arguments)
    print(steady_conditions(options.rounds), flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        for table in options.only:
            title, job, contenders, methods = TABLES[table]
            if table == "peers":
                print(f"\n{peers.told()}", flush=True)
                if not peers.present():
                    continue
            job = job._replace(updates=options.updates or job.updates)
            tell(title, *measure(Path(folder).resolve() / table, job, contenders, methods, options.epochs, options.rounds))


if __name__ == "__main__":
    main()
