"""How much memory the template takes beyond the plain loop, by part.

    python -m benchmarks.memory                         # in about a minute; on Linux

Every figure is the resident memory of a new process, in MB of 1e6 bytes: how much it grew by while the part was done. Both
train the tiny MLP of ``loop.py`` for a few epochs, by hand without anything beside, and in the template with what is there
by default. What both begin with, torch and what torch imports for the first optimizer, stands in the first row.

``history.png`` is drawn by a process of its own, which is there for a second. What it takes, and what the training would
keep if it drew the picture itself, is told below and not added.

It counts no memory of a GPU, and no page cache.
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch

from .by_hand import MLP, Plain
from .measuring import Process, conditions, spread

EPOCHS = 3
UPDATES = 200


def resident_megabytes():
    """Of this process; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Parts:
    """Subclasses define ``stages``, which does one part after another and yields its name behind each."""

    def __init__(self, folder):
        os.chdir(folder)

    def run(self):
        """``{part: MB more than before}``; the first part is all that was there."""
        grown, before = {}, 0.0
        for stage in self.stages():
            gc.collect()
            now = resident_megabytes()
            grown[stage], before = now - before, now
        return grown


class ByHand(Parts):
    def stages(self):
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 1.0)
        yield BEGIN
        loop = Plain(MLP._replace(updates=UPDATES), "tensors", None)
        yield SET_UP
        for _ in range(EPOCHS):
            loop.train()
            loop.evaluate()
        yield TRAINING


class Ours(Parts):
    def stages(self):
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 1.0)
        yield BEGIN
        from template.template import TemplateModel  # noqa: F401

        yield "import of the template"
        from .loop import Trainer

        trainer = Trainer(MLP._replace(updates=UPDATES), "tensors")
        yield SET_UP
        trainer.check_init()
        yield "check_init"
        assert trainer.writer is not None
        yield "import of TensorBoard, and its writer"
        trainer.train_loop()
        trainer.eval()
        trainer.wait_for_saves()
        yield "an epoch with its evaluation and checkpoints"
        for _ in range(1, EPOCHS):
            trainer.train_loop()
            trainer.eval()
        trainer.wait_for_saves()
        yield "more epochs"
        trainer.fit(EPOCHS + 1)  # behind it, history.png is drawn
        yield "the end of the run, with history.png"
        from template.output import curves

        curves.draw(*PICTURE)
        yield DRAWN_HERE


def most_of_the_drawing_process():
    """The most memory at a time, in MB, of the process that draws a picture."""
    from template.output import curves_process

    *python, start = curves_process.command()[:3]
    told = start + "; sys.stderr.write(open('/proc/self/status').read())"
    done = subprocess.run([*python, told, *curves_process.command()[3:]], input=json.dumps(PICTURE).encode(),
                          env=os.environ | curves_process.ONE_THREAD, capture_output=True, check=True)
    return int(re.search(rb"VmHWM:\s+(\d+) kB", done.stderr)[1]) * 1024 / 1e6


BEGIN, SET_UP, TRAINING = "torch, and what it imports for an optimizer", "model and data", "training and evaluation"
DRAWN_HERE = "not added: history.png drawn in this process"
ROWS = [{"epoch": epoch, "train/tol_loss": 1 / epoch, "eval/acc": epoch / 9, "lr": 0.1} for epoch in range(1, 9)]
PICTURE = ROWS, "run", None, {}


def measure(folder, rounds):
    """``{kind: {part: [MB of each round]}}``, each of a new process."""
    found = {ByHand: {}, Ours: {}}
    for number in range(rounds):
        for kind, parts in found.items():
            own_folder = folder / f"{kind.__name__}{number}"
            own_folder.mkdir()
            with Process(kind, own_folder) as process:
                for part, megabytes in process("run").items():
                    parts.setdefault(part, []).append(megabytes)
    return found


def tell(found):
    for kind, title in ((ByHand, "By hand"), (Ours, "This template")):
        print(f"\n{title}{'':<{50 - len(title)}}MB more")
        for part, megabytes in found[kind].items():
            print(f"  {part:<46}{spread(megabytes, 1):>22}")
    drawn_here = found[Ours].pop(DRAWN_HERE)
    totals = {kind: [sum(values) for values in zip(*parts.values())] for kind, parts in found.items()}
    more = [ours - by_hand for ours, by_hand in zip(totals[Ours], totals[ByHand])]
    print(f"\nBeyond the plain loop: {spread(more, 1)} MB; the plain loop takes {statistics.median(totals[ByHand]):.0f} MB.")
    print(f"The process that draws history.png has {most_of_the_drawing_process():.0f} MB for a second. A training that "
          f"draws it keeps {spread(drawn_here, 1)} MB.", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=".", help="where runs write")
    options = parser.parse_args(arguments)
    if resident_megabytes() is None:
        print("The memory of a process is unmeasured here: it is read from /proc, which Linux has.")
        return
    print(conditions("1 thread", f"{options.rounds} rounds: medians (min..max)"), flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        tell(measure(Path(folder).resolve(), options.rounds))


if __name__ == "__main__":
    main()
