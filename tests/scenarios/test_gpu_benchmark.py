"""The benchmark of GPUs shares its minutes among its parts, loses nothing that was measured, and says what is missing."""

import json
import time
import warnings
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.budget import Clock, LeftOut, OutOfTime, Part, Report, Row, run_parts
from benchmarks.gpu_jobs import RESIDUAL, TRANSFORMER, ByHand, Job, Pairs, resnet
from benchmarks.measuring import Process


def report():
    return Report("gpu.json", {"torch": "2.13.0", "card": "none"})


def on_disk():
    with open("gpu.json") as file:
        return json.load(file)["parts"]


def row(what="steps", value=2.0):
    return Row(what, [value], "ms", of=[1.0], of_what="by hand")


def test_each_part_has_its_share_and_what_one_leaves_over_goes_to_the_next():
    given = []

    def note(clock):
        given.append(clock.left())
        yield row()

    run_parts([Part("a", 1, note), Part("b", 2, note), Part("c", 1, note)], minutes=1, report=report())
    assert given == pytest.approx([15, 40, 60], abs=0.5)


def test_a_part_that_raises_is_named_and_the_others_go_on(capsys):
    def breaks(clock):
        yield row("before the error")
        raise ValueError("the card is on fire")

    def goes_on(clock):
        yield row("behind the error")

    told = report()
    run_parts([Part("first", 1, breaks), Part("second", 1, goes_on)], minutes=1, report=told)
    found = on_disk()
    assert [found[name]["state"] for name in ("first", "second")] == ["failed", "complete"]
    assert [part["rows"][0]["what"] for part in found.values()] == ["before the error", "behind the error"]
    assert "on fire" in found["first"]["error"] and told.failures() == ["first"]
    told.print_table()
    printed = capsys.readouterr().out
    assert "failed: ValueError: the card is on fire" in printed and "behind the error" in printed and "card" in printed


def test_what_did_not_fit_is_named_and_what_was_measured_before_is_kept(capsys):
    def slow(clock):
        yield row("the first figure")
        time.sleep(0.2)
        raise OutOfTime("a contender gave no answer")

    told = report()
    run_parts([Part("slow", 1, slow), Part("large", 1, slow, least_seconds=3600)], minutes=0.005, report=told)
    told.print_table()
    found = on_disk()
    assert (found["slow"]["state"], found["large"]["state"]) == ("shortened", "left out")
    assert found["slow"]["rows"][0]["median"] == 2.0 and found["slow"]["left_out"][0]["what"] == "the rest of slow"
    assert "left out: large: 0 s were left for it, and it needs 3600" in capsys.readouterr().out


def test_the_file_is_whole_after_each_figure_and_after_a_kill():
    def killed(clock):
        yield row()
        assert on_disk()["part"]["rows"][0]["ratio"] == 2.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parts([Part("part", 1, killed)], minutes=1, report=report())
    assert on_disk()["part"]["state"] == "interrupted" and len(on_disk()["part"]["rows"]) == 1


def test_rounds_stop_when_another_one_would_end_too_late_and_count_until_an_answer_is_missing():
    assert gpu_parts.rounds_within(Clock(60), 3, lambda number: None) == 3
    assert gpu_parts.rounds_within(Clock(0.3), 100, lambda number: time.sleep(0.1)) in (1, 2)
    assert gpu_parts.rounds_within(Clock(-1), 9, lambda number: None) == 1

    def hangs(number):
        if number == hangs.at:
            raise OutOfTime

    hangs.at = 2
    assert gpu_parts.rounds_within(Clock(60), 9, hangs) == 2
    hangs.at = 0
    with pytest.raises(OutOfTime):
        gpu_parts.rounds_within(Clock(60), 9, hangs)


class Sleeper:
    def sleep(self, seconds):
        time.sleep(seconds)
        return "rested"


@pytest.mark.slow
def test_a_contender_that_gives_no_answer_is_ended(monkeypatch):
    monkeypatch.setattr("benchmarks.measuring.START", "fork")
    with Process(Sleeper, seconds_left=lambda: 0) as process:
        assert process("sleep", 0) == "rested" and not process.died
        with pytest.raises(OutOfTime):
            process("sleep", 60)
        assert process.died


def test_what_is_compared_is_eager_first_and_channels_last_only_where_there_are_convolutions():
    setting = gpu_parts.Setting("cuda", ".", False, 9, ("eager", "compiled"))
    found = [(job.network, job.how) for job in gpu_parts.jobs(setting)]
    assert found == [
        (RESIDUAL, "float32"), (RESIDUAL, "bf16"), (RESIDUAL, "bf16, channels_last"), (TRANSFORMER, "float32"),
        (TRANSFORMER, "bf16"), (RESIDUAL, "bf16, compiled"), (RESIDUAL, "bf16, channels_last, compiled"),
        (TRANSFORMER, "bf16, compiled")]
    assert not [job for job in gpu_parts.jobs(setting._replace(modes=("eager",))) if job.compiled]


