"""In a notebook, with a real kernel: text is under its cell and once in the log; Ctrl-C ends the cell, not the trainer."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest
from fork_server import start_python
from tiny import PATH

nbclient = pytest.importorskip("nbclient", reason="needs a kernel: pip install ipykernel nbclient nbformat")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.slow

SETUP = '''
import asyncio, os, signal, sys, threading, time
import torch
from tiny import Tiny, tiny_model, weights
from template import Callback
from template.callbacks.history import History
History._draw = lambda self, model: None             # matplotlib takes longer than all the rest

class Interrupt(Callback):
    """Ctrl-C when ``moment`` comes for the n-th time from now on."""
    wanted = ()
    def at(self, moment, n, times=1):
        self.wanted, self.left, self.times = moment, n, times
    def hear(self, moment):
        if moment == self.wanted:
            self.left -= 1
            for _ in range(self.times if self.left == 0 else 0):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
    def on_batch(self, model, batch):
        self.hear("batch")
    def on_after_step(self, model):
        self.hear("after_step")
    def on_eval_batch(self, model, batch):
        self.hear("eval_batch")
    def on_train_end(self, model, result):
        self.hear("train_end")
'''


@dataclass
class Cell:
    """What stands under a cell when the notebook is done."""

    stdout: str = ""
    stderr: str = ""
    error: str = ""
    shown: list = field(default_factory=list)  # as text
    kinds: list = field(default_factory=list)  # the best kind of each of these


@pytest.fixture(autouse=True)
def forked_kernels(monkeypatch):
    """A kernel is a fork of a process that has torch."""
    def launch(command, cwd=None, env=None, **_):
        env = {name: value for name, value in env.items() if name != "JPY_PARENT_PID"}  # it is no child of this process
        process = start_python(command[1:], cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
        while process.poll() is None and os.getpgid(process.pid) != process.pid:
            time.sleep(0.001)  # until it has a group of its own, to which the manager sends signals
        return process

    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", launch)


def start_kernel(folder):
    """A kernel of this Python in ``folder``, which uses nothing that is installed or written elsewhere."""
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    spec = folder / "kernels" / "own"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "own", "language": "python"}))
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    manager = KernelManager(kernel_name="own", kernel_spec_manager=specs,
                            connection_file=str(folder / "connection.json"))
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                   "IPYTHONDIR": str(folder / "ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment.pop("PYTEST_CURRENT_TEST")  # ipykernel looks for it, and would not show what is written to stderr itself
    return manager, {"env": environment, "cwd": str(folder)}


def run_cells(folder, before_cell=lambda name, manager: None, **sources):
    """Run a notebook as a person does who goes on after an error.

    Args:
        before_cell: called with the name of the next cell and the manager of the kernel.
        sources: the cells by name.

    Returns:
        ``{name: Cell}``.
    """
    manager, options = start_kernel(folder)
    names = list(sources)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources.values()])
    client = nbclient.NotebookClient(notebook, km=manager, timeout=120, allow_errors=True)
    client.on_cell_execute = lambda cell, cell_index: before_cell(names[cell_index], manager)
    try:
        client.execute(**options)
    finally:
        client.kc.stop_channels()
        manager.shutdown_kernel(now=True)
    return {name: what_stands_under(cell) for name, cell in zip(names, notebook.cells)}


def what_stands_under(cell):
    found = Cell()
    for output in cell.outputs:
        if output.output_type == "stream":
            setattr(found, output.name, getattr(found, output.name) + output.text)
        elif output.output_type == "error":
            found.error += re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output.traceback))  # without colours
        else:
            found.shown.append(output.data.get("text/plain"))
            found.kinds.append(min(output.data))
    return found


def lines(text):
    """What was said, line by line: the template's by their beginning, "epoch 1 train"; without its notes, which are
    indented, times, and the empty lines that progress bars leave."""
    said = [re.sub(r"=== \S+ \S+ \|", "=== |", line) for line in text.splitlines() if line.strip() and line[:2] != "  "]
    said = [re.sub(r"(epochs done), [\d.]+ s ===$", r"\1", line) for line in said]
    return [" ".join(line.split()[:3]) if line.startswith("epoch") else line for line in said]


def trained(*numbers):
    """The lines of these epochs."""
    return [f"epoch {number} {part}" for number in numbers for part in ("train", "eval")]


def test_text_stands_under_the_cell_that_printed_it_and_in_the_log_once(tmp_path):
    cells = run_cells(
        tmp_path,
        check_init=SETUP + """
class FromAThread(Callback):
    def on_train_end(self, model, result):
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()

trainer = Tiny(ckpt_dir="run", callbacks=[FromAThread()])
trainer.check_init(use_tb=False)
print("behind check_init")""",
        plain_loop="""
