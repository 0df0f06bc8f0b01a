"""The stdout tee: what goes to the file, what stays out of it, and that stdout always comes back."""

import contextlib
import io
import os
import random
import shutil
import sys
import threading
import types
from pathlib import Path

import pytest
from full_disk import FullDisk
from tiny import ROOT, run_python, tiny_trainer

from template import Callback
from template.output.logger import Logger

HERE = {"PYTHONPATH": str(ROOT)}


def text(path="log.txt"):
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def own_console():
    """Make a stdout that keeps what reached it; the conftest gives the real one back."""
    sys.stdout = io.StringIO()
    return sys.stdout


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_printed_stands_on_the_console_and_in_the_file():
    console = own_console()
    with Logger("log.txt"):
        print("one", 2, sep="-")
        print("three")
    assert console.getvalue() == text() == "one-2\nthree\n"


def test_pieces_of_a_line_become_one_line():
    own_console()
    with Logger("log.txt"):
        for piece in ("loss", " ", "0.5"):
            print(piece, end="")
            assert text() == ""  # only whole lines go to the file
        print()
    assert text() == "loss 0.5\n"


def test_a_bar_makes_room_before_each_line_and_not_in_the_middle_of_one():
    console = own_console()
    with Logger("log.txt") as logger:
        print("before")
        logger.before_line = lambda: console.write("<room>")
        print("one", 2)
        print("three", end=" ")
        print("four")
        print("five")
        logger.before_line = None
        print("behind")
    assert console.getvalue() == "before\n<room>one 2\n<room>three four\n<room>five\nbehind\n"


def test_a_last_line_without_its_end_is_not_lost():
    own_console()
    logger = Logger("log.txt").install()
    print("half a line", end="")
    logger.restore()
    assert text() == "half a line\n"


def test_each_line_is_in_the_file_as_soon_as_it_is_printed():
    own_console()
    with Logger("log.txt"):
        print("alive")
        assert text() == "alive\n"  # read while the Logger is open: a killed process keeps its last line


def test_text_of_any_language_is_kept():
    own_console()
    with Logger("log.txt"):
        print("准确率 0.98 — größer")
    assert text() == "准确率 0.98 — größer\n"


def test_write_returns_the_number_of_characters_as_every_stream_does():
    own_console()
    logger = Logger("log.txt")
    assert logger.write("hello\n") == 6
    logger.writelines(["a\n", "b\n"])
    assert text() == "hello\na\nb\n"


def test_colours_reach_the_console_and_stay_out_of_the_file():
    console = own_console()
    with Logger("log.txt"):
        print("\x1b[31mred\x1b[0m")
    assert text() == "red\n"
    assert "\x1b[31m" in console.getvalue()


def test_an_older_log_is_appended_to_and_clean_empties_it():
    own_console()
    with open("log.txt", "w") as file:
        file.write("old\n")
    logger = Logger("log.txt").install()
    print("new")
    assert text() == "old\nnew\n"
    logger.clean()
    assert text() == ""
    print("after")
    logger.restore()
    assert text() == "after\n"
    logger.clean()
    assert text() == ""


def test_a_bad_path_fails_at_once_and_leaves_stdout_alone():
    console = own_console()
    with pytest.raises(FileNotFoundError, match="missing"):
        Logger("missing/log.txt")
    assert sys.stdout is console


def test_it_answers_what_libraries_ask_of_a_stdout():
    own_console()
    with open("real.txt", "w", encoding="utf-16") as real:
        sys.stdout = real
        logger = Logger("log.txt")
        assert logger.fileno() == real.fileno()
        assert logger.isatty() is False
        assert logger.encoding == "utf-16"
        assert logger.errors == "strict"
        assert logger.buffer is real.buffer
        assert logger.writable() and not logger.readable() and not logger.closed
        logger.write("x")
        logger.flush()
    real = io.StringIO()
    real.isatty = lambda: True
    sys.stdout = real
    assert Logger("log.txt").isatty() is True
    assert Logger("log.txt").encoding == "utf-8"  # a StringIO has none


class NotebookStream(io.StringIO):
    """A console that has more than a file, as a notebook's."""

    def __init__(self):
        super().__init__()
        self.cell, self.topic = None, b"stream.stdout"

    @property
    def parent_header(self):
        return self.cell

    @parent_header.setter
    def parent_header(self, cell):
        self.cell = cell

    def set_parent(self, cell):
        self.cell = cell


