"""Warnings that name a line of the person's own code, and that stand in the log as well as on the console.

    warn("self.criterian is no attribute of TemplateModel.")    # at the nearest line that is neither ours nor a library's

    with warnings_noted(logger.note):                           # function of a text
        ...
"""

import os
import sys
import sysconfig
import warnings
from contextlib import contextmanager

_OURS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
_PARTS = frozenset("""__init__.py template.py keras_model.py hooks.py upgrade.py
                      data update metrics checkpoint parallel run output callbacks trackers tools""".split())
_LIBRARIES = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def is_ours(filename):
    """Whether a file of code belongs to this folder. Files of their own that people put beside ``template.py`` do not."""
    return filename.startswith(_OURS) and filename[len(_OURS):].split(os.sep)[0] in _PARTS


def is_theirs(filename):
    """Whether it is a person's own: neither of this folder nor of a library."""
    is_library = filename.startswith((*_LIBRARIES, "<frozen")) or "site-packages" in filename or "dist-packages" in filename
    return not is_ours(filename) and not is_library


def warn(message):
    """A ``UserWarning`` at the nearest line of a person's own code. Python has ``skip_file_prefixes`` for it since 3.12."""
    frame, level = sys._getframe(1), 2
    while frame is not None and not is_theirs(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level if frame is not None else 2)


@contextmanager
def warnings_noted(note):
    """A ``UserWarning`` that is shown within, of whomever, is also given to ``note`` as text."""
    before = warnings.showwarning
    if getattr(before, "note", None) == note:  # within another such block
        yield
        return

    def show(message, category, filename, lineno, file=None, line=None):
        before(message, category, filename, lineno, file, line)
        if category is UserWarning:  # no remarks of libraries, which have classes of their own
            note(warnings.formatwarning(message, category, filename, lineno, line).rstrip())

    show.note = note
    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = before
