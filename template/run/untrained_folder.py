"""The folder of a run in which nothing was trained: an error takes it away, and the same trainer puts it back.

    folder = UntrainedFolder(trainer)
    folder.is_new = True                 # check_init made it
    folder.take_away(error)              # a typing mistake on the first batch leaves no folder behind
    folder.put_back()                    # in a notebook, where the next cell goes on
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..output import run_folder

if TYPE_CHECKING:
    from ..template import TemplateModel


class UntrainedFolder:
    """The ``ckpt_dir`` of a ``TemplateModel``, until something in it is worth keeping."""

    def __init__(self, trainer: TemplateModel):
        self.trainer = trainer
        self.is_new = False  # nothing was in it when this run began, and nothing was done since
        self._taken_away: dict[Path, bytes] = {}  # its files

    def keep(self):
        """Something was done, or a checkpoint loaded: from here on the folder stays."""
        self.put_back()
        self.is_new = False

    def take_away(self, error):
        """A run that an error ended before its first update leaves no folder."""
        trainer = self.trainer
        if trainer.global_step or not (self.is_new and isinstance(error, Exception)):
            return
        self.is_new = False
        folder = trainer.path_of(".")
        self._taken_away = run_folder.take_away(folder, trainer.run_name, Path(trainer.stdout_logger.filename).name)
        if not folder.exists():
            print(f"Nothing was trained, so the folder {trainer.ckpt_dir} was removed.", file=sys.stderr)

    def put_back(self):
        """The trainer goes on."""
        if self._taken_away:
            run_folder.put_back(self._taken_away)
            self._taken_away, self.is_new = {}, True