for _ in range(2):
    trainer.train_loop()
    print("mine", trainer.epoch)
    trainer.eval()""",
        epochs="""
for epoch in trainer.epochs(4):
    trainer.train_loop()
    print("mine", epoch)
    trainer.eval()""",
        fit='trainer.fit(5); print("behind fit")',
        alone='print("not of the run")',
        error='trainer.train_loop()\nprint("before the error")\n1 / 0',
        after_error='trainer.eval()\nsys.stdout.flush()\nprint("half a line", end="")',
        capture='%%capture captured\ntrainer.train_loop(); trainer.eval(); print("mine, captured")',
        after_capture='trainer.train_loop(); trainer.eval()\nprint(captured.stdout.count("epoch"), "captured lines")',
        shown="""
from IPython.display import clear_output, display
trainer.train_loop()
print("cleared")
display("shown")
clear_output()
display("shown later")
await asyncio.sleep(0)
score = trainer.eval()""",
        other='other = Tiny(ckpt_dir="other"); other.check_init(use_tb=False); other.train_loop(); other.eval()',
        first_again='trainer.train_loop(); trainer.eval(); print("the first one again")',
        other_again='other.train_loop(); other.eval(); print("the other one again")',
        way_of_2021="""
from template.output.logger import Logger
kernels = sys.stdout
sys.stdout = Logger("old.txt")
print("the way of 2021")
print(sys.stdout.parent_header["msg_type"], sys.stdout.topic == kernels.topic, hasattr(sys.stdout, "typo"))""",
        next_cell='print("in the next cell")\nsys.stdout.restore()\nprint(sys.stdout is kernels)')
    said = {name: lines(cell.stdout) for name, cell in cells.items()}
    of_loop = [line for n in (1, 2, 3, 4) for line in ("from a thread", f"epoch {n} train", f"mine {n}", f"epoch {n} eval")]
    assert said == {
        "check_init": ["=== | run | cpu | seed 3 ===", "behind check_init"],
        "plain_loop": of_loop[:8],
        "epochs": [*of_loop[8:], "=== 4 epochs done"],
        "fit": ["from a thread", *trained(5), "=== 5 epochs done", "behind fit"],
        "alone": ["not of the run"],
        "error": ["from a thread", "epoch 6 train", "before the error"],
        "after_error": ["epoch 6 eval", "half a line"],
        "capture": [],
        "after_capture": ["from a thread", *trained(8), "2 captured lines"],
        "shown": ["epoch 9 eval"],
        "other": ["=== | other | cpu | seed 3 ===", *trained(1)],
        "first_again": ["from a thread", *trained(10), "the first one again"],
        "other_again": [*trained(2), "the other one again"],
        "way_of_2021": ["the way of 2021", "execute_request True False"],
        "next_cell": ["in the next cell", "True"],
    }
    assert cells["shown"].shown == ["'shown later'"]
    assert [name for name, cell in cells.items() if cell.error] == ["error"] and "ZeroDivisionError" in cells["error"].error

    # fit() ends the run's log, as it does in a script
    log = [*said["check_init"], *of_loop, "=== 4 epochs done", *said["fit"][:-1]]
    log += [*said["error"], *said["after_error"], "from a thread", *trained(7), "mine, captured", *said["after_capture"]]
    log += ["from a thread", "epoch 9 train", "cleared", "epoch 9 eval", *said["first_again"]]
    assert lines((tmp_path / "run/log.txt").read_text()) == log
    assert lines((tmp_path / "other/log.txt").read_text()) == said["other"] + said["other_again"]
    assert lines((tmp_path / "old.txt").read_text()) == said["way_of_2021"] + said["next_cell"][:1]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


TRAINER = '''
def build(folder, **attributes):
    """Dropout, accumulation and a schedule per update: what depends on the exact place."""
    interrupt = Interrupt()
    trainer = Tiny(ckpt_dir=folder, callbacks=[interrupt], lr_scheduler_type="cosine", accumulate_steps=2, **attributes)
    trainer.check_init(use_tb=False)
    return trainer, interrupt

whole, _ = build("whole")
whole.fit(4)
trainer, interrupt = build("run")
'''
SAME_BITS = '''
print(torch.equal(weights(trainer), weights(whole)), trainer.best_metric == whole.best_metric, trainer.epochs_done)
rows = [row for folder in ("run", "whole") for row in [[line.rsplit(",", 1)[0] for line in open(f"{folder}/history.csv")]]]
print(rows[0] == rows[1])
'''


def test_ctrl_c_saves_and_ends_the_cell_and_the_trainer_goes_on_to_the_same_bits(tmp_path):
    cells = run_cells(
        tmp_path,
        setup=SETUP + TRAINER,
        in_fit='interrupt.at("batch", 6)\nprint("returned", trainer.fit(4))',
        looked="""
