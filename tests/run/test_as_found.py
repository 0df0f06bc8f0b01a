"""A trainer that was trained to learn something of it goes on as if nothing had happened."""

import random
import signal
from collections import deque

import numpy as np
import pytest
import torch
from tiny import Tiny, run_python, tiny_data, tiny_model, tiny_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Callback
from template.checkpoint.state import collect
from template.run.as_found import as_found, as_in_training, batches_again_and_again, planned_rates, updates


def train_a_little(trainer, count=7):
    as_in_training(trainer)
    batches = batches_again_and_again(trainer)
    return [losses for losses, _ in zip(updates(trainer, batches), range(count))]


def flat(value):
    """Nested plain data as one that ``==`` compares to the bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().double().cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, (list, tuple, deque)) else value


class Busy(nn.Module):
    """Keeps a counter, a list, a tensor and a statistic of its forwards."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = tiny_model(), nn.BatchNorm1d(6)
        self.calls, self.seen, self.hidden = 0, [], torch.zeros(3)

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        self.hidden += 1
        return self.inner(self.norm(x))


class Average:
    """Somebody's own average of weights, with the usual two methods."""

    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class WithMore(Tiny):
    def __init__(self, **attributes):
        super().__init__(model=Busy(), **attributes)
        self.ema = Average()
        self.generator = torch.Generator().manual_seed(1)
        self.noise = np.random.default_rng(1)
        self.recent, self.told = deque(maxlen=3), {}

    def loss_per_batch(self, batch):
        self.ema.count += 1
        self.recent.append(torch.rand((), generator=self.generator).item())
        self.told[self.ema.count] = self.noise.random() + random.random() + np.random.rand()
        return super().loss_per_batch(batch)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "tensor rate": lambda p: torch.optim.Adam(p, torch.tensor(1e-2), foreach=False),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=2),
}


def trained(looks, epochs_before, ckpt_dir, optimizer="SGD", epochs=3, **attributes):
    trainer = WithMore(ckpt_dir=ckpt_dir, total_epochs=epochs, **attributes)
    trainer.optimizer_list = [OPTIMIZERS[optimizer](trainer.model_list[0].parameters())]
    trainer.check_init(use_tb=False)
    for _ in range(epochs_before):
        trainer.train_loop()
        trainer.eval()
    if looks:
        with as_found(trainer):
            train_a_little(trainer)
    trainer.fit(epochs)
    model = trainer.model_list[0]
    own = [trainer.ema.count, list(trainer.recent), trainer.told, model.calls, model.seen, flat(model.hidden)]
    state = collect(trainer)
    return flat({name: part for name, part in state.items() if name not in ("run_name", "callbacks")}), own


