"""A trace of some updates: what it holds, what is printed, and that training does not notice."""

import json
import re

import pytest
import torch
from tiny import tiny_trainer, weights

from template import Profile


def annotations(path):
    """How often each update was recorded, by its label."""
    events = json.loads(path.read_text())["traceEvents"]
    return sorted(event["name"] for event in events if event.get("cat") == "user_annotation"
                  and event["name"].startswith("ProfilerStep"))


def test_the_trace_holds_the_updates_that_were_asked_for_and_the_table_their_operators(own_folder, capsys):
    trainer = tiny_trainer(ckpt_dir="mine", callbacks=[Profile(updates=4, after=3)])  # 6 updates an epoch
    trainer.fit(2)
    assert len(annotations(own_folder / "mine/trace.json")) == 4
    printed = capsys.readouterr().out
    assert "Profile of updates 4 to 7, time on the CPU; the trace is mine/trace.json" in printed
    rows = re.findall(r"^ +(\d+\.\d{3}) +(\d+)% +([\d.]+)  (\S+)", printed, re.MULTILINE)
    assert len(rows) == 10 and 0 < sum(int(share) for _, share, _, _ in rows) <= 105
    times = [float(time) for time, _, _, _ in rows]
    assert times == sorted(times, reverse=True) and times[0] > 0
    assert {name: calls for _, _, calls, name in rows}.get("Optimizer.step#SGD.step") == "1"  # once an update


def test_training_is_the_same_with_it():
    trained = []
    for number, callbacks in enumerate([None, [Profile(updates=2, after=2)]]):
        trainer = tiny_trainer(ckpt_dir=f"run{number}", callbacks=callbacks)
        trainer.fit(3)
        trained.append(weights(trainer))
    assert torch.equal(*trained)


def test_a_run_that_ends_before_says_so(capsys):
    tiny_trainer(callbacks=[Profile(updates=5, after=100)]).fit(1)
    assert "Profile: the run ended before update 105" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [{"updates": 0}, {"after": 0}, {"updates": 2.0}, {"after": True}])
def test_what_is_no_number_of_updates_is_refused(bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got {value!r}"):
        Profile(**bad)
