"""What a trainer says of itself, and the last lines of a run."""

import re
from pathlib import Path

import pytest
import torch
from tiny import Tiny, run_python, tiny_model, tiny_trainer
from torch import nn

from template.metrics.best import note_best
from template.output.console import number
from template.update.lr_scheduler import rates_by_name, rates_line


def test_a_trainer_prints_its_run_how_far_it_is_and_what_is_best():
    trainer = Tiny()
    assert str(trainer) == "Tiny, before check_init()\n  Sequential: 163 trainable parameters, on cpu"
    trainer.ckpt_dir = "run"
    trainer.check_init(use_tb=False)
    trainer.fit(2)
    best = trainer.best_metric
    assert str(trainer) == (
        f"Tiny in run\n  epoch 2 of 2 done, 12 updates\n  best acc {best['acc']:.4f} (epoch {trainer.best_epoch['acc']}), "
        f"tol_loss {best['tol_loss']:.4f} (epoch {trainer.best_epoch['tol_loss']})\n"
        "  Sequential: 163 trainable parameters, on cpu")


def test_the_last_lines_say_what_was_best_and_where_everything_is(capsys):
    trainer = tiny_trainer(ckpt_dir="run", use_tb=True)
    trainer.fit(2)
    first, best, files, curves = capsys.readouterr().out.splitlines()[-4:]
    acc = f"{trainer.best_metric['acc']:.4f} (epoch {trainer.best_epoch['acc']})"
    assert re.fullmatch(r"=== 2 epochs done, \d+\.\d s ===", first) and best.startswith(f"  best acc {acc}, tol_loss ")
    assert files == "  run: best.pth, last.pth, history.csv, log.txt"
    assert curves == "  curves: tensorboard --logdir runs"
    assert Path("run/log.txt").read_text().splitlines()[-4:] == [first, best, files, curves]
    assert all((Path("run") / name).exists() for name in files.partition(": ")[2].split(", "))


def test_of_many_metrics_three_are_named_and_where_the_others_are(capsys):
    trainer = tiny_trainer(key_metric="acc7")
    trainer.metric = lambda pred, y: {f"acc{i}": (pred.argmax(1) == y).float().mean() for i in range(9)}
    trainer.fit(1)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  best acc7"))
    value = r"\S+ \(epoch 1\)"
    assert re.search(rf"best acc7 {value}, tol_loss {value}, acc0 {value}, and 7 more: print_best_metrics\(\)", line)


LOOP = """
from tiny import tiny_trainer
trainer = tiny_trainer(ckpt_dir="run")
for _ in range(2):
    trainer.train_loop()
    trainer.eval()
"""


@pytest.mark.slow
def test_a_plain_loop_says_it_when_the_program_ends_and_not_after_an_error(tmp_path):
    from test_signals import ENVIRONMENT
    said = run_python("-c", LOOP, cwd=tmp_path, env=ENVIRONMENT).stdout
    assert "=== 2 epochs done" in said.splitlines()[-3]
    failed = run_python("-c", LOOP + "raise KeyError('mine')", cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert "epochs done" not in failed.stdout and "KeyError: 'mine'" in failed.stderr


def test_a_run_that_has_nothing_left_to_train_says_no_second_time_where_everything_is(capsys):
    tiny_trainer(ckpt_dir="run").fit(2)
    again = tiny_trainer(ckpt_dir="run")
    again.load_state("auto")
    capsys.readouterr()
    again.fit(2)
    assert "Nothing left to train" in (said := capsys.readouterr().out) and "epochs done," not in said


def test_a_tie_reads_as_one_and_keeps_the_later_weights():
    trainer = tiny_trainer(key_metric="acc")
    said = []
    for epoch, value in enumerate([0.5, 0.5, 0.4, 0.6], 1):
        trainer.epoch = epoch
        said.append((note_best(trainer, {"acc": value}), trainer.best_epoch["acc"]))
    assert said == [("best", 1), ("equals the best", 2), ("", 2), ("best", 4)]


@pytest.mark.parametrize("value, text", [
    (0.5, "0.5000"), (0.99721, "0.9972"), (0.0, "0.0000"), (-1.5, "-1.5000"), (3.2e-5, "3.2000e-05"),
    (12345.6, "12345.6000"), (1.5e6, "1.5000e+06"), (float("nan"), "nan"), (float("inf"), "inf"),
])
def test_numbers_have_four_decimals(value, text):
    assert number(value) == text


# --- learning rates ---------------------------------------------------------------------------------------------------


def optimizer(*groups):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr, **({"name": name} if name else {})}
                            for lr, name in groups], lr=1.0)


@pytest.mark.parametrize("optimizers, names, line", [
    ([optimizer((0.1, None))], {"0": 0.1}, "1.00e-01"),
    ([optimizer((0.1, None)), optimizer((0.2, None))], {"0": 0.1, "1": 0.2}, "1.00e-01 2.00e-01"),
    ([optimizer((0.1, "backbone"), (0.2, "head"))], {"backbone": 0.1, "head": 0.2}, "backbone 1.00e-01 head 2.00e-01"),
    ([optimizer((0.1, "a")), optimizer((0.2, "a"))], {"a": 0.1, "1.a": 0.2}, "a 1.00e-01 2.00e-01"),
    ([optimizer((0.1, None), (0.1, None))], {"0.0": 0.1, "0.1": 0.1}, "1.00e-01"),
    ([optimizer(*((10.0 ** -i, None) for i in range(5)))], {f"0.{i}": 10.0 ** -i for i in range(5)}, "1.00e-04 to 1.00e+00"),
])
def test_every_group_has_a_name_and_a_line_shows_what_differs(optimizers, names, line):
    assert rates_by_name(optimizers) == pytest.approx(names) and rates_line(optimizers) == line


def test_the_rate_of_every_group_stands_in_the_line_the_csv_and_tensorboard(capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    model = tiny_model()
    groups = [{"params": model[0].parameters(), "lr": 1e-3, "name": "backbone"},
              {"params": model[-1].parameters(), "lr": 0.1, "name": "head"}]
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(groups)], ckpt_dir="run", use_tb=True)
    trainer.fit(1)
    assert "| lr backbone 1.00e-03 head 1.00e-01 |" in capsys.readouterr().out
    header, row = (line.split(",") for line in Path("run/history.csv").read_text().splitlines())
    assert [(name, value) for name, value in zip(header, row) if name.startswith("lr")] == [
        ("lr/backbone", "0.001"), ("lr/head", "0.1")]
    events = EventAccumulator("runs/run")
    events.Reload()
    assert [name for name in events.Tags()["scalars"] if name.startswith("lr/")] == ["lr/backbone", "lr/head"]


def test_with_one_group_the_csv_has_the_column_it_always_had():
    trainer = tiny_trainer(ckpt_dir="run")
    trainer.fit(1)
    assert ",lr," in Path("run/history.csv").read_text()
