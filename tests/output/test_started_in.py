"""The folder that a script was started in is noted, also where the script has left it before the run begins."""

import json
import os
import sys

import pytest
from tiny import tiny_trainer


@pytest.mark.parametrize("arguments, file", [
    (["train.py", "--config", "a.yaml"], "train.py"), (["-u", "../train.py"], "../train.py"),
    (["./my scripts/train.py"], "./my scripts/train.py"), (["-m", "pkg.train", "--lr", "1"], "pkg/train.py"),
    (["{here}/train.py"], None)])
def test_the_folder_where_the_command_was_typed_is_noted(arguments, file, tmp_path, monkeypatch):
    typed, here = str(tmp_path / "typed"), os.getcwd()
    monkeypatch.setattr(sys, "orig_argv", ["python", *(argument.format(here=here) for argument in arguments)])
    path = f"{typed}/{file}" if file else f"{here}/train.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", path, raising=False)
    trainer = tiny_trainer(ckpt_dir="run", seed=1)
    process = json.loads(trainer.path_of("config.json").read_text())[-1]["process"]
    assert process["folder"] == (typed if file else here)
