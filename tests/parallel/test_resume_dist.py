"""A run goes on with any number of processes as if it had never stopped, in one folder. The job is ``resume_job.py``."""

import json
import re

import pytest
import torch
from fault_results import curves
from ranks import epochs_told, handed_back, history, once, run_ranks
from resume_job import EPOCHS, UPDATES, leg, trainer
from tiny import weights

from template.checkpoint.files import read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """One run by 1, 2, 3 and 1 processes: ``(its folder, [what the ranks of each leg say])``."""
    def run(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            legs = [[dict(zip(("began", "reached"), (began, built.global_step)))
                     for began, built in [leg("run", 5)]]]
            for size, update, how in [(2, 9, "error"), (3, 13, "signal")]:
                run_ranks(size, "-m", "resume_job", ".", update, how, cwd=folder)
                legs.append(handed_back(folder, size))
            began, built = leg("run")
            legs.append([{"began": began, "reached": built.global_step, "weights": weights(built)}])
        torch.save(legs, folder / "legs.pth")

    folder = once(tmp_path_factory, "chain", run)
    return folder, torch.load(folder / "legs.pth", weights_only=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run by one process that never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        built = trainer("run")
        built.check_init()
        built.fit(EPOCHS)
        assert built.global_step == UPDATES
        return {"weights": weights(built), "history": history("run"), "curves": curves(built.path_of("../runs/run")),
                "state": read("run/last.pth"), "best": dict(built.best_metric)}


def test_one_two_three_and_one_processes_end_where_one_that_never_stopped_does(chain, whole):
    folder, legs = chain
    began = [{rank["began"] for rank in ranks} for ranks in legs]
    assert began == [{0}, {4}, {8}, {13}], "from the save before an error, and from where the signal came"
    torch.testing.assert_close(legs[-1][0]["weights"], whole["weights"], rtol=1e-5, atol=1e-6)
    for row, expected in zip(history(folder / "run"), whole["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    last = read(folder / "run/last.pth")
    assert (last["global_step"], last["epochs_done"], last["batch"]) == (UPDATES, EPOCHS, 0)
    assert last["best_metric"] == pytest.approx(whole["best"], rel=1e-5)
    moments = [[state["optimizer_list0"]["state"][number]["exp_avg"] for number in range(4)]
               for state in (last, whole["state"])]
    torch.testing.assert_close(*moments, rtol=1e-4, atol=1e-6)


def test_the_ranks_hold_the_same_weights_wherever_the_run_stands(chain):
    for ranks in chain[1][1:3]:
        assert all(torch.equal(rank["weights"], ranks[0]["weights"]) for rank in ranks)
        assert {rank["run_name"] for rank in ranks} == {"run"}


def test_all_processes_leave_one_folder_one_log_one_history_and_one_curve(chain, whole):
    folder, _ = chain
    epochs = list(range(1, EPOCHS + 1))
    log = (folder / "run/log.txt").read_text()
    assert epochs_told(log) == epochs
    assert len(re.findall(r"^=== \d{4}-", log, re.M)) == 4 == len(json.loads((folder / "run/config.json").read_text()))
    assert [row["epoch"] for row in history(folder / "run")] == epochs
    assert [path.name for path in (folder / "runs").iterdir() if path.name == "run"] == ["run"]
    found = curves(folder / "runs/run")
    assert found.keys() == whole["curves"].keys()
    for name, expected in whole["curves"].items():
        assert [step for step, _ in found[name]] == [step for step, _ in expected], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in expected], rel=1e-4), name


def test_two_ranks_with_dropout_go_on_to_the_same_bits(chain):
    one, other = [rank["dropout"] for rank in chain[1][1]]
    assert one["began"] == other["began"] == [0, 4, 10] and one["epoch"] == EPOCHS
    assert torch.equal(one["whole"], one["parts"]) and torch.equal(other["whole"], other["parts"])
    assert torch.equal(one["whole"], other["whole"])
    assert not torch.equal(one["next number"], other["next number"]), "each draws its own"


def test_seed_folder_and_name_that_nobody_gave_are_agreed_and_found_again(chain):
    (first, second), (first_other, second_other) = [rank["default"] for rank in chain[1][1]]
    assert first["own"] == first_other["own"] and second["own"] == second_other["own"]
    assert first["own"] != second["own"] and "2001" not in str(first["own"])
    for rank in (first, first_other, second, second_other):
        assert rank["then"] == first["own"], "the second run goes on in the first one's folder"
    assert second["updates"] == 2 * first["updates"]
    assert torch.equal(second["seeded alike"], second_other["seeded alike"])
    folders = [path.name for path in (chain[0] / "check_point").iterdir()]
    assert [f"./check_point/{name}" for name in folders] == [first["own"][1]] or folders == [first["own"][2]]