torch.rand(3)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
print(trainer.epoch, trainer.batches_done, torch.load("run/last.pth")["batch"])
print(len(trainer.test()), len(trainer.predict(torch.zeros(2, 6))))""",
        in_plain_loop="""
interrupt.at("eval_batch", 4)                        # the first of epoch 2
for _ in range(10):
    trainer.train_loop()
    trainer.eval()""",
        evaluated='torch.rand(3)\nscore = trainer.eval()\nprint(trainer.epochs_done)',
        in_epochs="""
interrupt.at("train_end", 1)
for epoch in trainer.epochs(4):
    trainer.train_loop()
    trainer.eval()""",
        finished='best = trainer.fit(4)' + SAME_BITS,
        not_training='while True:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(1)\n    print("not interrupted")',
    )
    goes_on = "This trainer can be used at once, and goes on from there."
    assert {name: lines(cell.stdout) for name, cell in cells.items() if name != "setup"} == {
        "in_fit": [f"Interrupted; saved at epoch 1, update 3 in run. {goes_on}"],
        "looked": ["True True", "1 6 6", "2 2"],
        "in_plain_loop": [*trained(1), "epoch 2 train", "Interrupted; saved at epoch 2, update 6 in run. The evaluation of "
                          f"epoch 2 will be done again. {goes_on}"],
        "evaluated": ["epoch 2 eval", "2"],
        "in_epochs": ["epoch 3 train", "Interrupted; saved at epoch 3, update 9 in run. The evaluation of epoch 3 will be "
                      f"done again. {goes_on}"],
        "finished": [*trained(3, 4), "=== 4 epochs done", "True True 4", "True"],
        "not_training": [],
    }
    for name in ("in_fit", "in_plain_loop", "in_epochs"):
        assert cells[name].error == "KeyboardInterrupt", "and no frames"
        assert "SIGINT: saves after this update; again: leaves at once." in cells[name].stderr
    assert "time.sleep(1)" in cells["not_training"].error and "KeyboardInterrupt" in cells["not_training"].error
    everything = "".join(cell.stdout + cell.stderr + cell.error for cell in cells.values())
    assert "SystemExit" not in everything and "To exit" not in everything
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("Interrupted; saved at epoch") == 3 and "Traceback" not in log


def test_a_second_ctrl_c_interrupts_at_once_says_what_is_lost_and_the_trainer_can_be_used(tmp_path):
    cells = run_cells(
        tmp_path,
        setup=SETUP + TRAINER,
        in_update='interrupt.at("batch", 10, times=2)  # the second of an update\ntrainer.fit(4)',
        goes_on='''
print(trainer.epoch, trainer.global_step, len(trainer.predict(torch.zeros(2, 6))))
trainer.train_loop()
print(trainer.global_step, trainer.batches_done)''',
        goes_back='path = trainer.load_state("auto")\ninterrupt.at("eval_batch", 8, times=2)\ntrainer.fit(4)',
        finished='best = trainer.fit(4)' + SAME_BITS,
    )
    said = {name: lines(cell.stdout) for name, cell in cells.items()}
    assert said["in_update"][-1] == (
        "Interrupted at once, in the middle of what follows epoch 2, update 4. The newest save is of update 3. This trainer "
        "begins that again, but not to the same bits; load_state('auto') goes back to the save.")
    assert said["goes_on"] == ["2 4 2", "epoch 2 train", "6 6"]
    assert said["goes_back"] == [
        "load model state from run/last.pth: epoch 1 done, 3 updates", *trained(2, 3), "epoch 4 train",
        "Interrupted at once, at epoch 4, update 12, which was not saved. The newest save is of update 9. This trainer goes "
        "on from here."]
    assert said["finished"] == [*trained(4), "=== 4 epochs done", "True True 4", "True"]
    for name in ("in_update", "goes_back"):
        assert "KeyboardInterrupt" in cells[name].error


def test_the_stop_button_of_a_notebook_reaches_training_with_workers(tmp_path):
    """The manager interrupts the whole group of processes, workers too."""
    def press(name, manager):
        if name in ("in_training", "in_evaluation"):
            threading.Thread(target=press_when, args=(tmp_path / name, manager)).start()

    def press_when(marker, manager):
        while not marker.exists():
            time.sleep(0.01)
        manager.interrupt_kernel()

    cells = run_cells(
        tmp_path, press,
        setup=SETUP + """
from torch.utils.data import DataLoader

