"""The classification example, from its YAML file on real digits: figures, going on in the middle, two processes."""

import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from ranks import epochs_told, history, run_ranks
from tiny import ROOT, weights

from template.hooks import Callback

SCRIPT = ROOT / "examples/classification/train_cls.py"
SMALL = ["--width", "8", "--epochs", "4", "--warmup_epochs", "1.0", "--device", "cpu"]


class EndAfter(Callback):
    """Ends the run within an epoch, as a cluster does."""

    def __init__(self, updates: int):
        self.updates = updates

    def on_after_step(self, model):
        if model.global_step == self.updates:
            model.should_stop = "now"


def trained(*words):
    return runpy.run_path(str(SCRIPT))["main"]([*SMALL, *words])


def test_the_file_of_the_example_has_the_keys_that_its_trainer_has_and_reads_the_same_when_printed():
    names = set(re.findall(r"^(\w+):", (SCRIPT.parent / "cls.yml").read_text(), re.M))
    keys = runpy.run_path(str(SCRIPT))["Keys"]
    assert names - {"set"} == set(keys.__dataclass_fields__) - {"seed", "resume"}
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 125 and "python examples/classification/train_cls.py" in text.split('"""')[1]


@pytest.mark.slow
def test_three_seeds_all_learn_the_digits():
    runs = [trained("--seed", str(seed), "--save_dir", f"check_point/{seed}") for seed in range(3)]
    scores = torch.tensor([run.best_metric["acc"] for run in runs])
    print(f"accuracy of three seeds: {scores.mean():.4f} +- {scores.std():.4f}")
    assert scores.min() > 0.9
    assert len({float(weights(run).sum()) for run in runs}) == 3


@pytest.mark.slow
def test_a_run_that_was_ended_in_the_middle_of_an_epoch_goes_on_to_the_same_bits():
    words = ["--seed", "1", "--optimizer", "SGD", "--lr0", "0.05"]
    whole = trained(*words, "--save_dir", "check_point/whole")
    cut = trained(*words, "--save_dir", "check_point/cut", "--set.callbacks",
                  "[{class_path: test_classification.EndAfter, init_args: {updates: 60}}]")
    assert 0 < cut.batches_done < len(cut.train_loader) and cut.global_step == 60
    cut.close()
    resumed = trained(*words, "--save_dir", "check_point/cut", "--resume", "auto")
    assert Path(resumed.ckpt_dir) == Path("check_point/cut")
    assert torch.equal(weights(resumed), weights(whole)) and resumed.best_metric == whole.best_metric
    stored = yaml.safe_load(Path("check_point/cut/config.yaml").read_text())
    assert stored["lr0"] == 0.05 and stored["seed"] == 1 and "resume" not in stored


@pytest.mark.slow
def test_two_processes_train_from_the_same_file_and_rank_0_writes(own_folder):
    words = [*SMALL, "--batch", "16", "--seed", "1", "--epochs", "2", "--set.amp", "bf16"]
    printed, _ = run_ranks(2, SCRIPT, *words, cwd=own_folder)
    folder = own_folder / "check_point/cls"
    assert epochs_told(printed) == [1, 2] and "2 processes (ddp)" in printed
    assert history(folder)[-1]["eval/acc"] > 0.8
    assert yaml.safe_load((folder / "config.yaml").read_text())["set"]["amp"] == "bf16"


def test_a_name_that_does_not_exist_ends_the_script_with_a_sentence_before_anything_is_built(capsys, own_folder):
    with pytest.raises(SystemExit) as left:
        trained("--weight_deacy", "1e-4")
    assert left.value.code == 2 and list(own_folder.iterdir()) == []
    assert "--weight_deacy is no setting of Classifier. Did you mean --weight_decay?" in capsys.readouterr().err
