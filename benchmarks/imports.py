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

    def end_at_second_forward(self, model, stage):
        forwards = []

        def count(module, inputs):
            if module.training:  # else it is the template's evaluation before the first update
                forwards.append(1)
                if len(forwards) == 2:
                    self.end(stage)

        model.register_forward_pre_hook(count)


def import_torch(stages):
    import torch

    stages.end("import torch")
    torch.set_num_threads(1)


def import_template(stages):
    import_torch(stages)
    from template.template import TemplateModel  # noqa: F401

    stages.end("import template")


def update_by_hand(stages):
    import_torch(stages)
    from .by_hand import MLP, Plain

    loop = Plain(MLP._replace(updates=2), "tensors", None)
    stages.end_at_second_forward(loop.model, "first update")
    stages.end("set up")
    loop.train()


def update_of_template(stages):
    import_template(stages)
    from .by_hand import MLP
    from .loop import Trainer

    trainer = Trainer(MLP._replace(updates=2), "tensors")
    stages.end_at_second_forward(trainer.model_list[0], "first update")
    stages.end("set up")
    trainer.check_init()
    stages.end("check_init")
    trainer.train_loop()


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
    by_hand = stage("update_by_hand", "first update")
    row("by hand", by_hand)
    row("this template: check_init", stage("update_of_template", "check_init"))
    row("this template: from then to its end", stage("update_of_template", "first update"))
    row("this template: both", stage("update_of_template", "check_init", "first update"), by_hand, "by hand")


def tell_modules(modules):
    by_hand = {name for names in modules["update_by_hand"].values() for name in names}
    print(f"Heavy modules of the hand-written loop: {', '.join(sorted(by_hand)) or 'none'}; beyond these")
    for stage in ("import template", "check_init", "first update"):
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
