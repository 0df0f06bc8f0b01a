"""The benchmarks run and tell everything they measure; how long it takes is no matter of tests."""

import re

import pytest
from tiny import ROOT, run_python

SAVING = [
    "torch.save", "torch.save + fsync", "this template, every save but the first", "this template, the first",
    "on the disk, read back and renamed",
    *[f"{row} step{end}" for _ in range(2) for kind in ("short", "long")
      for row, end in ((f"a {kind}", ""), (f"a save in all: standstill and slower {kind}", "s"))],
]
LOADING = ["torch.load + load_state_dict", "load_state, which verifies first and can go back", "verify the file"]
FINDING = ["torch.load of one of them", "last.pth is whole", "last.pth and previous.pth are damaged"]


@pytest.mark.slow
def test_the_benchmark_of_checkpoints_tells_every_row(own_folder):
    arguments = ("-m", "benchmarks.checkpoint", "--megabytes", 0.5, "--rounds", 1, "--folder", own_folder)
    printed = run_python(*arguments, cwd=ROOT).stdout
    rows = re.findall(r"^  (\S.*?) +(-?\d+\.\d+) ms\b(.*)$", printed, re.MULTILINE)
    assert [what for what, _, _ in rows] == [*SAVING, *LOADING, *FINDING]
    for what, milliseconds, rest in rows:
        assert float(milliseconds) > 0 or what.startswith("a save in all"), what  # a difference: may be noise
        ratio = re.match(r" +(-?\d+\.\d+) \((-?\d+\.\d+)\.\.(-?\d+\.\d+)\) +\S", rest)
        if ratio:
            assert float(ratio[2]) <= float(ratio[1]) <= float(ratio[3]), what
    assert len([rest for _, _, rest in rows if ".." in rest]) == len(SAVING) - 1 + 1 + 2
    assert "torch 2." in printed.splitlines()[0] and re.search(r"[\d.]+ GB/s", printed)
    assert not list(own_folder.iterdir())
