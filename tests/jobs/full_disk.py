"""A disk that is full for a while, for the tests of files that must live through it."""

import builtins

from template.output import patient_file


class FullDisk:
    """Stands between ``PatientFile`` and the files: ``room`` bytes are taken, then ENOSPC; None takes everything."""

    def __init__(self, monkeypatch):
        self.room = None
        self.may_open = True
        self.refused = 0
        monkeypatch.setattr(patient_file, "open", self.open, raising=False)

    def open(self, *args, **options):
        if not self.may_open:
            raise PermissionError(13, "Permission denied")
        return _File(self, builtins.open(*args, **options))


class _File:
    def __init__(self, disk, file):
        self.disk, self.file = disk, file
        self.fileno, self.close = file.fileno, file.close

    def write(self, data):
        room = self.disk.room
        if room is None:
            return self.file.write(data)
        if room == 0:
            self.disk.refused += 1
            raise OSError(28, "No space left on device")
        self.disk.room = max(0, room - len(data))
        return self.file.write(data[:room])  # a short write, as the kernel does it
