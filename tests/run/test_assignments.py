"""What is assigned after ``check_init`` takes effect or is refused; nothing is ignored."""

import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Callback, EarlyStopping, ProgressBar, TensorLoader
from template.run.assignments import WATCHED
from template.template import TemplateModel


def loader(count, seed=0, batch=10):
    return DataLoader(TensorDataset(*tiny_data(count, seed=seed)), batch)


def score_by_hand(model, batches):
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in batches]
    model.train()
    return torch.cat(right).mean().item()


def test_another_eval_loader_is_the_one_that_is_evaluated():
    trainer = tiny_trainer()
    trainer.train_loop()
    first, other = trainer.eval(), loader(31, seed=9)
    trainer.eval_loader = other
    assert trainer.eval() == pytest.approx(score_by_hand(trainer.model_list[0], other)) != first
    assert trainer.test() == trainer.eval_result


def test_validation_and_test_data_stay_two_where_both_are_set():
    validation, test = loader(30, seed=1), loader(40, seed=2)
    trainer = tiny_trainer(eval_loader=validation, test_loader=test)
    trainer.train_loop()
    model = trainer.model_list[0]
    assert trainer.eval() == pytest.approx(score_by_hand(model, validation))
    assert trainer.test()["acc"] == pytest.approx(score_by_hand(model, test))
    trainer.test_loader = other = loader(20, seed=3)
    assert trainer.test()["acc"] == pytest.approx(score_by_hand(model, other))
    assert trainer.test(validation)["acc"] == trainer.eval() == pytest.approx(score_by_hand(model, validation))


def test_a_test_loader_alone_is_evaluated_as_in_2021_also_another_one_later():
    trainer = tiny_trainer(eval_loader=None, test_loader=loader(30, seed=1))
    trainer.train_loop()
    assert trainer.eval_loader is trainer.test_loader
    trainer.test_loader = other = loader(20, seed=3)
    expected = pytest.approx(score_by_hand(trainer.model_list[0], other))
    assert trainer.eval() == expected and trainer.test()["acc"] == expected and trainer.eval_loader is other


class Reads(Callback):
    """The first feature of the first sample of each training batch."""

    def __init__(self, act=lambda model: None):
        self.seen, self.act = [], act

    def on_batch(self, model, batch):
        self.seen.append((model.epoch, len(batch[0])))

    def on_after_step(self, model):
        self.act(model)


def test_another_train_loader_is_read_from_the_next_epoch_on_and_the_present_one_is_finished():
    def swap(model):
        if model.global_step == 1:
            model.train_loader = TensorLoader(*tiny_data(21, seed=4), batch_size=7)

    reads = Reads(swap)
    trainer = tiny_trainer(train_loader=loader(20), callbacks=[reads])
    trainer.fit(3)
    assert reads.seen == [(1, 10), (1, 10), *[(epoch, 7) for epoch in (2, 3) for _ in range(3)]]
    assert trainer.global_step == 2 + 3 + 3


def test_a_larger_batch_is_accumulated_from_the_next_update_on_as_by_hand():
    def by_hand():
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        optimizer, batches = torch.optim.SGD(model.parameters(), 0.1), list(loader(40))
        for steps in (1, 2):
            for first in range(0, 4, steps):
                group = batches[first:first + steps]
                x, y = (torch.cat(parts) for parts in zip(*group))
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        return model

    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], train_loader=loader(40))
    trainer.train_loop()
    trainer.eval()
    trainer.accumulate_steps = 2
    trainer.train_loop()
    assert trainer.global_step == 4 + 2
    assert torch.allclose(model.weight, by_hand().weight, atol=1e-6)


def test_mixed_precision_clipping_skipping_and_the_criterion_may_change_between_epochs():
    model = tiny_model()
    trainer = tiny_trainer(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], train_loader=loader(40))
    trainer.train_loop()
    trainer.eval()
    trainer.amp, trainer.clip_grad, trainer.skip_non_finite = "bf16", {"value": 0.0001}, 3
    trainer.criterion, dtypes = nn.CrossEntropyLoss(label_smoothing=0.9), []
    trainer.model_list[0][0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    before = weights(trainer)
    trainer.train_loop()
    assert set(dtypes) == {torch.bfloat16} and trainer.stepper.guard.limit == 3
    assert 0 < (weights(trainer) - before).abs().max() <= 4 * 0.1 * 0.0001 * 1.01  # 4 updates of SGD at 0.1
    with pytest.raises(ValueError, match="amp must be None or one of"):
        trainer.amp = "fp8"
    with pytest.raises(ValueError, match="clip_grad must be None"):
        trainer.clip_grad = -1
    with pytest.raises(TypeError, match="criterion must be callable"):
        trainer.criterion = 3
    assert trainer.amp == "bf16" and trainer.clip_grad == {"value": 0.0001}


def test_other_callbacks_listen_from_then_on_and_the_default_set_stays():
    first, second = Reads(), Reads()
    trainer = tiny_trainer(train_loader=loader(20), callbacks=[first])
    trainer.train_loop()
    trainer.eval()
    trainer.callbacks = [second, EarlyStopping()]
    trainer.train_loop()
    assert first.seen == [(1, 10)] * 2 and second.seen == [(2, 10)] * 2
    assert any(isinstance(callback, ProgressBar) for callback in trainer.hooks.callbacks)
    with pytest.raises(TypeError, match="callbacks must be a list"):
        trainer.callbacks = second


REFUSED = {"model_list": [], "optimizer_list": [], "device": "meta", "ckpt_dir": "other", "run_name": "other", "seed": 99,
           "deterministic": True, "preflight": False, "slice_tensors": False, "compile": True, "channels_last": True,
           "matmul_precision": "high", "parallel": None, "parallel_options": {"a": 1}, "sync_batchnorm": True,
           "lr_scheduler_list": [1], "lr_scheduler_type": "cosine", "lr_scheduler_args": {"a": 1},
           "lr_scheduler_interval": "epoch", "warm_up_epoch": 3, "warm_up_updates": 7, "warm_up_mode": "constant",
           "warm_up_init_lr": 0.5, "warm_up_momentum": 0.5, "warm_up_bias_lr": 0.5, "warm_up_scheduler_list": [1],
           "overwrite": True}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_change_any_more_is_refused_at_the_assignment(name):
    trainer = tiny_trainer()
    before = getattr(trainer, name)
    with pytest.raises(AttributeError, match=f"{name} cannot change after check_init") as error:
        setattr(trainer, name, REFUSED[name])
    assert len(str(error.value)) > len(f"{name} cannot change after check_init(), got {REFUSED[name]!r}.") + 20
    assert getattr(trainer, name) is before
    setattr(trainer, name, before)  # which changes nothing


def test_every_setting_is_watched_or_read_whenever_it_is_needed():
    read_when_needed = {"log_per_step", "key_metric", "key_metric_mode", "one_forward", "save_per_steps", "save_per_seconds",
                        "keep_checkpoints", "stop_when_save_fails", "eval_per_steps"}
    source = TemplateModel()
    settings = [name for name in vars(source) if not name.startswith("_")]
    settings = settings[:settings.index("epoch")]
    assert set(settings) == (WATCHED - {"should_stop"} | read_when_needed)
