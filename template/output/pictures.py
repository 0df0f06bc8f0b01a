"""Where a picture or a text of a callback is shown: TensorBoard, trackers, a cell of a notebook, a file in the run's folder.

    pictures = Pictures("samples")
    pictures.show(trainer, "faces", figure)        # check_point/<run>/samples/faces.png, the tag samples/faces

A picture is a matplotlib figure, a PIL image, or an array or tensor [H, W], [1, 3 or 4, H, W], [H, W, 1, 3 or 4], or
[N, C, H, W], which becomes a grid. Only a figure needs matplotlib. Files hold the newest one, TensorBoard holds all of them.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .fonts import png_of_figure
from .run_folder import replace_file, told_when_it_fails

if TYPE_CHECKING:
    from ..template import TemplateModel

_CHANNELS = (1, 3, 4)
_LEAST_SIZE = 320  # pixels of the longer side
_GAP = 2  # pixels between the images of a grid


class Pictures:
    """Shows the pictures of one callback.

    Args:
        folder: of the files, in the run's folder; also the beginning of the tags.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._cells: dict[str, Any] = {}  # by name: (the cell, the place in it where the picture is shown)

    def show(self, trainer: TemplateModel, name: str, picture: Any, step: int | None = None, file: str | None = None,
             in_cell: bool = True) -> None:
        """Show ``picture``, on rank 0. A file that cannot be written is told of, and ends nothing.

        Args:
            name: of the picture; its tag is "<folder>/<name>".
            picture: a figure, an image or a text, see above.
            step: in TensorBoard; None: the epoch, or with ``eval_per_steps`` the update.
            file: its name in the folder, without ending; None: ``name``.
            in_cell: show it in a notebook too.

        Raises:
            TypeError, ValueError: it is none of these.
        """
        if not trainer.is_main:
            return
        content = picture if isinstance(picture, str) else png_of(picture)
        ending = "txt" if isinstance(content, str) else "png"
        path = Path(trainer.path_of(f"{self.folder}/{_file_name(file or name)}.{ending}"))
        with told_when_it_fails(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content + "\n" if isinstance(content, str) else content)
        if trainer.writer is not None:
            _add(trainer.writer, f"{self.folder}/{name}", content, step_of(trainer) if step is None else step)
        for callback in trainer.hooks.callbacks:
            if hasattr(callback, "take_picture"):  # a tracker
                callback.take_picture(trainer, f"{self.folder}/{name}", content, path)
        if in_cell and (shell := _notebook()) is not None:
            self._show_in_cell(shell, name, content)

    def _show_in_cell(self, shell, name, content):
        """In the place of the one before, as long as the same cell runs."""
        from IPython.display import Image, Pretty, display  # type: ignore  # it is there: this is a notebook

        shown = Pretty(content) if isinstance(content, str) else Image(data=content, format="png")
        cell, place = self._cells.get(name, (None, None))
        if cell == shell.execution_count:
            place.update(shown)
        else:
            self._cells[name] = shell.execution_count, display(shown, display_id=True)


def step_of(trainer: TemplateModel) -> int:
    """Of a picture in TensorBoard: the epoch, or the update where an epoch has several evaluations."""
    return trainer.global_step if trainer.eval_per_steps else trainer.epoch


def moment_of(trainer: TemplateModel) -> str:
    """In words: "epoch 3", or "epoch 3, update 120" in its middle."""
    return f"epoch {trainer.epoch}" + (f", update {trainer.global_step}" if trainer.lifetime.is_mid_epoch else "")


def png_of(picture: Any) -> bytes:
    """A figure or an image as a png.

    Raises:
        TypeError, ValueError: it is none.
    """
    figure: Any = picture if hasattr(picture, "savefig") else getattr(picture, "figure", None)  # of axes, too
    if hasattr(figure, "savefig"):
        image = png_of_figure(figure)
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close(figure)  # pyplot keeps every figure until somebody does
        return image
    if hasattr(picture, "convert") and hasattr(picture, "getbands"):  # of PIL
        picture = np.asarray(picture.convert("RGBA" if "A" in picture.getbands() else "RGB"))
    return encode_png(_enlarged(to_pixels(picture)))


def to_pixels(image: Any) -> np.ndarray:
    """An image, or a batch of them as a grid, as uint8 [H, W, 1, 3 or 4].

    uint8 is taken as it is, True is white. Floats in [0, 1] are stretched to [0, 255]; of all others the smallest becomes
    black and the largest white.

    Raises:
        TypeError, ValueError: it is no image.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError("A picture must be a matplotlib figure, a PIL image, an array or tensor, or a text; got "
                        f"{_described(image)}.")
    if image.ndim == 4 and image.shape[0]:
        return _grid([_with_channels_last(one) for one in _as_bytes(image)])
    return _with_channels_last(_as_bytes(image))


def _as_bytes(image):
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1 and (image.dtype == bool or image.dtype.kind == "f"):
        low, high = 0.0, 1.0
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return (scaled * 255).round().astype(np.uint8)


def _with_channels_last(image):
    if image.ndim == 2:
        return image[:, :, None]
    if image.ndim == 3 and image.shape[0] in _CHANNELS:
        return image.transpose(1, 2, 0)
    if image.ndim == 3 and image.shape[2] in _CHANNELS:
        return image
    raise ValueError("An image must be [H, W], [1, 3 or 4, H, W], [H, W, 1, 3 or 4], or a batch of these; got the shape "
                     f"{list(image.shape)}.")


def _enlarged(pixels):
    """An image of a few pixels by a whole factor: it could not be seen otherwise."""
    factor = max(1, _LEAST_SIZE // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _grid(images):
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    grid = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        grid[top:top + height, left:left + width] = image
    return grid


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 1, 3 or 4] as a png.

    Source: W3C, "Portable Network Graphics (PNG) Specification", section 11.
    """
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
            + chunk(b"IEND", b""))


def _add(writer, tag, content, step):
    """The user's own writer may know ``add_scalar`` alone."""
    if isinstance(content, str):
        if hasattr(writer, "add_text"):
            writer.add_text(tag, content if content.startswith("|") else f"```\n{content}\n```", step)
        return
    if hasattr(getattr(writer, "file_writer", None), "add_summary"):
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore  # optional, without types

        width, height, _, kind = struct.unpack(">IIBB", content[16:26])
        image = Summary.Image(height=height, width=width, colorspace={0: 1, 2: 3, 6: 4}[kind],
                              encoded_image_string=content)
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _file_name(name):
    """Legal on every system."""
    return re.sub(r'[<>:"/\\|?*\s]+', "_", name)


def _notebook():
    """IPython's shell where there are cells, else None."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell if hasattr(shell, "kernel") else None


def require_matplotlib(what: str) -> Any:
    """matplotlib's module ``figure``, or None, having said how to get it.

    Args:
        what: the picture that there is none of, in a sentence: "The confusion matrix".
    """
    try:
        from matplotlib import figure  # type: ignore  # optional
    except ImportError:
        print(f"{what} is not drawn: this needs matplotlib, which is missing. pip install matplotlib")
        return None
    return figure


def _described(value):
    return "None" if value is None else f"a {type(value).__name__}: {str(value)[:80]}"
