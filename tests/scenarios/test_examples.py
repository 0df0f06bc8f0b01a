"""The scripts of ``examples/``: each is short, runs as written, and reaches what it says."""

import re

import pytest
from tiny import ROOT, run_python

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_is_short_has_cells_and_says_how_to_run_it(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120 and text.count("\n# %% ") >= 3
    assert f"python examples/{script.name}" in text.split('"""')[1]


@pytest.mark.slow
def test_fine_tuning_does_better_than_training_from_scratch_and_than_guessing(tmp_path):
    printed = run_python(ROOT / "examples/transfer_learning.py", cwd=tmp_path).stdout
    tuned, scratch, most = map(float, re.findall(r"(?:fine-tuned|from scratch|most frequent digit) (0\.\d+)", printed))
    assert tuned > 0.7 and tuned > scratch > most and 0.2 <= most < 0.21