def test_the_networks_have_their_size():
    with torch.device("meta"):
        shortcuts_norms = 2 * (128 + 256 + 512)  # which the ResNet-18 of 11,173,962 parameters has, and this one has not
        assert sum(p.numel() for p in resnet().parameters()) == 11_173_962 - shortcuts_norms
        assert resnet()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_loop_by_hand_is_in_the_memory_format_and_the_precision_that_is_asked_for():
    job = Job(RESIDUAL, "cpu", "bf16", channels_last=True, is_tiny=True, updates=2)
    by_hand, dtypes = ByHand(job), []
    by_hand.read(*job.data())
    by_hand.model[0].register_forward_hook(lambda part, inputs, output: dtypes.append(output.dtype))
    seconds, loss = by_hand.train()
    assert by_hand.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert dtypes == [torch.bfloat16] * 2 and seconds > 0 and 0 < loss < 10


def test_both_contenders_train_on_as_many_updates_as_they_are_resized_to_and_waits_are_counted(tmp_path, monkeypatch):
    modes, job = [], Job(TRANSFORMER, "cpu", is_tiny=True, updates=2)
    pairs = Pairs(tmp_path)
    pairs.build(job)
    pairs.resize(7)
    for name in ("by hand", "this template"):
        seconds, loss = pairs.run(name)
        assert seconds > 0 and 4 < loss < 7  # ln(256) is 5.5
    assert pairs.contenders["this template"].trainer.global_step == 7
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(pairs.contenders["by hand"], "train", lambda: warnings.warn("a synchronizing call", stacklevel=1))
    assert pairs.syncs("by hand") == 1 / 7 and modes == ["warn", "default"]
    pairs.contenders["this template"].trainer.lifetime.close()


def test_conditions_name_card_driver_and_versions(monkeypatch):
    card = SimpleNamespace(name="H100", total_memory=80 * 2**30, major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(gpu, "output_of", lambda *command: "570.1\n570.1" if command[0] == "nvidia-smi" else "")
    found = gpu.conditions("cuda", 6)
    assert found["card"] == "H100, 80 GiB, capability 9.0, 132 multiprocessors" and found["driver"] == "570.1"
    assert json.dumps(found) and found["commit"] == "unknown"
    assert "card" not in gpu.conditions("cpu", 6)
    monkeypatch.undo()
    assert gpu.output_of("no such program") == ""


def test_without_pytest_the_tests_are_left_out_with_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_parts, "find_spec", lambda name: None)
    setting = gpu_parts.Setting("cpu", tmp_path, True, 1, ("eager",))
    assert list(gpu_parts.tests(setting, Clock(1))) == [
        LeftOut("the tests of a GPU", "the package is missing. pip install pytest")]


TOLD = """collected 5 items

tests/test_some_gpu.py::test_good PASSED                                 [ 20%]
tests/test_some_gpu.py::test_bad[a b] FAILED                             [ 40%]
tests/test_some_gpu.py::test_bad[c] PASSED                               [ 60%]
tests/test_some_gpu.py::test_skipped SKIPPED (no card)                   [ 80%]
tests/test_some_gpu.py::test_slow """


def test_tests_that_were_cut_short_count_as_far_as_they_came():
    rows = []
    with pytest.raises(RuntimeError, match=r"These tests failed: tests/test_some_gpu.py::test_bad\[a b\]"):
        for found in gpu_parts.counted(TOLD, 3, None):
            rows.append(found)  # noqa: PERF402  what came before the error counts
    assert rows.pop() == LeftOut("1 tests", "the time was used up")
    assert {found.what: found.values for found in rows} == {"passed": [2], "failed": [1], "error": [0], "skipped": [1]}
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        list(gpu_parts.counted("ERROR: no such option", 1, 4))
    assert len(list(gpu_parts.counted(TOLD.replace("FAILED", "PASSED"), 3, 0))) == 4


@pytest.mark.slow
def test_pytest_is_asked_and_what_it_told_is_counted(tmp_path):
    setting, path = gpu_parts.Setting("cpu", tmp_path, True, 1, ("eager",)), tmp_path / "test_some_gpu.py"
    path.write_text("import pytest\n"
                    "def test_good(): pass\n"
                    "@pytest.mark.skip(reason='no card')\n"
                    "def test_skipped(): pass\n")
    found = {found.what: found.values for found in gpu_parts.tests(setting, Clock(60), [path])}
    assert found == {"passed": [1], "failed": [0], "error": [0], "skipped": [1]}
