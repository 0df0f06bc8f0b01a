"""What is added to an error of a person's own code on the first batch: their line, the batch, what may be wrong.

    explain(error, ["The first training batch: {x: float32 tensor [16, 6]}"])

In its traceback the lines of this folder between theirs are left out.
"""

import os
import sys
import traceback

from ..output.warn import is_ours, is_theirs


def explain(error, lines):
    """Leave out of the traceback of ``error`` what hides their line, and add that line and ``lines`` behind its message."""
    _drop_own_frames(error)
    notes = [*place_of(error), *lines]
    if hasattr(error, "add_note"):  # Python 3.11
        for note in notes:
            error.add_note(f"  {note}")
    else:
        print("\n".join([f"{type(error).__name__}: {error}", *(f"  {note}" for note in notes)]), file=sys.stderr)


def in_words(error, lines):
    """The same as a text of its own, for errors that end nothing."""
    message = "".join(traceback.format_exception_only(error)).strip()
    return "\n".join([message, *(f"  {line}" for line in (*place_of(error), *lines))])


def place_of(error):
    """``["train.py, line 41, in metric: return …"]``: the innermost line of a person's own code, or ``[]``."""
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if is_theirs(frame.filename)]
    if not theirs:
        return []
    frame = theirs[-1]
    path = os.path.relpath(frame.filename) if os.path.exists(frame.filename) else frame.filename
    path = frame.filename if path.startswith("..") else path
    return [f"{path}, line {frame.lineno}, in {frame.name}: {frame.line}"]


def _drop_own_frames(error):
    """The first two stay, which say what was called, and so does the last one."""
    entries, entry = [], error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    files = [entry.tb_frame.f_code.co_filename for entry in entries]
    if not any(map(is_theirs, files)):
        return
    kept = [entry for index, (entry, file) in enumerate(zip(entries, files))
            if index < 2 or index == len(entries) - 1 or not is_ours(file)]
    for entry, following in zip(kept, kept[1:]):
        entry.tb_next = following
