"""What starting up costs: the import of the template beyond torch's, and the way to the end of the first update.

    python -m benchmarks.imports                    # in about two minutes
    python -m benchmarks.imports --rounds 30

Every figure is of new processes, one of each kind a round, in rotating order. The first update is that of the tiny MLP of
``loop.py``, over when the forward of the second begins: by hand from the first line of the loop, in the template from
``check_init`` on, with everything that is there by default: the look at the first batch, log file, TensorBoard, progress
bar. At the end stand the heavy modules of each stage that the hand-written loop does without.

Modules come from the page cache: a first start after a boot takes longer, for everybody.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("PIL", "google.protobuf", "grpc", "matplotlib", "numpy", "pandas", "scipy", "sklearn", "sympy", "tensorboard",
         "tensorflow", "torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "torchmetrics", "torchsummary", "tqdm")


# --- in the processes that are measured: torch is not imported above ------------------------------------------------


class Stages:
    """Seconds of each stage, and the heavy modules that it imported."""

    def __init__(self):
        self.seconds, self.modules = {}, {}
        self._started = time.perf_counter()

    def end(self, stage):
        self.seconds[stage] = time.perf_counter() - self._started
        known = {name for names in self.modules.values() for name in names}
        self.modules[stage] = [name for name in HEAVY if name in sys.modules and name not in known]
        self._started = time.perf_counter()

    def end_at_forwards(self, model, *stages):
        """One stage ends with the beginning of each forward of the training."""
        left = list(stages)

        def count(module, inputs):
            if module.training and left:  # else it is the template's evaluation before the first update
                self.end(left.pop(0))

        model.register_forward_pre_hook(count)

    def note(self, owner, name, what):
        """How long a function takes, which is part of some stage."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

        setattr(owner, name, timed)


def import_torch(stages):
    import torch

    stages.end("import torch")
    torch.set_num_threads(1)


def import_template(stages):
    import_torch(stages)
    from template.template import TemplateModel  # noqa: F401

    stages.end("import template")


def make_an_optimizer(stages):
    """The first one of a process has torch import its compiler, also where nothing is compiled (seen with 2.13)."""
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 1.0)
    stages.end("the first optimizer")


def update_by_hand(stages):
    import_torch(stages)
    make_an_optimizer(stages)
    from .by_hand import MLP, Plain

    loop = Plain(MLP._replace(updates=2), "tensors", None)
    stages.end_at_forwards(loop.model, "to the first forward", "first update")
    stages.end("set up")
    loop.train()


def update_of_template(stages):
    import_template(stages)
    make_an_optimizer(stages)
    from template.output import event_writer
    from template.run import preflight, setup

    from .by_hand import MLP
    from .loop import Trainer

    trainer = Trainer(MLP._replace(updates=2), "tensors")
    stages.end_at_forwards(trainer.model_list[0], "to the first forward", "first update")
    stages.note(setup.run_folder, "announce", "of it: folder, log and configuration")
    stages.note(setup.run_folder, "_git_commit", "of it: the git commit of the code")
    stages.note(event_writer, "make_writer", "of it: TensorBoard's writer")
    stages.note(preflight.Preflight, "on_train_start", "of it: an eval batch is scored")
    stages.end("set up")
    trainer.check_init()
    stages.end("check_init")
    trainer.train_loop()


WAY = [  # (what, stages of the process, whether the hand-written loop has them); "of it" is in a row above
    ("import torch", ["import torch"], True),
    ("import template", ["import template"], False),
    ("the first optimizer: torch imports torch._dynamo", ["the first optimizer"], True),
    ("set up: model, data, optimizer", ["set up"], True),
    ("check_init", ["check_init"], False),
    ("of it: folder, log and configuration", ["of it: folder, log and configuration"], False),
    ("of it: the git commit of the code", ["of it: the git commit of the code"], False),
    ("train_loop, to the first forward", ["to the first forward"], True),
    ("of it: import of TensorBoard and its writer", ["of it: TensorBoard's writer"], False),
    ("of it: an eval batch is scored before the training", ["of it: an eval batch is scored"], False),
    ("the first update", ["first update"], True),
]
KINDS = {kind.__name__: kind for kind in (import_torch, import_template, update_by_hand, update_of_template)}


# --- measuring and telling ------------------------------------------------------------------------------------------


def run(folder, modules, kind):
    """One process of this kind: ``{(kind, stage): seconds}``; ``modules[kind]`` becomes its heavy modules by stage."""
    from .measuring import ALLOCATOR, Terminal

    terminal = Terminal() if hasattr(os, "openpty") else None
    path = folder / "stages.json"
    done = subprocess.run([sys.executable, "-m", "benchmarks.imports", "--process", kind, str(path)], cwd=folder,
                          env=os.environ | ALLOCATOR | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
                          stderr=terminal and terminal.writer)
    if terminal:
        terminal.close()
    if done.returncode:
        raise RuntimeError(f"The process of {kind} ended with {done.returncode}.\n{terminal and terminal.end}")
    seconds, modules[kind] = json.loads(path.read_text())
    return {(kind, stage): value for stage, value in seconds.items()}


def tell(seconds):
    from .measuring import row

    def stage(kind, *stages):
        return [sum(parts) for parts in zip(*[seconds[kind, stage] for stage in stages])]

    torch_alone = stage("import_torch", "import torch")
    print("\nImport")
    row("import torch", torch_alone)
    row("from template.template import TemplateModel", stage("import_template", "import template"))
    row("both", stage("import_template", "import torch", "import template"), torch_alone, "import torch")
    print("The first update of the tiny MLP")
    by_hand = stage("update_by_hand", "to the first forward", "first update")
    row("by hand", by_hand)
    row("this template: check_init", stage("update_of_template", "check_init"))
    row("this template: from then to its end", stage("update_of_template", "to the first forward", "first update"))
    row("this template: both", stage("update_of_template", "check_init", "to the first forward", "first update"), by_hand,
        "by hand")
    print("From the first import to the end of the first update, by part: this template, and by hand")
    for what, stages, is_shared in WAY:
        of = [stage("update_by_hand", *stages), "by hand"] if is_shared else []
        row(what, stage("update_of_template", *stages), *of)
    whole = [*dict.fromkeys(name for _, names, _ in WAY if not names[0].startswith("of it: ") for name in names)]
    row("in all", stage("update_of_template", *whole),
        stage("update_by_hand", *[name for name in whole if ("update_by_hand", name) in seconds]), "by hand")


def tell_modules(modules):
    by_hand = {name for names in modules["update_by_hand"].values() for name in names}
    print(f"Heavy modules of the hand-written loop: {', '.join(sorted(by_hand)) or 'none'}; beyond these")
    for stage in ("import template", "check_init", "to the first forward"):
        names = [name for name in modules["update_of_template"][stage] if name not in by_hand]
        print(f"  {f'this template: {stage}':<52}{', '.join(names) or 'none'}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", default=".", help="where the runs write")
    parser.add_argument("--process", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.process:
        kind, path = options.process
        stages = Stages()
        KINDS[kind](stages)
        Path(path).write_text(json.dumps([stages.seconds, stages.modules]))
        return
    from .measuring import conditions, in_rounds

    print(conditions("1 thread, not pinned, page cache warm",
                     f"{options.rounds} rounds: medians, ratios (min..max) within a round"), flush=True)
    modules = {}
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        seconds = in_rounds(options.rounds, [partial(run, Path(folder).resolve(), modules, kind) for kind in KINDS])
    tell(seconds)
    tell_modules(modules)


if __name__ == "__main__":
    main()
