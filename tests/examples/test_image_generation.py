"""The VQ-VAE of ``examples/image_generation/``: its figures, resume, two processes."""

import csv

import numpy as np
import pytest
import torch
from ranks import run_ranks
from scipy.stats import entropy
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tiny import ROOT
from torch.utils.data import Subset

from template import Callback
from template.tools.configure import configure

FOLDER = ROOT / "examples/image_generation"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # as for a script that lies there
    import train_imgen
    return train_imgen


def build(example, *arguments, count=160):
    train_set, eval_set = example.digits()
    trainer = configure(example.ImageGeneration, [*"--seed 0 --batch 16 --nbs 16 --epochs 2".split(), *arguments],
                        config=example.SETTINGS, train_set=Subset(train_set, range(count)),
                        eval_set=Subset(eval_set, range(40)))
    trainer.check_init(use_tb=False)
    return trainer


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_after_step(self, model):
        if model.global_step == self.step:
            model.should_stop = "now"


@pytest.mark.slow
def test_psnr_ssim_and_perplexity_are_those_of_scikit_image_and_scipy(example, capsys):
    trainer = build(example, count=48)
    trainer.fit(1)
    assert "The perceptual loss is left out" in capsys.readouterr().out
    psnr, ssim, codes = [], [], []
    model = trainer.model_list[0].eval()
    for image, _ in trainer.eval_loader.dataset:
        with torch.no_grad():
            out = model(image[None])
        real, made = (part.squeeze().clamp(0, 1).double().numpy() for part in (image, out.image))
        psnr.append(peak_signal_noise_ratio(real, made, data_range=1.0))
        ssim.append(structural_similarity(real, made, data_range=1.0, gaussian_weights=True, sigma=1.5,
                                          use_sample_covariance=False))
        codes += out.codes.flatten().tolist()
    found = trainer.eval_result
    assert found["psnr"] == pytest.approx(np.mean(psnr), rel=1e-4)
    assert found["ssim"] == pytest.approx(np.mean(ssim), abs=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(entropy(np.bincount(codes))), rel=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_within_an_epoch_ends_with_the_same_bits(example):
    whole = build(example, "--save_dir", "check_point/whole")
    whole.fit(2)
    stopped = build(example, "--save_dir", "check_point/stopped")
    stopped.callbacks = [*stopped.callbacks, StopAt(13)]
    stopped.fit(2)
    assert stopped.global_step == 13
    again = build(example, "--save_dir", "check_point/stopped")
    again.load_state("auto")
    again.fit(2)
    assert whole.global_step == again.global_step == 20
    ends = [trainer.model_list[0].state_dict() for trainer in (whole, again)]
    assert all(torch.equal(part, ends[1][name]) for name, part in ends[0].items())
    assert whole.eval_result == again.eval_result
    assert whole.path_of("samples/reconstructions.png").stat().st_size > 500


@pytest.mark.slow
def test_two_processes_have_one_codebook_and_the_figures_of_their_weights(example, tmp_path):
    run_ranks(2, FOLDER / "train_imgen.py", "--epochs", 1, "--seed", 0, "--batch", 32, "--nbs", 64, "--device", "cpu",
              "--set.limit_train_batches", 12, cwd=tmp_path)
    with open("check_point/imgen/history.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    train_set, eval_set = example.digits()
    alone = configure(example.ImageGeneration, ["--seed", "0", "--device", "cpu"], config=example.SETTINGS,
                      train_set=train_set, eval_set=eval_set)
    alone.check_init(use_tb=False)
    alone.load_state("check_point/imgen/last.pth", optim=False)
    found = alone.test(alone.eval_loader)
    for name in ("psnr", "ssim", "perplexity"):
        assert found[name] == pytest.approx(float(row[f"eval/{name}"]), rel=1e-4), name


@pytest.mark.slow
def test_from_the_settings_file_it_reconstructs_better_than_the_mean_image(example):
    train_set, eval_set = example.digits()
    trainer = configure(example.ImageGeneration, ["--seed", "0", "--epochs", "3"], config=example.SETTINGS,
                        train_set=train_set, eval_set=eval_set)
    trainer.check_init(use_tb=False)
    trainer.fit(3)
    mean = train_set.tensors[0].mean(0)
    of_mean = np.mean([peak_signal_noise_ratio(image.numpy(), mean.numpy(), data_range=1.0) for image, _ in eval_set])
    assert trainer.eval_result["psnr"] > of_mean + 4 and trainer.eval_result["perplexity"] > 5
