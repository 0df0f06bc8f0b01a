"""The five scripts of examples/styles train the same network to the same bits."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

STYLES = Path(__file__).resolve().parents[2] / "examples" / "styles"


@pytest.fixture
def styles_on_path(monkeypatch):
    """As Python does for a script: its folder is where its imports are looked for first."""
    monkeypatch.syspath_prepend(str(STYLES))
    yield
    for name in [path.stem for path in STYLES.glob("*.py")]:
        sys.modules.pop(name, None)


def run(name):
    """``(best epoch, val_loss, val_acc)`` as the script's last line prints them, and the best weights."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names = runpy.run_path(str(STYLES / f"{name}_style.py"), run_name="__main__")
    if "net" in names:
        net = names["net"]
    else:
        net = names["module"].models[0] if "module" in names else names["trainer"].model_list[0]
    numbers = re.search(r"best epoch (\d+): val_loss (\S+), val_acc (\S+)$", printed.getvalue().strip())
    return [float(number) for number in numbers.groups()], net.state_dict(), names


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_five_styles_end_with_the_same_numbers_and_the_same_weights_to_the_last_bit(styles_on_path):
    expected, weights, names = run("script")
    assert len(names["history"]) < names["EPOCHS"], "early stopping ended none of them"
    assert expected[0] == len(names["history"]) - names["PATIENCE"]
    import time
    for style in ("function", "class", "keras", "lightning"):
        t = time.time()
        numbers, own, _ = run(style)
        print(style, time.time() - t, file=sys.stderr)
        assert numbers == expected, style
        assert own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in own), style