def test_what_a_console_has_beyond_a_file_is_reached_through_one_or_two_loggers():
    console = sys.stdout = NotebookStream()
    with Logger("outer.txt"), Logger("inner.txt") as logger:
        sys.stdout.set_parent("cell 2")
        assert console.cell == sys.stdout.parent_header == "cell 2"
        sys.stdout.parent_header = "cell 3"
        sys.stdout.topic = b"other"
        assert (console.cell, console.topic) == ("cell 3", b"other")
        sys.stdout.own = 1  # what the console does not have stays here
        assert logger.own == 1 and not hasattr(console, "own")
        logger.filename = "renamed.txt"
        assert not hasattr(console, "filename")
        logger.filename = "inner.txt"


def test_a_name_that_neither_has_is_an_error_and_a_copy_or_pickle_asks_the_console_nothing():
    sys.stdout = NotebookStream()
    logger = Logger("log.txt")
    with pytest.raises(AttributeError, match="Neither Logger nor the stdout below it, a NotebookStream, has .* 'flsh'"):
        logger.flsh()
    assert not hasattr(logger, "reconfigure") and not hasattr(logger, "__next__")
    assert not hasattr(Logger.__new__(Logger), "anything"), "also before it has a console"


def test_the_console_s_own_settings_can_be_asked_for_and_changed():
    with open("real.txt", "w", encoding="utf-8") as real:
        sys.stdout = real
        logger = Logger("log.txt").install()
        sys.stdout.reconfigure(line_buffering=True, newline="\r\n")
        print("at once")
        assert text("real.txt") == "at once\r\n" and text() == "at once\n"
        assert (logger.line_buffering, logger.write_through, logger.name, logger.mode) == (True, False, "real.txt", "w")
        sys.stdout.close()
        assert sys.stdout is real and not real.closed, "closing gives stdout back"
        print("the console goes on")
    assert text() == "at once\n"


def test_a_program_without_a_console_has_its_log():
    sys.stdout = None  # as under pythonw
    with Logger("log.txt") as logger:
        print("for the log")
        sys.stdout.flush()
        assert not logger.isatty() and logger.encoding == "utf-8" and not hasattr(logger, "buffer")
        with pytest.raises(OSError, match="fileno"):
            logger.fileno()
    assert sys.stdout is None
    assert text() == "for the log\n"


def test_what_is_printed_to_a_console_that_was_closed_stands_in_the_log():
    console = own_console()
    with Logger("log.txt"):
        console.close()  # as it is at the exit of a program whose stdout was a pipe
        print("the last save")
    assert text() == "the last save\n"


@pytest.mark.parametrize("encoding, shown", [("gbk", "? 准确率\n"), ("ascii", "? ???\n"), ("utf-8", "✓ 准确率\n")])
def test_a_console_shows_what_it_can_and_the_log_is_utf_8(encoding, shown):
    console = io.BytesIO()
    sys.stdout = io.TextIOWrapper(console, encoding=encoding, newline="\n")
    with Logger("log.txt"):
        print("✓ 准确率")
        sys.stdout.flush()
        assert console.getvalue().decode(encoding) == shown
        sys.stdout.reconfigure(errors="backslashreplace")  # what a person does against it goes on to the console
        print("✓")
        sys.stdout.flush()
    assert console.getvalue().decode(encoding) == shown + ("✓\n" if encoding == "utf-8" else "\\u2713\n")
    assert text() == "✓ 准确率\n✓\n"


