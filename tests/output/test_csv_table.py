"""A table grows on the disk row by row, whole at every instant, and is read also after somebody edited it."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from template.output.csv_table import CsvTable, digest, read


@pytest.fixture
def table():
    return CsvTable("a.csv", "epoch", ("lr", "seconds"))


def lines():
    return Path("a.csv").read_text(encoding="utf-8").splitlines()


def row(epoch, **more):
    return {"epoch": epoch, "loss": epoch / 8, "lr": 0.5, **more}


def test_rows_are_appended_and_read_as_they_were_written(table):
    assert not table.append(row(1)), "there is no table yet"
    table.replace([row(1)])
    assert table.append(row(2)) and table.append(row(3))
    assert lines() == ["epoch,loss,lr", "1,0.125,0.5", "2,0.25,0.5", "3,0.375,0.5"]
    assert table.read() == [{"epoch": number, "loss": str(number / 8), "lr": "0.5"} for number in (1, 2, 3)]


def test_the_last_row_can_be_written_again_shorter_or_longer(table):
    table.replace([row(1), row(2)])
    assert table.append({"epoch": 2}, instead_of_last=True)
    assert lines()[1:] == ["1,0.125,0.5", "2,,"]
    assert table.append(row(2), instead_of_last=True) and table.append(row(3))
    assert lines()[1:] == ["1,0.125,0.5", "2,0.25,0.5", "3,0.375,0.5"]


def test_a_new_column_needs_the_whole_table_and_comes_before_those_at_the_end(table):
    table.replace([row(1, seconds=3) | {"lr/head": 1}])
    assert not table.append(row(2, acc=1.0))
    table.replace([*table.read(), row(2, acc=1.0)])
    assert lines() == ["epoch,loss,acc,lr,lr/head,seconds", "1,0.125,,0.5,1,3", "2,0.25,1.0,0.5,,"]


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text("epoch\n1\n"),
                                    lambda path: path.write_text(path.read_text() + "a note\n")])
def test_a_file_that_somebody_changed_is_not_appended_to(table, change):
    table.replace([row(1)])
    assert table.is_there()
    change(table.path)
    assert not table.is_there() and not table.append(row(2))


@pytest.mark.parametrize("text, epochs", [
    ("", []), ("\n", []), ("a,b\n1,2\n", []), ("epoch;loss\n1;2\n", []), ("epoch,loss\n", []),
    ("\ufeffepoch,loss\r\n1,2\r\n2,3\r\n", [1, 2]), ("loss,epoch,mine\n2,1,x\n3,2,\n", [1, 2]),
    ("epoch,loss\n1,2\n2,\n3", [1, 2]), ("epoch,loss\n1,2\n\0\0\0\0", [1]), ("epoch,loss\n3,2\n1,2\n3,5\n4,1\n", [3, 4]),
    ("epoch,loss\nmean,2\n-1,2\n1.5,2\n7,2\n", [7]), ("epoch,loss\n1," + "9" * 200_000 + "\n", []),
])
def test_of_any_text_the_rows_are_read_that_are_rows(text, epochs):
    Path("a.csv").write_text(text, encoding="utf-8")
    assert [row["epoch"] for row in read(Path("a.csv"), "epoch")] == epochs


def test_bytes_that_are_no_text_are_no_error():
    Path("a.csv").write_bytes(b"epoch,loss\n1,\xff\xfe\n")
    assert [row["epoch"] for row in read(Path("a.csv"), "epoch")] == [1]
    assert read(Path("not_there.csv"), "epoch") == []


def test_names_and_values_with_commas_quotes_and_line_ends_come_back(table):
    rows = [{"epoch": 1, 'a,"b"': "x\ny", "größe": 1.0}, {"epoch": 2, "größe": float("nan")}]
    table.replace(rows[:1])
    assert table.append(rows[1])
    with open("a.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", 'a,"b"': "x\ny", "größe": "1.0"},
                                              {"epoch": "2", 'a,"b"': "", "größe": "nan"}]
    assert [digest([one]) for one in table.read()] == [digest([one]) for one in rows]


def test_a_digest_tells_rows_apart_and_goes_on_from_earlier_ones():
    rows = [row(number) for number in range(5)]
    assert digest(rows) == digest(rows[3:], digest(rows[:3])) != digest(rows[:4])
    assert digest([{"a": 1, "b": 2}]) == digest([{"b": 2, "a": 1}]) != digest([{"a": 2, "b": 1}])


def test_what_is_set_aside_never_replaces_what_was_set_aside_before(table):
    for text in ("first", "second", "third"):
        table.path.write_text(text)
        table.set_aside()
    assert [Path(f"a_kept{number}.csv").read_text() for number in ("", "_2", "_3")] == ["first", "second", "third"]
    assert table.path.read_text() == "third"


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files, which Windows does not have")
def test_a_row_that_only_fits_in_part_is_an_error_and_the_next_ones_need_the_whole_table(table):
    import resource

    table.replace([row(1)])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize("a.csv") + 5, limits[1]))
    try:
        with pytest.raises(OSError):
            table.append(row(2))
        assert not table.append(row(2)) and not table.is_there()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [row["epoch"] for row in table.read()] == [1]
    table.replace([*table.read(), row(2)])
    assert table.append(row(3)) and [row["epoch"] for row in table.read()] == [1, 2, 3]


def test_appending_to_fifty_thousand_rows_takes_what_it_takes_for_fifty(table):
    def fastest(number):
        table.replace([row(number) for number in range(number)])
        seconds = []
        for epoch in range(number, number + 20):
            started = time.perf_counter()
            assert table.append(row(epoch))
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    assert fastest(50_000) < 10 * fastest(50)  # writing all would take a thousand times as long
