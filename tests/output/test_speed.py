"""What speed is told: counters against a hand count, rates against a clock of our own, the bar and TensorBoard."""

import re
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_data, tiny_trainer
from torch import nn

from template.callbacks import progress_bar, tensorboard
from template.data.loaders import TensorLoader
from template.output import speed as speed_module
from template.output.speed import Speed, peak_gigabytes
from template.update.stepper import Stepper

CPU = torch.device("cpu")


class Clock:
    """``time.perf_counter`` that stands still unless it is told to go on."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def slow(self, batches, seconds):
        """The batches, each of which takes so long to come."""
        for batch in batches:
            self.now += seconds
            yield batch


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def stepper(**options):
    return Stepper([torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)], CPU, **options)


# --- counters ---------------------------------------------------------------------------------------------------------


def test_samples_and_updates_are_those_of_a_count_by_hand_with_a_short_last_group():
    made = stepper(accumulate_steps=3)
    batches = [torch.zeros(size) for size in (4, 4, 4, 4, 4, 4, 2)]
    seen = [(made.speed.samples, made.speed.updates) for group in made.groups(batches) if list(group)]
    assert seen == [(12, 1), (24, 2), (26, 3)]
    list(made.groups(batches))
    assert (made.speed.samples, made.speed.updates) == (52, 6)


def test_samples_are_what_count_samples_says_and_what_is_left_of_a_resumed_epoch():
    made = stepper(count_samples=lambda batch: batch.sum())
    with pytest.warns(UserWarning, match="gave 0 for the batch of an update"):
        list(made.groups([torch.ones(4), torch.zeros(2)]))
    assert (made.speed.samples, made.speed.updates) == (4, 2) and not isinstance(made.speed.samples, torch.Tensor)
    trainer = tiny_trainer(accumulate_steps=4, ckpt_dir="run")
    trainer.fit(2)
    assert (trainer.stepper.speed.samples, trainer.stepper.speed.updates) == (2 * 53, 2 * 2)
    again = tiny_trainer(accumulate_steps=4, ckpt_dir="run")
    again.load_state("auto")
    again.fit(3)
    assert (again.stepper.speed.samples, again.stepper.speed.updates) == (53, 2)  # of this process


def test_evaluations_count_for_nothing():
    trainer = tiny_trainer()
    trainer.test()
    assert (trainer.stepper.speed.samples, trainer.stepper.speed.updates, trainer.stepper.speed.waited) == (0, 0, 0.0)


# --- rates ------------------------------------------------------------------------------------------------------------


def test_since_a_fresh_mark_there_is_nothing():
    speed = Speed()
    assert speed.since(speed.mark()) == {}
    speed.updates += 1
    assert speed.since(speed.mark()) == {}


def test_rates_are_those_between_the_mark_and_now(clock):
    """Batches of 5 take 3 s to come and an update 1 s; a wait before the first mark is none of its business."""
    made = stepper()
    marks = [made.speed.mark()]
    for _ in made.groups(clock.slow([torch.zeros(5)] * 4, 3.0)):
        clock.now += 1.0
        marks.append(made.speed.mark())
    assert made.speed.waited == 12.0
    for number, mark in enumerate(marks[:-1]):
        assert made.speed.since(mark) == {"samples_per_second": 5 / 4, "ms_per_update": 4000.0, "data_wait": 3 / 4}, number
    clock.now += 16.0  # an evaluation, say
    assert made.speed.since(marks[0]) == {"samples_per_second": 20 / 32, "ms_per_update": 8000.0, "data_wait": 12 / 32}


def test_with_accumulation_an_update_waits_for_all_its_batches(clock):
    made = stepper(accumulate_steps=3)
    mark = made.speed.mark()
    for group in made.groups(clock.slow([torch.zeros(2)] * 7, 1.0)):
        for _ in group:
            clock.now += 0.5
    assert made.speed.since(mark) == {"samples_per_second": 14 / 10.5, "ms_per_update": 3500.0, "data_wait": 7 / 10.5}


def test_the_share_of_waiting_is_near_that_of_a_loader_that_sleeps():
    made = stepper()
    mark = made.speed.mark()

    def sleeping():
        for _ in range(10):
            time.sleep(0.03)
            yield torch.zeros(5)

    for _ in made.groups(sleeping()):
        time.sleep(0.01)
    rates = made.speed.since(mark)
    assert 0.6 < rates["data_wait"] < 0.9 and 40 <= rates["ms_per_update"] < 80
    assert rates["samples_per_second"] == pytest.approx(5000 / rates["ms_per_update"])


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says there what a process takes")
def test_the_peak_on_the_cpu_is_that_of_the_system():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    peak, now = (int(status[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
    assert peak_gigabytes(CPU) == pytest.approx(peak / 1e9, rel=0.02)
    held = torch.ones((peak - now) // 4 + 50_000_000)  # 200 MB more than ever before
    assert peak_gigabytes(CPU) == pytest.approx(peak / 1e9 + 0.2, abs=0.05) and len(held)


def test_the_system_of_a_mac_counts_in_bytes(monkeypatch):
    kilobytes = peak_gigabytes(CPU)
    monkeypatch.setattr(speed_module.sys, "platform", "darwin")
    assert peak_gigabytes(CPU) == pytest.approx(kilobytes / 1024, rel=0.02)


def test_where_the_system_does_not_tell_there_is_no_peak(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_gigabytes(CPU) is None


# --- shown ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(fake_tqdm, monkeypatch):
    """What the bar of one epoch showed."""
    def train(**attributes):
        monkeypatch.setattr(progress_bar, "_REDRAWN_EVERY_SECONDS", 0.0)
        tiny_trainer(log_per_step=2, **attributes).train_loop()
        return fake_tqdm[-1].postfixes

    return train


def test_the_bar_shows_rate_share_and_memory(shown, monkeypatch):
    rates = {"samples_per_second": 12345.6, "ms_per_update": 1.0, "data_wait": 0.254}
    monkeypatch.setattr(Speed, "since", lambda self, mark: rates)
    monkeypatch.setattr(progress_bar, "peak_gigabytes", lambda device: 1.26)
    values = shown()
    assert len(values) == 3
    assert all(", 12346 samples/s, " in text and ", 25% waited for data, 1.3 GB memory" in text for text in values)
    monkeypatch.setattr(progress_bar, "peak_gigabytes", lambda device: None)
    assert all("GB" not in text and text.endswith(", 25% waited for data") for text in shown())


def test_the_rate_in_the_bar_is_that_of_the_epoch(shown, clock):
    """Ten samples, a second to wait for them and three to train: 2.5 a second at the first and at every later log point."""
    class Slow:
        def __iter__(self):
            return clock.slow(zip(*(part.split(10) for part in tiny_data(60))), 1.0)

        def __len__(self):
            return 6

    def train(batch):
        clock.now += 3.0
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    model = nn.Linear(6, 3)
    values = shown(model=model, loss_per_batch=train, train_loader=Slow(), eval_loader=None, preflight=False)
    assert [re.findall(r"(\S+) samples/s|(\S+) waited", text) for text in values] == [[("2.5", ""), ("", "25%")]] * 3


def scalars(tag):
    events = EventAccumulator("runs/run", size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


NAMES = ("samples_per_second", "ms_per_update", "data_wait", "peak_memory_gb")


@pytest.mark.parametrize("every, steps", [(10.0, [6, 12]), (0.0, [2, 4, 6, 8, 10, 12])])
def test_tensorboard_has_it_once_an_epoch_and_every_so_many_seconds(every, steps, monkeypatch):
    monkeypatch.setattr(tensorboard, "_SPEED_EVERY_SECONDS", every)
    loader = TensorLoader(*tiny_data(60), batch_size=10)
    tiny_trainer(use_tb=True, ckpt_dir="run", log_per_step=2, train_loader=loader).fit(2)
    points = {name: scalars(f"speed/{name}") for name in NAMES}
    assert [[step for step, _ in found] for found in points.values()] == [steps] * 4
    for position in range(len(steps)):
        rate, milliseconds, share, memory = (points[name][position][1] for name in NAMES)
        assert rate * milliseconds == pytest.approx(10_000, rel=1e-5)  # ten samples an update
        assert 0 < share < 1 and memory == pytest.approx(peak_gigabytes(CPU), rel=0.3)


def test_where_the_system_does_not_tell_tensorboard_has_the_rest(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    tiny_trainer(use_tb=True, ckpt_dir="run").fit(1)
    assert scalars("speed/peak_memory_gb") == [] and len(scalars("speed/data_wait")) == 1