@pytest.mark.parametrize("epochs_before", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_on_ends_with_the_same_bits(optimizer, epochs_before):
    options = {"lr_scheduler_type": "cosine", "warm_up_updates": 4, "clip_grad": 1.0, "accumulate_steps": 2}
    untouched, looked_at = (trained(looks, epochs_before, f"{looks}", optimizer, **options) for looks in (False, True))
    assert untouched == looked_at


@pytest.mark.parametrize("options", [{"amp": "bf16"}, {"amp": "fp16"}, {"skip_non_finite": 2},
                                     {"lr_scheduler_type": "loss"}], ids=str)
def test_loss_scaler_guard_and_plateau_schedule_go_on_as_they_were(options):
    untouched, looked_at = (trained(looks, 1, f"{looks}", **options) for looks in (False, True))
    assert untouched == looked_at


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_or_an_interrupt_leaves_it_as_it_was_and_comes_through(error):
    trainer = tiny_trainer()
    trainer.train_loop()
    before = flat(collect(trainer))
    with pytest.raises(error), as_found(trainer):
        train_a_little(trainer)
        raise error("in the middle")
    assert flat(collect(trainer)) == before


def test_an_error_within_an_update_leaves_no_gradient_and_no_half_of_it():
    trainer = tiny_trainer(accumulate_steps=3)
    before, calls = flat(collect(trainer)), []

    def failing(batch):
        calls.append(batch)
        losses = type(trainer).train_step(trainer, batch)
        if len(calls) == 8:
            raise RuntimeError("the eighth")
        return losses

    trainer.train_step = failing
    with pytest.raises(RuntimeError, match="the eighth"), as_found(trainer):
        train_a_little(trainer)
    del trainer.train_step
    assert flat(collect(trainer)) == before and trainer.stepper.is_between_updates
    assert all(p.grad is None for p in trainer.model_list[0].parameters())


def test_gradients_that_are_there_are_there_again():
    trainer = tiny_trainer()
    first = next(iter(trainer.model_list[0].parameters()))
    first.grad = given = torch.ones_like(first)
    with as_found(trainer):
        assert first.grad is None
        train_a_little(trainer)
    assert first.grad is given and (given == 1).all()


def test_hooks_modes_and_frozen_parameters_are_as_before():
    trainer = tiny_trainer()
    model = trainer.model_list[0]
    model[0].weight.requires_grad_(False)
    model[1].eval()
    with as_found(trainer):
        model.register_forward_hook(lambda *args: None)
        model.requires_grad_(True)
        model.train()
        model.extra = 1
        train_a_little(trainer)
    assert not model[0].weight.requires_grad and model[2].training and not model[1].training
    assert not model._forward_hooks and not hasattr(model, "extra")


def test_weights_that_became_nan_or_another_dtype_come_back():
    trainer = tiny_trainer()
    before = weights(trainer)
    with as_found(trainer):
        with torch.no_grad():
            trainer.model_list[0][0].weight.fill_(float("nan"))
        trainer.model_list[0][3].half()
    assert torch.equal(weights(trainer), before) and trainer.model_list[0][3].weight.dtype is torch.float32


def test_the_sign_of_a_zero_comes_back_and_what_cannot_be_written_to_is_left_alone(own_folder):
    np.save("data.npy", np.ones(5, dtype=np.float32))
    trainer = tiny_trainer()
    with pytest.warns(UserWarning, match="not writable"):
        mapped = torch.from_numpy(np.load("data.npy", mmap_mode="r"))
    trainer.mapped, trainer.expanded = mapped, torch.ones(1).expand(4)
    trainer.zeros, trainer.complex = torch.tensor([0.0, -0.0]), torch.tensor([1j])
    with as_found(trainer):
        trainer.zeros.neg_()
        trainer.complex.neg_()
    assert trainer.zeros.signbit().tolist() == [False, True] and trainer.complex.tolist() == [1j]
    assert trainer.mapped is mapped and trainer.expanded.tolist() == [1.0] * 4


def test_callbacks_hear_nothing_and_nothing_is_written(own_folder, capsys):
    heard = []

    class Noting(Callback):
        def on_batch(self, model, batch):
            heard.append("batch")

        def on_before_step(self, model):
            heard.append("step")

    class Writing(Tiny):
        def loss_per_batch(self, batch):
            self.writer.add_scalar("own", 1.0, self.global_step)
            print("a line of a batch")
            return super().loss_per_batch(batch)

    trainer = Writing(callbacks=[Noting()], ckpt_dir="run", preflight=False)
    trainer.check_init()

    def files():
        return {path: path.read_bytes() for path in own_folder.rglob("*") if path.is_file()}

    before = files()
    with as_found(trainer):
        train_a_little(trainer)
        print("a line of the tool")
    assert not heard and files() == before and trainer.global_step == 0
    assert "a line of the tool" in capsys.readouterr().out
    print("and the log goes on")
    trainer.stdout_logger.flush()
    assert "and the log goes on" in (own_folder / "run/log.txt").read_text()
    trainer.close()


def test_within_an_epoch_a_callback_may_look_too():
    class Looking(Callback):
        def on_after_step(self, model):
            if model.global_step in (2, 5):
                with as_found(model):
                    train_a_little(model, 3)

    trained = []
    for callbacks in ([], [Looking()]):
        trainer = tiny_trainer(ckpt_dir=f"{len(callbacks)}", callbacks=callbacks)
        trainer.fit(2)
        trained.append((weights(trainer).tolist(), trainer.best_metric))
    assert trained[0] == trained[1]


class Remembering:
    """A loader that knows where it is, as torchdata's ``StatefulDataLoader`` does."""

    def __init__(self):
        self.batches, self.place = list(DataLoader(TensorDataset(*tiny_data()), 10)), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.place < len(self.batches):
            self.place += 1
            yield self.batches[self.place - 1]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def test_a_loader_with_a_state_stands_where_it_stood():
    trained = []
    for looks in (False, True):
        trainer = tiny_trainer(train_loader=Remembering(), ckpt_dir=f"{looks}")
        if looks:
            with as_found(trainer):
                train_a_little(trainer, 3)
            assert trainer.train_loader.place == 0
        trainer.fit(2)
        trained.append(weights(trainer))
    assert torch.equal(*trained)


def test_rates_are_those_that_a_warm_up_leads_to():
    trainer = tiny_trainer(warm_up_updates=10, lr_scheduler_type="cosine", total_epochs=4)
    assert trainer.optimizer_list[0].param_groups[0]["lr"] < 1e-3 and planned_rates(trainer) == [[0.1]]
    trainer.fit(3)
    assert planned_rates(trainer) == [[0.1]]


def test_it_refuses_what_it_could_not_put_back():
    with pytest.raises(RuntimeError, match="check_init"), as_found(Tiny()):
        pass
    sharded = tiny_trainer(ckpt_dir="sharded")
    sharded.is_sharded = True
    with pytest.raises(ValueError, match="under parallel='fsdp' each rank holds a part"), as_found(sharded):
        pass
    lazy = tiny_trainer(model=nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)))
    lazy.model_list[0][1] = nn.LazyLinear(3)
    with pytest.raises(ValueError, match=r"find_lr\(\) must know the shapes.*'1.weight'"), as_found(lazy, "find_lr()"):
        pass


