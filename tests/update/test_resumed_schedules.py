"""A run goes on with another schedule, or other settings of its optimizer, than it began with: what holds is said."""

import pytest
import torch
from tiny import Rates, Tiny, tiny_model

from template import TensorLoader
from template.update.built_settings import differences, settings_of

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


@pytest.fixture
def run(own_folder, capsys):
    """A function that trains to an epoch and gives ``(rates of its epochs, what load_state noted)``."""
    def train(epochs, resumes=True, lr=0.1, lr_list=None, then=lambda trainer: None, **settings):
        model, rates = tiny_model(), Rates()
        trainer = Tiny(model, ckpt_dir="run", preflight=False, callbacks=[rates], total_epochs=6,
                       lr_scheduler_interval="epoch", train_loader=TensorLoader(X, Y, batch_size=16), log_per_step=100,
                       optimizer_list=[torch.optim.SGD(model.parameters(), lr, momentum=0.9)])
        for name, value in settings.items():
            setattr(trainer, name, value)
        trainer.check_init(use_tb=False)
        capsys.readouterr()
        if resumes:
            trainer.load_state("auto", lr_list=lr_list)
        notes = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        then(trainer)
        for _ in trainer.epochs(6):
            trainer.train_loop()
            trainer.eval()
            if trainer.epoch == epochs:  # as if it were killed here
                break
        trainer.checkpoints.wait()
        return [round(rate, 5) for rate, in rates.rates], [note for note in notes if not note.startswith("best =")]

    return train


COSINE = [0.1, 0.0933, 0.075, 0.05, 0.025, 0.0067]  # of six epochs


def test_a_schedule_of_the_same_kind_goes_on_and_says_nothing(run):
    assert run(2, resumes=False, lr_scheduler_type="cosine")[0] == COSINE[:2]
    assert run(6, lr_scheduler_type="cosine") == (COSINE[2:], [])


def test_a_named_schedule_of_the_file_holds_and_can_be_changed(run):
    run(2, resumes=False, lr_scheduler_type="cosine")
    rates, (note,) = run(4, lr_scheduler_type="linear")
    assert rates == COSINE[2:4] and "goes on as 'cosine', as in the file, not as 'linear'" in note
    assert "trainer.lr_scheduler_list[0].name = 'linear'" in note

    def change(trainer):
        trainer.lr_scheduler_list[0].name = "linear"

    rates, _ = run(6, lr_scheduler_type="linear", then=change)
    assert rates[1:] == [pytest.approx(0.1 / 6, abs=1e-5)], "the rate of the first epoch was set before the end of the last"


def test_other_arguments_of_a_named_schedule_are_told(run):
    run(2, resumes=False, lr_scheduler_type="cosine")
    rates, (note,) = run(6, lr_scheduler_type="cosine", lr_scheduler_args={"final_ratio": 0.5})
    assert rates == COSINE[2:] and "lr_scheduler_args = {} of the file, not with {'final_ratio': 0.5}" in note


@pytest.mark.parametrize("before, now, said", [
    ("cosine", "step", "was cosine in the file and is StepLR now"),
    ("step", "annealing", "was StepLR in the file and is CosineAnnealingLR now"),
    ("loss", "cosine", "was ReduceLROnPlateau in the file and is cosine now"),
    ("cosine", None, "the state of lr_scheduler_list[0] (cosine) is not used: there is none now"),
    (None, "cosine", "lr_scheduler_list[0] (cosine) begins with its first step"),
])
def test_a_schedule_of_another_kind_is_told(run, before, now, said):
    rates, _ = run(2, resumes=False, lr_scheduler_type=before)
    after, (note,) = run(6, lr_scheduler_type=now)
    assert said in note and after[0] == (0.075 if before == "cosine" else 0.1) and len(after) == 4
    if now is None:
        assert set(after) == {0.075}


def test_a_warm_up_that_comes_too_late_is_left_out(run):
    run(2, resumes=False, lr_scheduler_type="cosine")
    rates, (note,) = run(6, lr_scheduler_type="cosine", warm_up_epoch=2)
    assert rates == COSINE[2:] and "the warm-up is left out" in note


def test_a_warm_up_under_way_goes_on_as_in_the_file(run):
    run(1, resumes=False, warm_up_epoch=2)
    rates, (note,) = run(2, warm_up_epoch=3)
    assert rates == [0.05] and "goes on over the 2 steps of the file, not over 3" in note
    assert run(3, warm_up_epoch=1) == ([0.1], []), "it is over"


def test_a_warm_up_that_is_gone_is_told(run):
    run(1, resumes=False, lr_scheduler_type="cosine", warm_up_epoch=2)
    rates, (note,) = run(3, lr_scheduler_type="cosine")
    assert rates[0] == 0.05 and "in the midst of a warm-up, and there is none now" in note


# --- settings of the optimizers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "cosine", "loss"])
def test_another_rate_in_the_script_is_told_once_and_not_taken(run, kind):
    before, _ = run(2, resumes=False, lr_scheduler_type=kind)
    rates, (note,) = run(3, lr=0.01, lr_scheduler_type=kind)
    assert rates == [0.075 if kind == "cosine" else 0.1] and "began with lr=0.1; the script has lr=0.01 now" in note
    assert "load_state(…, lr_list=[…])" in note
    assert run(4, lr=0.01, lr_scheduler_type=kind)[1] == [], "the file of that run was written by this script"


def test_a_rate_that_load_state_was_given_is_taken_and_not_told(run):
    run(2, resumes=False)
    assert run(3, lr=0.01, lr_list=[0.01]) == ([0.01], [])


def test_settings_of_groups_are_compared_one_by_one_and_how_it_computes_is_not():
    def groups(**options):
        one, two = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        return settings_of([torch.optim.AdamW([{"params": [one]}, {"params": [two], "weight_decay": 0.3}], **options)])

    assert groups() == groups(foreach=True, fused=False)
    note, other = differences(groups(betas=(0.8, 0.999), weight_decay=0.1), groups())
    assert "optimizer_list[0].param_groups[0] goes on" in note and "betas=[0.9, 0.999], weight_decay=0.01" in note
    assert "trainer.optimizer_list[0].param_groups[0]['weight_decay'] = 0.1 after load_state()" in note
    assert "param_groups[1]" in other and "weight_decay" not in other, "it has its own in both"


def test_a_rate_that_is_a_tensor_is_compared_by_its_value():
    weight = torch.nn.Parameter(torch.ones(1))
    settings = settings_of([torch.optim.SGD([weight], lr=torch.tensor(0.5))])
    weights = {"params": [weight], "scales": (1.0, torch.ones(2))}
    optimizer = torch.optim.SGD([weights], lr=0.5)
    optimizer.defaults["scales"] = None
    assert "scales" not in settings_of([optimizer])[0][0], "which is no plain data"
    assert settings[0][0]["lr"] == 0.5 and differences(settings, settings_of([torch.optim.SGD([weight], lr=0.5)])) == []