class Marker(Callback):
    \"\"\"Tells the test where training is, and waits for it there, in Python and in C.\"\"\"
    name = ""
    def wait(self, name):
        if self.name == name:
            self.name = ""
            open(name, "w").close()
            for _ in range(100):
                time.sleep(0.02)
                torch.zeros(1000).sum()
                if trainer.world.wish is not None:
                    return
    def on_batch(self, model, batch):
        self.wait("in_training")
    def on_eval_batch(self, model, batch):
        self.wait("in_evaluation")

marker = Marker()
def build(folder, **attributes):
    trainer = Tiny(ckpt_dir=folder, **attributes)
    trainer.train_loader = DataLoader(trainer.train_loader.dataset, 10, shuffle=True, num_workers=2)
    trainer.slice_tensors = False
    trainer.check_init(use_tb=False)
    return trainer
whole = build("whole")
whole.fit(2)
trainer = build("run", callbacks=[marker])""",
        in_training='marker.name = "in_training"\nfor _ in range(10):\n    trainer.train_loop()\n    trainer.eval()',
        in_evaluation='marker.name = "in_evaluation"\nfor _ in range(10):\n    trainer.train_loop()\n    trainer.eval()',
        finished="best = trainer.fit(2)" + SAME_BITS)
    for name in ("in_training", "in_evaluation"):
        assert lines(cells[name].stdout)[-1].startswith("Interrupted; saved at epoch 1, update")
        assert cells[name].error == "KeyboardInterrupt"
    assert lines(cells["finished"].stdout) == [*trained(1, 2), "=== 2 epochs done", "True True 2", "True"]


def test_sigterm_ends_a_kernel_after_the_save_as_it_ends_a_script(tmp_path):
    manager, options = start_kernel(tmp_path)
    manager.start_kernel(**options)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        client.execute(SETUP + """
class Terminate(Callback):
    def on_batch(self, model, batch):
        if model.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
trainer = Tiny(ckpt_dir="run", callbacks=[Terminate()])
trainer.check_init(use_tb=False)
trainer.fit(3)""")
        process = manager.provisioner.process
        assert process.wait(timeout=60) == -signal.SIGTERM  # a shell calls that 143
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    log = (tmp_path / "run/log.txt").read_text()
    assert log.splitlines()[-1] == "Stopped by a signal; saved at epoch 1, update 5 in run. load_state('auto') continues."
    import torch
    assert torch.load(tmp_path / "run/last.pth")["global_step"] == 5


def test_under_python_i_the_prompt_comes_back_and_the_trainer_goes_on(tmp_path):
    (tmp_path / "job.py").write_text(SETUP + TRAINER + 'interrupt.at("batch", 6)\nbest = trainer.fit(4)\n')
    typed = 'interrupt.at("eval_batch", 2)\nfor epoch in trainer.epochs(4):\n    _ = trainer.train_loop(), trainer.eval()\n'
    typed += f"\nbest = trainer.fit(4)\n{SAME_BITS}1 / 0\nprint('still here')\n"
    done = subprocess.run([sys.executable, "-i", "job.py"], cwd=tmp_path, input=typed, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0 and "SystemExit" not in done.stderr
    assert done.stderr.count("Interrupted") == 2, "the ends of two tracebacks"
    said = lines(done.stdout)
    at = said.index("=== | run | cpu | seed 3 ===")
    goes_on = "This trainer can be used at once, and goes on from there."
    assert said[at + 1:] == [
        f"Interrupted; saved at epoch 1, update 3 in run. {goes_on}", "epoch 1 train",
        f"Interrupted; saved at epoch 1, update 3 in run. The evaluation of epoch 1 will be done again. {goes_on}",
        *trained(1, 2, 3, 4), "=== 4 epochs done", "True True 4", "True", "still here"]


def test_the_live_figure_is_redrawn_in_place_and_begins_anew_under_the_next_cell(tmp_path):
    cells = run_cells(
        tmp_path,
        fit=SETUP + """
from template import LivePlot
trainer = Tiny(ckpt_dir="run", callbacks=[LivePlot()], log_per_step=1)
trainer.check_init(use_tb=False)
best = trainer.fit(3)""",
        more="best = trainer.fit(5)",
        own="""
plot = LivePlot(epochs=9)
for epoch in range(1, 4):
    plot.log({"train_loss": 1 / epoch, "val_acc": epoch / 10}, epoch=epoch)
plot.close()""")
    for name, last, quantity, line in (("fit", 3, "tol_loss", "epoch 3/3"), ("more", 5, "tol_loss", "epoch 5/5"),
                                       ("own", 3, "loss", "epoch 3/9")):
        figure, below = cells[name].shown
        assert figure.startswith(quantity) and figure.splitlines()[-2].split()[-1] == str(last), "text beside the SVG"
        assert below.startswith(line) and "best acc" in below, "the one line, and no progress bar beside it"
        assert cells[name].kinds == ["image/svg+xml", "text/plain"] and not cells[name].stderr + cells[name].error