SIGNALLED = """
import os, signal, sys
from tiny import tiny_trainer, weights
from template.run.as_found import as_found, as_in_training, batches_again_and_again, updates
trainer = tiny_trainer(ckpt_dir="run")
for epoch in trainer.epochs(4):
    trainer.train_loop()
    trainer.eval()
    if epoch == 2:
        with as_found(trainer):
            as_in_training(trainer)
            for count, _ in enumerate(updates(trainer, batches_again_and_again(trainer))):
                if count == 5:
                    os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_it_after_the_update_and_the_run_goes_on_from_its_save(name, code, own_folder):
    from tiny import PATH

    script = own_folder / "job.py"
    script.write_text(SIGNALLED.format(name=name))
    done = run_python(script, cwd=own_folder, env={"PYTHONPATH": PATH}, check=False)
    assert done.returncode == code, done.stderr
    assert "load_state('auto') continues" in done.stdout
    whole, continued = tiny_trainer(ckpt_dir="whole"), tiny_trainer(ckpt_dir="run")
    whole.fit(4)
    continued.load_state("auto")
    continued.fit(4)
    assert torch.equal(weights(whole), weights(continued))


def test_a_ctrl_c_during_the_putting_back_waits_until_all_is_back(monkeypatch):
    from template.run import as_found as module

    trainer = tiny_trainer()
    before, refill = flat(collect(trainer)), module._refill

    def interrupted(container, entries):
        refill(container, entries)
        if not came:
            came.append(True)
            signal.raise_signal(signal.SIGINT)

    came = []
    monkeypatch.setattr(module, "_refill", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a trainer of another test may have it
    try:
        with pytest.raises(KeyboardInterrupt), as_found(trainer):
            train_a_little(trainer)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert came and flat(collect(trainer)) == before
