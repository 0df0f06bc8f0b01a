"""FSDP2 trains like one process; its checkpoints hold in parts what one file would, and keep every promise of that file.

The job is ``sharded_job.py``.
"""

import copy
import os
import pickle
import re
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from ranks import ENVIRONMENT, handed_back, history, once, run_ranks
from resume_job import EPOCHS as EPOCHS_OF_RUN
from resume_job import UPDATES, trainer
from sharded_job import AVERAGES, BATCH, EPOCHS, WAYS, deep, leg, train, whole_average
from tiny import run_python, tiny_data, weights

from template import EMA
from template.checkpoint.digests import digest
from template.checkpoint.files import CheckpointError, read
from template.checkpoint.sharded import plain_state
from template.tools.consolidate import consolidate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """One run by 1, 2, 3 and 1 processes, with FSDP2 where they are several: ``(its folder, results, what was said)``."""
    def run(folder):
        legs, said = [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            legs.append([leg("run", 5)])
            for size, update in [(2, 9), (3, 13)]:
                said.append(run_ranks(size, "-m", "sharded_job", ".", update, "signal", cwd=folder)[0])
                legs.append(handed_back(folder, size))
            legs.append([leg("run")])
        torch.save((legs, said), folder / "legs.pth")

    folder = once(tmp_path_factory, "sharded chain", run)
    return folder, *torch.load(folder / "legs.pth", weights_only=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run by one process that never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        ema = EMA(0.9)
        built = trainer("run", keep_checkpoints=1, key_metric="tol_loss", more=[ema])
        built.check_init(use_tb=False)
        built.fit(EPOCHS_OF_RUN)
        return {"weights": weights(built), "history": history("run"), "state": read("run/last.pth"),
                "average": whole_average(ema)}


def close(one, other, rtol=1e-5):
    torch.testing.assert_close(one, other, rtol=rtol, atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
def test_weights_in_parts_train_like_those_of_one_process(name, chain):
    folder, legs, _ = chain
    one, other = [rank["ways"][name] for rank in legs[1]]
    alone = train(deep(2 * BATCH), "alone")
    close(one["weights"], alone["weights"])
    assert torch.equal(one["weights"], other["weights"])
    assert one["eval"] == other["eval"] == pytest.approx(alone["eval"], rel=1e-5)
    assert one["own"] + other["own"] == one["all"] and one["own"] < 0.7 * one["all"], "each rank keeps a part"
    assert one["gathered"] == {"whole": 1}.get(name, 3)
    for row, expected in zip(history(folder / "check_point" / name), history("check_point/alone"), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_an_evaluation_of_fewer_batches_than_ranks_gives_the_numbers_of_one_process(size, chain):
    alone = train(deep(size * BATCH, 7), "alone")
    for rank in chain[1][size - 1]:
        assert rank["few"]["eval"] == pytest.approx(alone["eval"], rel=1e-5)
        close(rank["few"]["weights"], alone["weights"])


# --- from process to processes ------------------------------------------------------------------------------------------


def test_parts_are_read_by_any_number_of_ranks_and_by_one_process(chain, whole):
    folder, legs, _ = chain
    assert [{rank["leg"]["began"] for rank in ranks} for ranks in legs[1:3]] == [{4}, {9}]
    assert legs[3][0]["began"] == 13 and legs[3][0]["reached"] == UPDATES
    close(legs[3][0]["weights"], whole["weights"])
    for row, expected in zip(history(folder / "run"), whole["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    moments = [[state["optimizer_list0"]["state"][number]["exp_avg_sq"] for number in range(4)]
               for state in (read(folder / "run/last.pth"), whole["state"])]
    close(*moments, rtol=1e-4)
    close(legs[3][0]["average"], whole["average"])


def test_ddp_and_fsdp_take_over_from_each_other(chain, whole):
    for rank in chain[1][1]:
        assert [part["began"] for part in rank["kinds"]] == [0, 5, 9]
        close(rank["kinds"][-1]["weights"], whole["weights"])
        close(rank["kinds"][-1]["average"], whole["average"])
    assert "shards" not in read(chain[0] / "kinds/last.pth")


@pytest.mark.parametrize("name", WAYS)
def test_weights_in_parts_have_the_digest_of_whole_ones(name, chain):
    state = read(chain[0] / "check_point" / name / "last.pth")
    assert "shards" in state and state["digest"] == digest(state) == digest(plain_state(state))
    lines = (chain[0] / "check_point" / name / "digests.csv").read_text().splitlines()
    assert len(lines) == 1 + EPOCHS and lines[-1].endswith(state["digest"])


# --- averages of weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_in_parts_is_that_of_whole_weights_also_of_statistics_of_batchnorm(name, chain):
    """Compared with DDP: two processes normalise by other batches than one does."""
    folder = chain[0]
    ranks = [(rank[f"{name} ddp"], rank[f"{name} fsdp"]) for rank in chain[1][1]]
    for whole, parts in ranks:
        close(parts["weights"], whole["weights"])
        close(parts["predicted"], whole["predicted"])
        close(parts["best weights"], whole["best weights"])
        assert parts["eval"] == pytest.approx(whole["eval"], rel=1e-5) and parts["eval"] == ranks[0][1]["eval"]
        assert torch.equal(parts["predicted"], ranks[0][1]["predicted"]), "also the statistics are the same on all ranks"
        assert not torch.equal(parts["weights"], parts["best weights"])
    saved = [read(folder / f"{name} {parallel}.pth")["model0"] for parallel in ("ddp", "fsdp")]
    close(saved[1], saved[0])
    states = [read(folder / f"whole {name} {parallel}.pth") for parallel in ("ddp", "fsdp")]
    close(states[1]["model0"], states[0]["model0"])
    averages = [state["callbacks"][name]["average"]["values"] for state in states]
    close(averages[1], averages[0])
    assert {key: value.shape for key, value in averages[1].items() if ".norm." not in key and ".1." not in key} == {
        f"model0.{key}": value.shape for key, value in saved[0].items() if ".norm." not in key and "1." not in key}


@pytest.mark.parametrize("name", AVERAGES)
def test_a_run_with_averages_in_parts_that_was_killed_ends_with_the_same_bits(name, chain):
    for rank in chain[1][1]:
        found = rank[f"{name} continued"]
        assert [part["began"] for part in found["legs"]] == [0, 4, 10] and found["whole"]["reached"] == UPDATES
        for key in ("weights", "average"):
            assert torch.equal(found["legs"][-1][key], found["whole"][key]), key
    folder = chain[0] / "continued"
    best = [read(folder / f"{prefix}{name}/best.pth")["model0"] for prefix in ("", "whole ")]
    assert all(torch.equal(value, best[1][key]) for key, value in best[0].items())


def test_one_process_reads_an_average_from_its_parts(chain, tmp_path):
    folder = chain[0] / "continued/EMA"
    state = torch.load(folder / "last.pth", weights_only=True)
    notes = state["callbacks"]["EMA"]["average"]["values"].values()
    assert all("tensor in the parts" in note for note in notes), "each rank has written its part"
    ema = AVERAGES["EMA"]()
    built = trainer("alone", more=[ema])
    built.check_init(use_tb=False)
    built.load_state(folder / "last.pth")
    assert torch.equal(whole_average(ema), chain[1][1][0]["EMA continued"]["whole"]["average"])
    ema.save("average.pth")
    consolidate(folder / "last.pth", "whole.pth")
    values = read("whole.pth")["callbacks"]["EMA"]["average"]["values"]
    saved = read("average.pth")["model0"]
    assert all(torch.equal(values[f"model0.{key}"], value) for key, value in saved.items())
    built.load_state("average.pth", optim=False)
    assert torch.isfinite(built.predict(tiny_data(9, seed=6)[0])).all()


# --- what lies on the disk --------------------------------------------------------------------------------------------


def states(folder):
    return {path.name: torch.load(path, weights_only=True) for path in Path(folder).glob("*.pth")}


def test_last_names_parts_and_best_is_plain_and_whole(chain):
    folder = chain[0] / "after 2"
    found = states(folder)
    assert found["last.pth"]["shards"]["world_size"] == 2 and "model0" not in found["last.pth"]
    assert "shards" not in found["best.pth"] and found["best.pth"]["model0"]["0.weight"].shape == (16, 6)
    named = {state["shards"]["folder"] for state in found.values() if "shards" in state}
    assert {path.name for path in folder.glob("shards-*")} == named, "parts that no file names are gone"
    assert len(named) >= 2 and found["previous.pth"]["shards"]["folder"] in named
    built = trainer("plain")
    built.check_init(use_tb=False)
    built.load_state(folder / "best.pth", optim=False)


def test_parts_are_removed_when_one_process_has_gone_on_without_them(chain):
    found = states(chain[0] / "run")
    assert not any("shards" in state for state in found.values())
    assert len(list((chain[0] / "run").glob("shards-*"))) <= 1


def test_consolidate_gives_from_the_command_line_the_file_of_one_process(chain, tmp_path, whole):
    source = chain[0] / "after 3/last.pth"
    done = run_python("-m", "template.tools.consolidate", source, "whole.pth", cwd=tmp_path, env=ENVIRONMENT)
    assert done.stdout == f"whole.pth holds all of {source}\n"
    state, of_one = read("whole.pth"), whole["state"]
    assert state.keys() - {"rng_of_other_ranks"} == of_one.keys() and state["global_step"] == 13
    assert state["optimizer_list0"].keys() == of_one["optimizer_list0"].keys()
    assert state["optimizer_list0"]["state"].keys() == of_one["optimizer_list0"]["state"].keys()
    ranks = chain[1][2]
    ema = EMA(0.9)
    built = trainer("continued", keep_checkpoints=1, key_metric="tol_loss", more=[ema])
    built.check_init(use_tb=False)
    built.load_state("whole.pth")
    assert torch.equal(weights(built), ranks[0]["leg"]["weights"])
    assert torch.equal(whole_average(ema), ranks[0]["leg"]["average"])
    built.fit(EPOCHS_OF_RUN)
    close(weights(built), whole["weights"])
    close(whole_average(ema), whole["average"])
    with pytest.raises(ValueError, match="is whole already"):
        consolidate("whole.pth", "again.pth")
    again = run_python("-m", "template.tools.consolidate", "whole.pth", "x.pth", cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert again.returncode == 1 and "is whole already" in again.stderr and "Traceback" not in again.stderr


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": ("__0_0.distcp", flip, "the checksum of .*__0_0.distcp is wrong"),
    "a file that is gone": ("__1_0.distcp", os.unlink, "__1_0.distcp is missing"),
    "a part that is cut": ("__1_0.distcp", lambda path: os.truncate(path, 100), "the checksum of .*__1_0.distcp is wrong"),
    "cut metadata": (".metadata", lambda path: os.truncate(path, 40), "the checksum of .*.metadata is wrong"),
    "no metadata": (".metadata", os.unlink, ".metadata is missing"),
    "a folder that is gone": ("", shutil.rmtree, "is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_parts_are_named_and_the_ones_before_are_taken(name, chain, tmp_path, capsys):
    file, damage, message = DAMAGES[name]
    shutil.copytree(chain[0] / "after 2", "run")
    shards, before = (read(f"run/{file}.pth")["shards"] for file in ("last", "previous"))
    damage(Path("run") / shards["folder"] / file)
    with pytest.raises(CheckpointError, match=message):
        read("run/last.pth")
    built = trainer("run")
    built.check_init(use_tb=False)
    assert Path(built.load_state("auto")).name == "previous.pth" and built.global_step == 8
    assert re.search(f"skipped: .*last.pth cannot be used: .*{message}", capsys.readouterr().out)
    assert before["folder"] != shards["folder"]


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("forge", [
    lambda path: path.write_bytes(pickle.dumps(Payload())),
    lambda path: path.write_bytes(pickle.dumps({"state_dict_metadata": {}, "storage_data": Payload()})),
    lambda path: path.write_bytes(pickle.dumps(os.system)),
    lambda path: os.truncate(path, 40),
], ids=["a payload", "a payload inside", "a function", "cut"])
def test_metadata_with_fitting_checksum_is_not_believed_either(forge, chain, capsys):
    shutil.copytree(chain[0] / "after 2", "run")
    state = read("run/last.pth")
    path = Path("run") / state["shards"]["folder"] / ".metadata"
    forge(path)
    forged = copy.deepcopy(state)
    forged["shards"]["crc"][".metadata"] = zlib.crc32(path.read_bytes())
    forged["shards"].pop("in", None)
    torch.save(forged, "run/last.pth")
    with pytest.raises(CheckpointError, match="could run code when loaded: it names (posix|nt)|cannot be read"):
        read("run/last.pth")
    built = trainer("run")
    built.check_init(use_tb=False)
    assert Path(built.load_state("auto")).name == "previous.pth"
    assert not Path("executed").exists()


@pytest.mark.parametrize("change", [
    lambda shards: shards.update(folder="../elsewhere"), lambda shards: shards["crc"].update({"../../x": 1}),
    lambda shards: shards.pop("crc"), lambda shards: shards.update(folder=3),
], ids=["a folder outside", "a file outside", "no checksums", "a folder that is a number"])
def test_a_file_that_names_something_else_than_its_parts_is_refused(change, chain):
    shutil.copytree(chain[0] / "after 2", "run")
    state = read("run/last.pth")
    change(state["shards"])
    torch.save(state, "run/last.pth")
    with pytest.raises(CheckpointError, match="last.pth cannot be used"):
        read("run/last.pth")


# --- a disk that takes nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_disk_of_one_rank_that_takes_nothing_is_told_and_the_next_save_works(what, chain):
    folder, legs, said = chain
    for rank in legs[1]:
        found = rank[f"full {what}"]
        close(found["weights"], legs[1][0]["ways"]["whole"]["weights"])
        assert found["failed"] == 0
    steps = legs[1][0][f"full {what}"]["steps"]
    assert steps[:6] == [0, 1, 1, 1, 4, 5], "what was saved before is kept until a save works"
    assert len(steps) == 4 * EPOCHS
    run = re.search(rf"check_point/full {what} \|.*?(?:=== |\Z)", said[0], re.S)[0]
    assert run.count("!!! SAVE FAILED") == 1 and "No space left on device" in run and "Saving works again" in run
    found = states(folder / f"check_point/full {what}")
    assert found["last.pth"]["epochs_done"] == EPOCHS
    named = {state["shards"]["folder"] for state in found.values() if "shards" in state}
    assert {path.name for path in (folder / f"check_point/full {what}").glob("shards-*")} == named
