"""What several processes cost: time per update with one and two ranks, and the share of it that is communication.

    python -m benchmarks.scaling                    # in about five minutes
    python -m benchmarks.scaling --rounds 3 --ranks 2

Weak scaling: every rank has the same batch, so without communication an update would take as long with two ranks as with
one. "Each on its own" is two ranks that exchange nothing (``parallel = None``): what sharing caches and memory costs. The
rest is communication: gradients, and the few bytes at each log point. Every rank has a CPU of its own and one thread; every
figure is of new processes started by torchrun, in rotating order; medians, ratios within a round.

At the end an estimate on paper for GPUs, from this formula and nothing measured here: an all-reduce of P bytes among N
ranks takes 2 (N - 1) / N * P / bandwidth in a ring (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for
clusters of workstations", 2009), a reduce-scatter or an all-gather half of it, and hides behind the backward, which is two
thirds of an update.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH, FEATURES, HIDDEN, CLASSES, UPDATES, PRACTICE = 64, 256, 1024, 10, 60, 20
ONE, TWO, ALONE, FSDP = "1 rank", "{} ranks, ddp", "{} ranks, each on its own", "{} ranks, fsdp"


# --- in the ranks: torch is not imported above ----------------------------------------------------------------------


def network():
    from torch import nn

    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
                         nn.Linear(HIDDEN, CLASSES))


def data(ranks):
    import torch

    generator = torch.Generator().manual_seed(1)
    count = BATCH * ranks * (UPDATES + PRACTICE)
    return torch.randn(count, FEATURES, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def by_hand(ranks, parallel):
    """Seconds per update of a plain loop with ``DistributedDataParallel``."""
    import torch
    import torch.distributed as dist
    from torch import nn

    rank = int(os.environ.get("RANK", 0))
    torch.manual_seed(0)
    model = network()
    if parallel:
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x, y = data(ranks)
    batches = list(zip(x.split(BATCH), y.split(BATCH)))[rank::ranks]
    for number, (features, labels) in enumerate(batches):
        if number == PRACTICE:
            started = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features), labels).backward()
        optimizer.step()
    seconds = (time.perf_counter() - started) / UPDATES
    if parallel:
        dist.destroy_process_group()
    return seconds


def template(ranks, parallel):
    """Seconds per update of the template with everything that is on by default but files."""
    import torch
    from torch import nn

    from template import Callback, TensorLoader
    from template.template import TemplateModel

    class Clock(Callback):
        def on_after_step(self, model):
            if model.global_step in (PRACTICE, PRACTICE + UPDATES):
                self.times.append(time.perf_counter())

        times = []

    class Trainer(TemplateModel):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model_list = [network()]
            self.optimizer_list = [torch.optim.SGD(self.model_list[0].parameters(), 0.01, momentum=0.9)]
            self.criterion = nn.CrossEntropyLoss()
            x, y = data(ranks if parallel else 1)
            self.train_loader = TensorLoader(x, y, batch_size=BATCH)
            self.seed, self.callbacks, self.parallel = 0, [Clock()], parallel or None
            self.ckpt_dir = f"check_point/{os.environ.get('RANK', 0)}"

    trainer = Trainer()
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    started, ended = Clock.times
    return (ended - started) / UPDATES


def work(contender, ranks, parallel):
    import torch

    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[rank % len(cpus)]})
    seconds = {"by_hand": by_hand, "template": template}[contender](ranks, parallel)
    Path(f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seconds))


# --- measuring ------------------------------------------------------------------------------------------------------


def run(contender, ranks, parallel):
    """Seconds per update: the slowest rank's."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-m", "benchmarks.scaling", "--process", contender, str(ranks), parallel]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *launcher, *arguments], cwd=folder, env=environment, capture_output=True,
                              text=True)
        if done.returncode:
            raise RuntimeError(f"A contender failed:\n{done.stdout}\n{done.stderr}")
        return max(json.loads(path.read_text()) for path in Path(folder).glob("*.json"))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", help="not used: what is measured writes nothing that counts")
    parser.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.process:
        contender, ranks, parallel = options.process
        work(contender, int(ranks), parallel)
        return
    from .measuring import conditions, in_rounds, ratio, row, spread

    ranks = options.ranks
    kinds = {ONE: (1, ""), ALONE.format(ranks): (ranks, ""), TWO.format(ranks): (ranks, "ddp")}
    jobs = {(contender, name): (contender, *kind) for contender in ("by_hand", "template") for name, kind in kinds.items()}
    jobs["template", FSDP.format(ranks)] = ("template", ranks, "fsdp")
    rounds = f"{options.rounds} rounds: medians, ratios (min..max) within a round"
    print(conditions("1 thread and 1 CPU for each rank", rounds))
    seconds = in_rounds(options.rounds, [lambda key=key, job=job: {key: run(*job)} for key, job in jobs.items()], practice=0)
    parameters = FEATURES * HIDDEN + HIDDEN * HIDDEN + HIDDEN * CLASSES + 2 * HIDDEN + CLASSES
    print(f"\nMLP of {parameters:,} parameters, batch {BATCH} on each rank, gloo on this machine")
    for contender, title in (("by_hand", "by hand, plain"), ("template", "this template")):
        print(f" {title}")
        for (who, name), own in seconds.items():
            if who == contender:
                row(name, own, seconds[contender, ONE] if name != ONE else None, "1 rank")
        shares = [1 - apart / together for apart, together in zip(seconds[contender, ALONE.format(ranks)],
                                                                  seconds[contender, TWO.format(ranks)])]
        print(f"  {'share of communication, ddp':<52}{'':>12}   {spread(shares)}")
    print(f"  {'this template to by hand, ddp':<52}{'':>12}   "
          f"{ratio(seconds['template', TWO.format(ranks)], seconds['by_hand', TWO.format(ranks)])}")
    estimate()


# --- on paper -------------------------------------------------------------------------------------------------------

# parameters, operations of an update, share of the peak that such networks reach
MODELS = {
    "ResNet-50, 256 images a GPU, ddp": (25.6e6, 256 * 3 * 4.1e9, 0.1),
    "Transformer of 350M, 16k tokens a GPU, ddp": (350e6, 6 * 350e6 * 16384, 0.4),
    "Transformer of 7B, 16k tokens a GPU, fsdp": (7e9, 6 * 7e9 * 16384, 0.4),
}
PEAK = 989e12                     # bf16 operations a second of an H100, by its data sheet
INSIDE, BETWEEN = 450e9, 50e9     # bytes a second and direction: NVLink of a GPU; a 400 Gbit/s adapter for each GPU
OF_NOMINAL = 0.7                  # share of these that collectives reach
BYTES = 8                         # a parameter: float32 gradients twice around; fsdp: bf16 weights twice, gradients once


def estimate():
    print("\nESTIMATE, nothing of it measured: H100, data sheets' bandwidths times 0.7, exchange hidden behind the backward")
    print(f"  {'':<46}{'GPUs':>5}{'compute ms':>12}{'exchange ms':>13}{'efficiency':>12}")
    for name, (parameters, operations, reached) in MODELS.items():
        compute = operations / (PEAK * reached)
        for count in (8, 64):
            bandwidth = OF_NOMINAL * (INSIDE if count <= 8 else BETWEEN)
            exchange = (count - 1) / count * BYTES * parameters / bandwidth
            efficiency = compute / max(compute, compute / 3 + exchange)
            print(f"  {name:<46}{count:>5}{1000 * compute:>12.1f}{1000 * exchange:>13.1f}{efficiency:>12.0%}")


if __name__ == "__main__":
    main()
