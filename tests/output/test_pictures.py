"""A picture or a text of a callback is shown in TensorBoard, a cell and a file, whatever kind it is."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_trainer

from template.output import pictures
from template.output.pictures import Pictures, encode_png, png_of, to_pixels


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_holds_the_pixels_that_were_given(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (13, 7, channels), dtype=np.uint8)
    assert np.array_equal(decoded(encode_png(pixels)).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("image, expected", [
    (torch.tensor([[0.0, 1.0]]), [[0, 255]]),
    (torch.tensor([[0.0, 0.5]]), [[0, 128]]),
    (np.array([[-2.0, 2.0, 0.0]]), [[0, 255, 128]]),
    (torch.tensor([[True, False]]), [[255, 0]]),
    (np.array([[3, 200]], np.uint8), [[3, 200]]),
    (torch.tensor([[0, 10]]), [[0, 255]]),
    (torch.tensor([[float("nan"), 1.0, float("inf")]]), [[0, 255, 255]]),
    (torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), [[0, 255]]),
])
def test_values_become_shades(image, expected):
    assert to_pixels(image)[:, :, 0].tolist() == expected


@pytest.mark.parametrize("shape, size", [((5, 6), (5, 6, 1)), ((3, 5, 6), (5, 6, 3)), ((5, 6, 3), (5, 6, 3)),
                                         ((1, 5, 6), (5, 6, 1)), ((5, 1, 8, 8), (18, 28, 1))])
def test_images_come_in_several_layouts_and_batches_as_a_grid(shape, size):
    assert to_pixels(torch.rand(shape)).shape == size


@pytest.mark.parametrize("wrong, message", [(torch.rand(5), "must be"), (torch.rand(2, 5, 5), r"\[2, 5, 5\]"),
                                            (None, "got None"), ({"a": 1}, "got a dict")])
def test_what_is_no_picture_is_refused_with_what_is_one(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        png_of(wrong)


def figure():
    made = Figure(figsize=(2, 1), dpi=100)
    made.subplots().plot([1, 2])
    return made


@pytest.mark.parametrize("picture, size", [
    (figure, (100, 200)), (lambda: figure().axes[0], (100, 200)), (lambda: torch.rand(3, 400, 500), (400, 500)),
    (lambda: Image.new("L", (400, 350)), (350, 400)), (lambda: Image.new("RGBA", (400, 350)), (350, 400)),
    (lambda: torch.rand(8, 8), (320, 320))])
def test_every_kind_of_picture_becomes_a_file_and_an_event(picture, size):
    trainer = tiny_trainer(use_tb=True)
    Pictures("seen").show(trainer, "a/b c", picture(), step=3)
    file = trainer.path_of("seen/a_b_c.png")
    assert decoded(file.read_bytes()).shape[:2] == size
    trainer.writer.flush()
    image, = EventAccumulator(trainer.writer.log_dir).Reload().Images("seen/a/b c")
    assert (image.step, image.height, image.width) == (3, *size)
    assert image.encoded_image_string == file.read_bytes()


def test_a_text_becomes_a_file_and_an_event():
    trainer = tiny_trainer(use_tb=True)
    Pictures("seen").show(trainer, "words", "one\ntwo")
    assert trainer.path_of("seen/words.txt").read_text() == "one\ntwo\n"
    trainer.writer.flush()
    tags = EventAccumulator(trainer.writer.log_dir).Reload().Tags()["tensors"]
    assert tags == ["seen/words/text_summary"]


def test_figures_of_pyplot_do_not_pile_up():
    from matplotlib import pyplot
    trainer = tiny_trainer()
    before = pyplot.get_fignums()
    made, _ = pyplot.subplots()
    Pictures("seen").show(trainer, "plot", made)
    assert pyplot.get_fignums() == before


def test_a_cell_shows_the_newest_one_in_the_place_of_the_one_before(monkeypatch):
    shown = []

    class Place:
        def update(self, picture):
            shown.append("update")

    shell = SimpleNamespace(kernel=1, execution_count=1)
    monkeypatch.setattr(pictures, "_notebook", lambda: shell)
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: shown.append("new") or Place())
    trainer, seen = tiny_trainer(), Pictures("seen")
    for name in ("a", "a", "b"):
        seen.show(trainer, name, torch.rand(8, 8))
    shell.execution_count = 2
    seen.show(trainer, "a", "text")
    assert shown == ["new", "update", "new", "new"]


def test_a_missing_matplotlib_is_told_with_the_command_that_helps(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert pictures.require_matplotlib("The picture") is None
    assert "pip install matplotlib" in capsys.readouterr().out
