"""A file beside the training: in it at once, never an error, nothing lost and nothing doubled."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from full_disk import FullDisk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from template.output.patient_file import PatientFile


@pytest.fixture
def disk(monkeypatch):
    return FullDisk(monkeypatch)


def content(path="log.txt"):
    return Path(path).read_bytes()


def test_what_was_written_is_in_the_file_at_once_behind_what_was_there():
    Path("log.txt").write_bytes(b"old ")
    file = PatientFile("log.txt")
    file.write(b"one ")
    assert content() == b"old one "
    file.write(b"two")
    file.flush()
    assert content() == b"old one two" and file.waiting == b""


def test_it_is_opened_when_first_needed_and_makes_its_folder():
    file = PatientFile("a/b/log.txt")
    assert not os.path.exists("a")
    file.write(b"x")
    assert content("a/b/log.txt") == b"x"


def test_open_tells_of_a_bad_path_at_once():
    with pytest.raises(FileNotFoundError):
        PatientFile("a/b/log.txt").open()


def test_what_a_full_disk_refuses_waits_and_is_told_once(disk):
    told = []
    file = PatientFile("log.txt", told.append)
    disk.room = 5
    for text in (b"one ", b"two ", b"three "):
        file.write(text)
    assert content() == b"one t" and file.waiting == b"wo three "
    assert told == ["!!! log.txt cannot be written: No space left on device. What belongs there waits in memory."]
    disk.room = None
    file.write(b"four")
    assert content() == b"one two three four" and file.waiting == b""
    disk.room = 0
    file.write(b"!")
    assert len(told) == 2  # it worked meanwhile, so this is news


def test_flush_alone_brings_what_waits(disk):
    file = PatientFile("log.txt", lambda message: None)
    disk.room = 0
    file.write(b"waits")
    file.flush()
    assert content() == b""
    disk.room = None
    file.flush()
    assert content() == b"waits"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.binary(max_size=6), st.none() | st.integers(0, 8)), max_size=12))
def test_whatever_the_disk_takes_and_when_the_bytes_arrive_in_order_once(disk, writes):
    file, sent = PatientFile("any.bin", lambda message: None), b""
    for data, room in writes:
        disk.room = room
        file.write(data)
        sent += data
        assert content("any.bin") + file.waiting == sent
    disk.room = None
    file.flush()
    file.close()
    assert content("any.bin") == sent
    os.unlink("any.bin")


def test_a_file_that_cannot_be_opened_for_a_while_loses_nothing(disk):
    told = []
    file = PatientFile("log.txt", told.append)
    disk.may_open = False
    file.write(b"one ")
    file.write(b"two ")
    assert not os.path.exists("log.txt") and len(told) == 1 and "Permission denied" in told[0]
    disk.may_open = True
    file.write(b"three")
    assert content() == b"one two three"


def test_a_folder_that_was_deleted_is_made_again_and_told():
    told = []
    file = PatientFile("run/log.txt", told.append)
    file.write(b"one ")
    shutil.rmtree("run")
    file.write(b"two ")
    file.write(b"three")
    assert content("run/log.txt") == b"two three"
    assert told == ["!!! run/log.txt was deleted. It is begun anew."]


def test_a_deleted_folder_that_cannot_be_made_again_waits_too():
    told = []
    file = PatientFile("run/log.txt", told.append)
    file.write(b"one ")
    shutil.rmtree("run")
    Path("run").touch()  # in its place
    file.write(b"two ")
    file.write(b"three")
    assert file.waiting == b"two three"
    assert [message.split(":")[0] for message in told] == ["!!! run/log.txt was deleted. It is begun anew.",
                                                           "!!! run/log.txt cannot be written"]
    os.unlink("run")
    file.flush()
    assert content("run/log.txt") == b"two three"


def test_closed_it_can_be_written_again():
    file = PatientFile("log.txt")
    file.close()
    file.write(b"one ")
    file.close()
    file.close()
    file.write(b"two")
    assert content() == b"one two"


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_it_is_closed_with_its_owner(monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)  # where a warning of a finalizer goes
    file = PatientFile("log.txt")
    file.write(b"one")
    handle = file._file
    del file
    assert handle.closed
    del handle
    assert unraisable == [] and content() == b"one"
