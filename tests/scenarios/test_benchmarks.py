"""The benchmarks run and tell everything they measure; how long it takes is no matter of tests."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import fork_server
import pytest
import torch
from tiny import ROOT, run_python

from benchmarks import imports, measuring

pytestmark = pytest.mark.slow

SAVING = [
    "torch.save", "torch.save + fsync", "this template, every save but the first", "this template, the first",
    *[f"often, {who}{what}" for what in ("", ", longest") for who in ("torch.save", "this template")],
    "on the disk, read back and renamed",
    *[f"{row} step{end}" for _ in range(2) for kind in ("short", "long")
      for row, end in ((f"a {kind}", ""), (f"a save in all: standstill and slower {kind}", "s"))],
]
LOADING = ["torch.load + load_state_dict", "load_state, which verifies first and can go back", "verify the file"]
FINDING = ["torch.load of one of them", "last.pth is whole", "last.pth and previous.pth are damaged"]
IMPORTS = ["import torch", "from template.template import TemplateModel", "both", "by hand", "this template: check_init",
           "this template: from then to its end", "this template: both",
           *[what for what, _, _ in imports.WAY], "in all"]
LOOPS = ["by hand, plain", "by hand, equipped", "this template"]
LOOPS_WITH_LINES = [*LOOPS[:2], "this template, TensorLoader", "this template, a class with __iter__"]
GROWTH = {
    "tensors of 64 parameters": ["4", "40", "400"],
    "entries of the dict of losses": ["1", "4", "16"], "callbacks that do nothing": ["0", "3", "10"],
    "metrics, per eval batch": ["0", "2", "8"], "optimizers": ["1", "2", "4"],
    "parameters, in 2 tensors": ["1,000", "10,000"],
}


GPU_ROWS = {
    "steps": [f"{network}, {how}: {name}" for network, how in (
        ("Residual network", "float32"), ("Residual network", "bf16"), ("Residual network", "bf16, channels_last"),
        ("Transformer", "float32"), ("Transformer", "bf16")) for name in ("by hand", "this template")],
    "data": ["a batch, in the manner of airbench", "a batch, TensorLoader with a transform"],
    "cifar10": ["training of demo_cifar10, eager"],
    "checkpoints": [f"{size} MB: {what}" for size in (2, 4) for what in (
        "torch.save", "this template stands still", "the file is verified on the disk")],
}


SHORT_CHECKPOINT = """
from benchmarks import checkpoint
checkpoint.PRACTICE_SECONDS, checkpoint.BETWEEN_SECONDS, checkpoint.SAVES, checkpoint.FILES = 0.05, 0.01, 3, 8
checkpoint.main()
"""


def printed_by(benchmark, *arguments, folder, how="-m"):
    """What a benchmark prints in one round; it must leave nothing behind."""
    printed = run_python(how, benchmark, "--rounds", 1, "--folder", folder, *arguments, cwd=ROOT, timeout=600,
                         env={"BENCHMARK_START": "fork"}).stdout
    assert not list(folder.iterdir())
    return printed


def rows_in_milliseconds(printed):
    """``[(what, rest of the row)]``; times are positive, ratios within what they range over."""
    rows = re.findall(r"^  (\S.*?) +(-?\d+\.\d+) ms\b(.*)$", printed, re.MULTILINE)
    for what, milliseconds, rest in rows:
        assert float(milliseconds) > 0 or what.startswith("a save in all"), what  # a difference: may be noise
        require_ratios(rest)
    return [(what, rest) for what, _, rest in rows]


def require_ratios(text):
    """How many ``median (min..max)`` there are."""
    spreads = re.findall(r"(-?[\d.]+) \((-?[\d.]+?)\.\.(-?[\d.]+)\)", text)
    for median, low, high in spreads:
        assert float(low) <= float(median) <= float(high), text
    return len(spreads)


def loop_rows(printed):
    return re.findall(r"^    (\S.*?)  +(\d+\.\d)   (.*?)(\d\.\d{4}) +([01]\.\d{4})$", printed, re.MULTILINE)


def test_the_benchmark_of_checkpoints_tells_every_row(own_folder):
    printed = printed_by(SHORT_CHECKPOINT, "--megabytes", 0.5, folder=own_folder, how="-c")
    rows = rows_in_milliseconds(printed)
    assert [what for what, _ in rows] == [*SAVING, *LOADING, *FINDING]
    assert len([rest for _, rest in rows if ".." in rest]) == len(SAVING) - 3 + 1 + 2
    assert "torch 2." in printed.splitlines()[0] and re.search(r"[\d.]+ GB/s", printed)


def test_the_benchmark_of_the_loop_tells_every_contender_and_that_all_did_equal_work(own_folder):
    tables = ("samples", "lines")  # which are all classes; the form of data that is left out is that of the peers
    printed = printed_by("benchmarks.loop", "--updates", 4, "--epochs", 1, "--only", *tables, folder=own_folder)
    rows = loop_rows(printed)
    assert [name for name, *_ in rows] == [*LOOPS * 2, *LOOPS_WITH_LINES * 2]
    for name, time, ratios, loss, _ in rows:
        assert float(time) > 0 and 1.5 < float(loss) < 3
        assert require_ratios(ratios) == (0 if name == LOOPS[0] else 1 if name == LOOPS[1] else 2), name


def test_peers_are_compared_as_far_as_they_are_there(own_folder):
    printed = printed_by("benchmarks.loop", "--updates", 4, "--epochs", 1, "--only", "peers", folder=own_folder)
    assert "peers: " in printed
    if "peers: none" not in printed:
        assert [name for name, *_ in loop_rows(printed)][:3] == LOOPS


def test_a_contender_that_did_other_work_has_no_figures():
    from benchmarks.measuring import require_equal_work

    require_equal_work({"by hand": 0.500, "ours": 0.510})
    with pytest.raises(RuntimeError, match="equal work: 'ours' ended with a loss of 0.9"):
        require_equal_work({"by hand": 0.5, "ours": 0.9})
    with pytest.raises(RuntimeError, match="equal work"):
        require_equal_work({"by hand": 0.5, "ours": float("nan")})


def test_what_a_contender_raises_reaches_the_benchmark():
    from benchmarks.measuring import Process

    with Process(str, "abc", steady=True) as process:
        assert process("upper") == "ABC"
        with pytest.raises(RuntimeError, match="IndexError|ValueError"):
            process("index", "x")


def test_the_benchmark_of_growth_tells_every_size(own_folder):
    printed = printed_by("benchmarks.growth", "--updates", 6, "--largest", 1e4, folder=own_folder)
    tables = re.split(r"\n\n  (?=\S)", printed)[1:]
    assert [re.split("  +", table)[0] for table in tables] == list(GROWTH)
    for table, sizes in zip(tables, GROWTH.values()):
        rows = [line.split() for line in table.splitlines()[1:]]
        assert [size for size, *_ in rows] == sizes
        for _, by_hand, ours, *_, loss, our_loss in rows:
            assert float(by_hand) > 0 and float(ours) > 0 and float(loss) == pytest.approx(float(our_loss), rel=1e-3)
        assert require_ratios(table) == len(sizes)


def test_the_benchmark_of_everyday_features_tells_what_each_costs(own_folder, monkeypatch):
    from benchmarks import everyday

    is_there = everyday.package_of(everyday.BEFORE, own_folder) is not None  # git has it, and this is no download
    shutil.rmtree(own_folder / "template_before", ignore_errors=True)
    with monkeypatch.context() as without_git:
        without_git.setenv("PATH", str(own_folder))
        assert everyday.package_of(everyday.BEFORE, own_folder) is None
    printed = printed_by("benchmarks.everyday", "--updates", 3, "--batches", 2, "--only", "EMA", folder=own_folder)
    assert ("git has no commit" in printed) == (not is_there)
    expected = [everyday.WITHOUT, *([everyday.OLD] if is_there else []), "EMA", everyday.ALL]
    tables = re.split(r"\n\n  (?=\S)", printed)[1:]
    assert [re.split("  +", table)[0] for table in tables] == ["an update", "an evaluation of 2 batches"]
    for table in tables:
        rows = [re.split("  +", line.strip()) for line in table.splitlines()[1:]]
        assert [name for name, *_ in rows] == expected
        assert all(float(time) > 0 for _, time, *_ in rows) and require_ratios(table) == len(expected) - 1


def test_the_benchmark_of_evaluations_tells_every_contender_and_that_all_found_the_same(own_folder):
    printed = printed_by("benchmarks.evaluation", "--batches", 3, "--forms", "slices", folder=own_folder)
    rows = re.findall(r"^  (\S.*?) +(\d+\.\d) us per batch(.*)$", printed, re.MULTILINE)
    ours = ["by hand", "this template"]
    assert [name for name, *_ in rows] == [*ours, *ours, "this template, metrics made once"]
    assert all(float(time) > 0 and require_ratios(rest) == (name != "by hand") for name, time, rest in rows)


def test_the_benchmark_of_images_tells_both_loops_or_which_package_is_missing(own_folder, monkeypatch, capsys):
    from benchmarks import images

    printed = printed_by("benchmarks.images", "--images", 70, "--size", 16, "--workers", 1, folder=own_folder)
    kinds = re.findall(r"^ (\w.*):$", printed, re.MULTILINE)
    rows = re.findall(r"^  (\S.*?) +(\d+\.\d+) ms\b(.*)$", printed, re.MULTILINE)
    assert kinds[:2] == [images.CLOCK, images.LOOP] and len(rows) == 2 * len(kinds)
    assert [what for what, *_ in rows[:2]] == ["the plain DataLoader loop", "this template"]
    assert require_ratios(rows[1][2]) == 1 and all(float(milliseconds) > 0 for _, milliseconds, _ in rows[:4])
    monkeypatch.setitem(sys.modules, "PIL", None)
    images.main(["--folder", str(own_folder)])
    assert capsys.readouterr().out == f"{images.NEEDS_PILLOW}\n"


def test_the_benchmark_of_memory_tells_every_part(own_folder, monkeypatch, capsys):
    from benchmarks import memory

    printed = printed_by("benchmarks.memory", folder=own_folder)
    by_hand, ours = (re.findall(r"^  (\S.*?)  +-?\d+\.\d \(", part, re.MULTILINE) for part in printed.split("\n\n")[1:3])
    assert by_hand == [memory.BEGIN, memory.SET_UP, memory.TRAINING] and len(ours) == 9 and ours[0] == memory.BEGIN
    assert "Beyond the plain loop: " in printed and "The process that draws history.png has " in printed
    monkeypatch.setattr(memory, "resident_megabytes", lambda: None)
    memory.main([])
    assert "which Linux has" in capsys.readouterr().out


def test_evaluations_that_differ_have_no_figures():
    from benchmarks.evaluation import require_equal_values

    require_equal_values({"acc": 0.5, "loss": 1.0}, {"acc": 0.5, "loss": 1.00001})
    for found in ({"acc": 0.6, "loss": 1.0}, {"acc": 0.5}, {"acc": 0.5, "loss": 1.0, "more": 1.0}):
        with pytest.raises(RuntimeError, match="must give the same values"):
            require_equal_values({"acc": 0.5, "loss": 1.0}, found)


def test_the_benchmark_of_long_runs_tells_every_part_and_finds_no_larger_checkpoint(own_folder):
    printed = printed_by("benchmarks.long_run", "--epochs", 64, "--updates", 80, folder=own_folder)
    _, epochs, updates = printed.split("\n\n")
    rows = [line.replace(",", "").split() for line in epochs.splitlines()[1:]]
    assert [int(epoch) for epoch, *_ in rows] == list(range(8, 65, 8))
    assert all(float(value) > 0 for row in rows for value in row)
    sizes = [int(last) for _, _, _, _, last, _, _ in rows]
    assert max(sizes) - min(sizes) < 3000  # of the newest rows it holds between eight and two dozen
    rows = [line.replace(",", "").split() for line in updates.splitlines()[1:]]
    assert [int(update) for update, *_ in rows] == list(range(20, 81, 10))


def test_the_benchmark_of_imports_tells_every_stage(own_folder, monkeypatch, capsys):
    """In forks, in which most is imported already."""
    def run(command, cwd, env, **_):
        return fork_server.run_python(command[1:], cwd=cwd, timeout=300,
                                      env={name: value for name, value in env.items() if name not in measuring.ALLOCATOR})

    monkeypatch.setattr(imports, "subprocess", SimpleNamespace(run=run, DEVNULL=None))
    imports.main(["--rounds", "1", "--folder", str(own_folder)])
    printed = capsys.readouterr().out
    assert not list(own_folder.iterdir())
    assert re.findall(r"^  (\S.*?) +\d+\.\d+ ms\b", printed, re.MULTILINE) == IMPORTS
    stages = re.findall(r"^  this template: (.*?)  +\S", printed[printed.index("Heavy modules"):], re.MULTILINE)
    assert stages == ["import template", "check_init", "to the first forward"]


def test_the_benchmark_of_gpus_says_that_there_is_none_or_runs(own_folder):
    if not torch.cuda.is_available():
        printed = printed_by("benchmarks.gpu", folder=own_folder)
        assert printed == "The GPU figures are unmeasured here: there is no CUDA device.\n"
    printed = printed_by("benchmarks.gpu", "--device", "cpu", "--minutes", 9, "--modes", "eager", "--only", "steps", "data",
                         "cifar10", "checkpoints", "--json", own_folder.parent / "gpu.json", folder=own_folder)
    found = json.loads((own_folder.parent / "gpu.json").read_text())
    assert {name: part["state"] for name, part in found["parts"].items()} == dict.fromkeys(GPU_ROWS, "complete")
    for name, rows in GPU_ROWS.items():
        assert [row["what"] for row in found["parts"][name]["rows"]] == rows
        assert all(row["median"] > 0 and f"{row['what']} " in printed for row in found["parts"][name]["rows"])
        assert all(row["lowest"] <= row["ratio"] <= row["highest"] for row in found["parts"][name]["rows"] if "ratio" in row)
    assert found["conditions"]["torch"] == torch.__version__


def test_make_bench_runs_those_that_are_asked_for(own_folder):
    printed = printed_by("benchmarks", "--only", "gpu", folder=own_folder)
    assert re.findall("^=== (.*) ===$", printed, re.MULTILINE) == ["gpu"]


def test_the_benchmark_of_several_processes_times_a_hand_written_loop_and_the_template(capsys, monkeypatch):
    from benchmarks import scaling

    monkeypatch.setattr(scaling.subprocess, "run", lambda command, cwd, env, **_: fork_server.run_python(
        command[1:], cwd=cwd, env=env, timeout=300))
    alone, together = scaling.run("by_hand", 1, ""), scaling.run("template", 2, "ddp")
    assert 0 < alone < 5 and 0 < together < 5
    scaling.estimate()
    printed = capsys.readouterr().out
    assert "ESTIMATE, nothing of it measured" in printed
    for name in scaling.MODELS:
        assert len(re.findall(rf"{re.escape(name)} +(?:8|64) .*%", printed)) == 2