def in_eight_threads(work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_eight_threads_write_whole_lines():
    own_console()
    lines = {f"thread {number} line {i} " + "x" * 40 for number in range(8) for i in range(200)}

    def work(number):
        for i in range(200):
            print("thread", number, "line", i, "x" * 40)  # nine writes

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Logger("log.txt"):
            in_eight_threads(work)
    finally:
        sys.setswitchinterval(interval)
    written = text().splitlines()
    assert len(written) == 1600
    assert set(written) == lines


# --- progress bars ----------------------------------------------------------------------------------------------------


def test_a_line_drawn_over_with_carriage_returns_stays_out_but_what_follows_it_is_kept():
    own_console()
    with Logger("log.txt"):
        print("\r 10%", end="")
        print("\r 20%", end="")
        print()
        print("50%", end="\r")
        print("60%", end="\r")
        print("done")
    assert text() == "done\n"


def test_windows_line_ends_are_no_progress_bar():
    own_console()
    logger = Logger("log.txt")
    logger.write("one\r\ntwo\r\n")
    logger.write("three\r")
    logger.write("\n")
    assert text() == "one\ntwo\nthree\n"


def test_a_bar_of_many_updates_does_not_pile_up_in_memory():
    own_console()
    logger = Logger("log.txt")
    for i in range(1000):
        logger.write(f"\r{i}")
    assert sum(map(len, logger._unfinished.values())) < 10


BARS = """
import sys, time
from tqdm import tqdm
from template import Callback
from template.output.logger import Logger
stream = getattr(sys, "{stream}")
with Logger("log.txt"):
    print("before")
    for i in tqdm(range(30), file=sys.{stream}, leave={leave}, mininterval=0):
        if i == 10:
            tqdm.write("in the midst", file=sys.stdout)
        if i == 20:
            print("beside the bar")
    print("after")
    for i in tqdm(range(3), file=sys.{stream}, leave={leave}, mininterval=0):
        for j in tqdm(range(3), file=sys.{stream}, leave=False, mininterval=0):
            pass
    print("the end")
"""


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_tqdm_never_enters_the_file_and_takes_no_line_with_it(tmp_path, stream, leave):
    done = run_python("-c", BARS.format(stream=stream, leave=leave), cwd=tmp_path, env=HERE)
    assert "100%" in done.stdout + done.stderr  # there was a bar
    assert [line for line in text().splitlines() if line] == [
        "before", "in the midst", "beside the bar", "after", "the end"]


# --- taking stdout and giving it back ---------------------------------------------------------------------------------


def test_the_way_of_2021_works():
    console = own_console()
    sys.stdout = Logger("log.txt")
    print("hello")
    sys.stdout.flush()
    sys.stdout.restore()
    assert sys.stdout is console
    assert text() == console.getvalue() == "hello\n"


def test_restore_twice_is_safe_and_install_opens_it_again():
    console = own_console()
    logger = Logger("log.txt").install()
    print("one")
    logger.restore()
    logger.restore()
    print("console only")
    logger.install()
    print("two")
    logger.restore()
    assert sys.stdout is console
    assert text() == "one\ntwo\n"


def test_an_error_stands_in_the_file_and_stdout_is_back():
    console = own_console()
    with pytest.raises(ZeroDivisionError):
        with Logger("log.txt"):
            print("working")
            1 / 0  # noqa: B018
    assert sys.stdout is console
    assert text().startswith("working\nTraceback (most recent call last):\n")
    assert text().endswith("ZeroDivisionError: division by zero\n")
    assert "Traceback" not in console.getvalue()  # Python shows it on stderr


def test_nested_loggers_each_have_their_lines():
    console = own_console()
    with Logger("outer.txt"):
        print("a")
        with Logger("inner.txt"):
            print("b")
        print("c")
    assert sys.stdout is console
    assert text("outer.txt") == console.getvalue() == "a\nb\nc\n"
    assert text("inner.txt") == "b\n"


def said_in(folder):
    """The lines of its epochs and those of the test."""
    return [" ".join(line.split()[:3]) for line in Path(folder, "log.txt").read_text().splitlines()
            if line.startswith(("epoch", "mine"))]


def of_epochs(*numbers):
    return [f"epoch {number} {part}" for number in numbers for part in ("train", "eval")]


def test_each_log_holds_the_lines_of_its_own_trainer_one_after_another_and_in_turns():
    trainers = []
    for fold in range(3):
        trainers.append(tiny_trainer(ckpt_dir=f"fold{fold}"))
        trainers[fold].train_loop(), trainers[fold].eval()
        print("mine", fold)  # nobody else has trained since
    for trainer in trainers:
        trainer.train_loop(), trainer.eval()
    for fold in range(3):
        assert said_in(f"fold{fold}") == [*of_epochs(1), f"mine {fold}", *of_epochs(2)]
    assert [trainer.stdout_logger.log is not None for trainer in trainers] == [False, False, True], "open files"
    trainers[0].print_best_metrics()
    assert "Best metrics" in Path("fold0/log.txt").read_text() and "Best metrics" not in Path("fold2/log.txt").read_text()
    print("mine too")
    assert said_in("fold2")[-1] == "mine too"


def test_a_trainer_at_work_within_another_one_takes_the_lines_for_as_long_as_it_works():
    class Teach(Callback):
        def on_train_end(self, model, result):
            teacher = tiny_trainer(ckpt_dir="teacher")
            teacher.train_loop(), teacher.eval()
            print("mine of both is", "the student's")

    trainer = tiny_trainer(ckpt_dir="student", callbacks=[Teach()])
    trainer.train_loop(), trainer.eval()
    assert said_in("teacher") == of_epochs(1)
    assert said_in("student") == ["mine of both", *of_epochs(1)]


def test_trainers_in_two_threads_lose_no_line():
    barrier = threading.Barrier(2)

    class Meet(Callback):
        def on_train_start(self, model):
            barrier.wait()

    trainers = [tiny_trainer(ckpt_dir=f"run{number}", callbacks=[Meet()]) for number in range(2)]
    threads = [threading.Thread(target=trainer.fit, args=(2,)) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = said_in("run0") + said_in("run1")
    assert all(both.count(line) >= 2 for line in of_epochs(1, 2))


def test_loggers_that_end_in_the_wrong_order_still_give_stdout_back():
    console = own_console()
    first = Logger("first.txt").install()
    second = Logger("second.txt").install()
    print("both")
    first.restore()
    print("second only")
    second.restore()
    assert sys.stdout is console
    print("console only")
    assert text("first.txt") == "both\n"
    assert text("second.txt") == "both\nsecond only\n"
    assert console.getvalue() == "both\nsecond only\nconsole only\n"
    with first:
        print("first again")
    assert text("first.txt") == "both\nfirst again\n"
    assert sys.stdout is console


def test_a_covered_logger_that_is_installed_again_does_not_print_in_a_circle():
    """Two trainers of one process: the second's check_init covers the first, then the first trains."""
    console = own_console()
    first = Logger("first.txt").install()
    second = Logger("second.txt").install()
    first.install()
    print("hello")
    assert console.getvalue() == "hello\n"
    first.restore()
    first.install()  # restored while covered, and opened again
    print("again")
    second.restore()
    print("first alone")
    first.restore()
    assert sys.stdout is console
    assert console.getvalue() == "hello\nagain\nfirst alone\n"
    assert text("first.txt") == "hello\nagain\nfirst alone\n"


def test_somebody_elses_wrapper_on_top_does_not_print_in_a_circle():
    console = own_console()
    class Wrapper:  # colorama and wandb put such a thing around stdout
        def __init__(self, stream):
            self.stream = stream

        def write(self, message):
            return self.stream.write(message.upper())

        def flush(self):
            self.stream.flush()

    logger = Logger("log.txt").install()
    sys.stdout = Wrapper(sys.stdout)
    logger.install()
    print("hello")
    assert console.getvalue() == text() == "HELLO\n"


def test_redirected_output_goes_where_it_was_sent_and_stdout_survives():
    console = own_console()
    logger = Logger("log.txt").install()
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        logger.install()  # what every train_loop() does
        print("for the buffer")
    print("for the log")
    logger.restore()
    assert caught.getvalue() == "for the buffer\n"
    assert sys.stdout is console
    assert console.getvalue() == text() == "for the log\n"


def test_a_stdout_that_somebody_put_back_is_taken_again():
    console = own_console()
    logger = Logger("log.txt").install()
    sys.stdout = console
    print("not logged")
    logger.install()
    print("logged")
    logger.restore()
    assert text() == "logged\n"
    assert sys.stdout is console


class Passing:
    """Something that somebody puts around stdout."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, message):
        return self.stream.write(message)

    def flush(self):
        self.stream.flush()


@pytest.fixture
def end_cell(monkeypatch):
    """An IPython that runs cells; the function ends one."""
    waiting = []

    class Events:
        def register(self, event, function):
            assert event == "post_execute"
            if function not in waiting:
                waiting.append(function)

        def unregister(self, event, function):
            waiting.remove(function)

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(events=Events())
    monkeypatch.setitem(sys.modules, "IPython", ipython)

    def end():
        for function in tuple(waiting):
            function()
        assert not waiting

    return end


def test_a_cell_ends_what_was_installed_for_it(end_cell):
    console = own_console()
    logger = Logger("log.txt").install_for_cell()
    logger.install_for_cell()
    print("first cell")
    end_cell()
    assert sys.stdout is console
    print("another's cell")
    logger.install_for_cell()
    print("third cell")
    end_cell()
    assert sys.stdout is console
    assert text() == "first cell\nthird cell\n"


def test_a_run_that_begins_in_a_captured_cell_is_logged_in_the_next_one_too(end_cell):
    console = own_console()
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        logger = Logger("log.txt").install_for_cell()
        print("captured")
    end_cell()
    logger.install_for_cell()
    print("shown")
    end_cell()
    assert (caught.getvalue(), console.getvalue(), text()) == ("captured\n", "shown\n", "captured\nshown\n")


def test_in_any_order_of_cells_captures_and_wrappers_each_line_arrives_once_and_stdout_comes_back(end_cell):
    for seed in range(300):
        run_cells_in_any_order(random.Random(seed), seed, end_cell)


def run_cells_in_any_order(rng, seed, end_cell):
    """Of a notebook with several trainers."""
    console, loggers, said, wraps = own_console(), [], [], False
    for _ in range(4):
        for _ in range(rng.randint(1, 5)):
            step = rng.choice(["new", "train", "train", "print", "capture", "restore", "wrap"])
            logger = rng.choice(loggers) if loggers else None
            if step == "new" and len(loggers) < 3:
                loggers.append(Logger(f"seed {seed} log {len(loggers)}.txt").install_for_cell())
            elif step == "print":
                said.append(f"line {len(said)}")
                print(said[-1])
            elif step == "wrap" and not wraps and rng.random() < 0.3:
                sys.stdout, wraps = Passing(sys.stdout), True
            elif step == "restore" and logger:
                logger.restore()
            elif step == "capture" and logger:
                with contextlib.redirect_stdout(io.StringIO()) as caught:
                    logger.install_for_cell()
                    print("captured")
                assert caught.getvalue() == "captured\n"
            elif step == "train" and logger:
                said.append(f"line {len(said)}")
                logger.install_for_cell()
                print(said[-1])
                assert text(logger.filename).splitlines()[-1] == said[-1], seed
        end_cell()
        assert wraps or sys.stdout is console, seed
    assert console.getvalue().splitlines() == said, seed
    for logger in loggers:
        logged = [line for line in text(logger.filename).splitlines() if line != "captured"]
        assert len(logged) == len(set(logged)), seed


def test_entering_again_inside_does_not_end_the_outer_use():
    console = own_console()
    logger = Logger("log.txt")
    logger.write("before\n")
    with logger:
        with logger:
            print("inner")
        print("outer")
        assert sys.stdout is logger
    assert sys.stdout is console
    assert text() == "before\ninner\nouter\n"


def test_stdout_is_given_back_at_the_interpreters_exit(tmp_path):
    script = """
import atexit, sys
console = sys.stdout
atexit.register(lambda: print("is back:", sys.stdout is console))   # runs after what is registered later
from template import Callback
from template.output.logger import Logger
sys.stdout = Logger("log.txt")
print("hello")
print("unfinished", end="")
"""
    done = run_python("-c", script, cwd=tmp_path, env=HERE)
    assert done.stdout == "hello\nunfinishedis back: True\n"
    assert done.stderr == ""
    assert text() == "hello\nunfinished\n"


@pytest.mark.parametrize("unfinished", ["", "half a line"])
def test_a_deleted_folder_and_a_closed_console_are_no_errors_at_the_interpreters_exit(unfinished, tmp_path):
    script = f"""
import io, os, shutil, sys
from template import Callback
from template.output.logger import Logger
os.mkdir("run")
console = sys.stdout = io.StringIO()       # as a test runner or a notebook captures it, and closes it before the exit
Logger("run/log.txt").install()
print("a line")
print({unfinished!r}, end="")
shutil.rmtree("run")
console.close()
"""
    done = run_python("-c", script, cwd=tmp_path, env={**HERE, "FORK_SERVER": "0"})  # its exit is what is tested
    assert done.stderr == ""
    if unfinished:
        assert text("run/log.txt") == "half a line\n"
    else:
        assert not os.path.exists("run"), "nothing was left to write"


def test_input_and_the_debugger_talk_through_it(tmp_path):
    script = """
from template import Callback
from template.output.logger import Logger
with Logger("log.txt"):
    name = input("name? ")
    print("hello", name)
    breakpoint()
    print("went on")
"""
    with open("answers.txt", "w") as file:
        file.write("Ada\np name + '!'\nc\n")
    code = f"import sys; sys.stdin = open('answers.txt'); exec({script!r})"
    done = run_python("-c", code, cwd=tmp_path, env=HERE)
    assert "name? hello Ada" in done.stdout and "'Ada!'" in done.stdout and "went on" in done.stdout
    assert "hello Ada" in text() and "went on\n" in text()


def test_move_takes_the_lines_along_and_goes_on_in_the_new_file():
    own_console()
    os.makedirs("run")
    with open("run/log.txt", "w") as file:
        file.write("earlier run\n")
    logger = Logger("log.txt").install()
    print("began")
    logger.move("run/log.txt")
    print("went on")
    logger.restore()
    assert text("run/log.txt") == "earlier run\nbegan\nwent on\n"
    assert text("log.txt") == "began\n"  # left for the caller
    logger.move("third.txt")
    assert text("third.txt") == text("run/log.txt")  # also when it is closed
    with logger:
        print("in the third")
    assert text("third.txt").endswith("went on\nin the third\n")


# --- when the file does not take it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 4, 6])
def test_on_a_full_disk_print_goes_on_and_the_lines_arrive_later_in_order_and_once(monkeypatch, room):
    console, disk = own_console(), FullDisk(monkeypatch)
    lines = [f"line {number}\n" for number in range(9)]
    with Logger("log.txt"):
        for number, line in enumerate(lines):
            disk.room = room if number == 3 else None if number == 6 else disk.room
            print(line, end="")
            if number == 5:
                whole = "".join(lines[:3])
                assert text() == whole + "".join(lines[3:])[:room]  # a short write cuts anywhere
        assert text() == "".join(lines)
    assert disk.refused == 3
    told = "!!! log.txt cannot be written: No space left on device. What belongs there waits in memory.\n"
    assert console.getvalue() == "".join(lines[:3]) + lines[3] + told + "".join(lines[4:])
    assert text() == "".join(lines)


def test_what_a_disk_that_stays_full_did_not_take_is_told_at_the_end(monkeypatch):
    console, disk = own_console(), FullDisk(monkeypatch)
    with Logger("log.txt"):
        print("taken")
        disk.room = 0
        print("not taken")
        print("half a line", end="")
    assert sys.stdout is console and text() == "taken\n"
    assert console.getvalue().endswith("!!! log.txt lacks its last 22 bytes.\n")


def test_eight_threads_on_a_disk_that_is_full_now_and_then_lose_no_line(monkeypatch):
    own_console()
    disk = FullDisk(monkeypatch)

    def work(number):
        for i in range(50):
            disk.room = [None, 0, 3, 50][(i + number) % 4]
            print(f"thread {number} line {i}")

    with Logger("log.txt"):
        in_eight_threads(work)
        disk.room = None
    assert sorted(text().splitlines()) == sorted(f"thread {number} line {i}" for number in range(8) for i in range(50))


def test_a_folder_that_was_deleted_is_made_again_and_the_log_goes_on():
    console = own_console()
    os.mkdir("run")
    with Logger("run/log.txt"):
        print("before")
        shutil.rmtree("run")
        print("after")
        print("and on")
    assert text("run/log.txt") == "after\nand on\n"
    assert console.getvalue().count("!!! run/log.txt was deleted. It is begun anew.") == 1


def test_a_folder_that_was_deleted_while_the_log_was_closed_is_made_again():
    own_console()
    os.mkdir("run")
    logger = Logger("run/log.txt")
    with logger:
        print("before")
    shutil.rmtree("run")
    with logger:
        print("after")
    assert text("run/log.txt") == "after\n"


def test_move_takes_along_what_waits_for_a_full_disk_and_does_not_call_it_lost(monkeypatch):
    console, disk = own_console(), FullDisk(monkeypatch)
    logger = Logger("log.txt").install()
    print("one")
    disk.room = 2
    print("two")
    logger.move("other.txt")
    assert text("other.txt") == ""
    print("three")
    disk.room = None
    print("four")
    logger.restore()
    assert text("other.txt") == "one\ntwo\nthree\nfour\n"
    assert "lacks" not in console.getvalue()
