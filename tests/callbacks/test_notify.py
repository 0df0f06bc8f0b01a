"""A message at the end of a run, by a command or by mail to a server of the test's own; what fails ends nothing."""

import json
import os
import re
import signal
import socketserver
import sys
import threading
from pathlib import Path

import pytest
from tiny import Tiny, tiny_data, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Callback, Notify
from template.output.run_folder import REPRODUCE_IN
from template.tools.kfold import kfold

WRITE = """
import json, os, sys
told = {name: os.environ[f"NOTIFY_{name}"] for name in ("TITLE", "TEXT", "STATE", "RUN")}
with open("told.jsonl", "a") as file:
    file.write(json.dumps({"arguments": sys.argv[1:], "stdin": sys.stdin.read(), **told}) + "\\n")
"""


def writing(**options):
    """A command that writes what it is told into a file."""
    return Notify(command=[sys.executable, "-c", WRITE, "{state}", "{run}: {title}", "{}"], **options)


def told():
    path = Path("told.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class At(Callback):
    """Does something behind the update of that number."""

    def __init__(self, update, act):
        self.update, self.act = update, act

    def on_after_step(self, model):
        if model.global_step == self.update:
            self.act()


def fail():
    raise ZeroDivisionError("in update 8\nof the second epoch")


# --- what is told -------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_told_once_with_its_best_value_and_the_end_of_its_log():
    trainer = tiny_trainer(ckpt_dir="run", key_metric="acc", callbacks=[writing(lines=3)])
    trainer.fit(2)
    trainer.test()
    trainer.close()
    (message,) = told()
    best = f"best acc {trainer.best_metric['acc']:.5g} (epoch {trainer.best_epoch['acc']})"
    assert message["arguments"] == ["finished", f"run: run finished, {best}", "{}"]
    assert message["STATE"] == "finished" and message["RUN"] == "run" and message["stdin"] == message["TEXT"]
    head, last = message["TEXT"].split("\n\n")
    assert "2 of 2 epochs, 12 updates" in head and best in head and str(Path("run").resolve()) in head
    log = Path("run/log.txt").read_text().splitlines()
    assert last.splitlines() == [line for line in log if line.startswith("epoch")][1:]


def test_a_crash_is_told_with_its_error_and_the_traceback_of_the_log():
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[At(8, fail), writing()])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(3)
    (message,) = told()
    assert message["TITLE"] == "run crashed (ZeroDivisionError: in update 8)"
    assert "1 of 3 epochs" in message["TEXT"] and "Traceback" in message["TEXT"] and "of the second epoch" in message["TEXT"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_told_as_a_stop(number, code):
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[At(8, lambda: os.kill(os.getpid(), number)), writing()])
    with pytest.raises(SystemExit) as left:
        trainer.fit(3)
    assert left.value.code == code
    assert [message["TITLE"] for message in told()] == [f"run stopped ({signal.Signals(number).name})"]
    assert Path("run/last.pth").exists()


def test_a_stop_to_go_on_later_is_a_stop_and_one_by_early_stopping_is_an_end():
    for number, stop in enumerate(("now", True)):
        trainer = tiny_trainer(ckpt_dir=f"run{number}")
        trainer.callbacks = [At(8, lambda trainer=trainer, stop=stop: setattr(trainer, "should_stop", stop)), writing()]
        trainer.fit(3)
    assert [message["STATE"] for message in told()] == ["stopped", "finished"]


def test_only_what_was_asked_for_is_told_and_a_training_that_goes_on_tells_again():
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[writing(when="crashed")])
    trainer.fit(1)
    assert told() == []
    trainer.callbacks = [writing(when=["finished"])]
    trainer.fit(2)
    trainer.fit(3)
    assert [message["TEXT"].splitlines()[1][:11] for message in told()] == ["2 of 2 epoc", "3 of 3 epoc"]


def test_who_only_evaluates_tells_nothing():
    tiny_trainer(ckpt_dir="run").fit(1)
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[writing()])
    trainer.load_state("auto")
    trainer.test()
    trainer.close()
    assert told() == []


def test_other_ranks_and_reproductions_tell_nothing(monkeypatch):
    notify = writing()
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[notify])
    monkeypatch.setattr(trainer.world, "is_main", False)
    trainer.lifetime.end.forget()
    trainer.lifetime.end.know("finished")
    notify.on_exit(trainer)
    monkeypatch.setattr(trainer.world, "is_main", True)
    monkeypatch.setenv(REPRODUCE_IN, os.getcwd())
    notify.on_exit(trainer)
    assert not notify.send("all is done", "by a line at the end of the script")
    assert told() == []


def test_the_folds_of_a_cross_validation_are_told_if_asked_for_alone():
    def make(notify):
        return lambda *sets: Tiny(nn.Linear(6, 3), **dict(zip(("train_loader", "eval_loader"), map(DataLoader, sets))),
                                  callbacks=[notify])

    dataset = TensorDataset(*tiny_data(20))
    kfold(make(writing()), dataset, k=2, epochs=1, ckpt_dir="silent", predict=False)
    assert told() == []
    kfold(make(writing(of_each=True)), dataset, k=2, epochs=1, ckpt_dir="told", predict=False)
    assert [message["RUN"] for message in told()] == ["fold1", "fold2"]


# --- commands -----------------------------------------------------------------------------------------------------------


def test_a_line_for_the_shell_finds_the_message_in_its_environment_and_on_its_stdin():
    notify = Notify(command='cat > text; printf "%s" "$NOTIFY_TITLE" > title')
    assert notify.send('it\'s "done" $HOME', "first\nsecond\0")
    assert Path("title").read_text() == 'it\'s "done" $HOME' and Path("text").read_text() == "first\nsecond"


@pytest.mark.parametrize("command, said", [
    ("echo no route >&2; exit 7", "exit code 7: no route"), (["no-such-program"], "no-such-program"),
    ([sys.executable, "-c", "import time; time.sleep(30)"], "longer than 0.3 seconds")])
def test_a_command_that_fails_is_told_of_and_ends_nothing(command, said, capsys):
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[Notify(command=command, timeout_seconds=0.3)])
    trainer.fit(1)
    printed = capsys.readouterr().out
    assert "Notify could not send" in printed and said in printed and "1 epoch done" in printed
    assert printed.rstrip("\n") == Path("run/log.txt").read_text().rstrip("\n")


# --- mail ---------------------------------------------------------------------------------------------------------------


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP as a mail takes."""

    def handle(self):
        self.say("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line.upper().split()[0]
            if word == "EHLO":
                self.say("250-here\r\n250 AUTH PLAIN")
            elif word == "AUTH":
                self.server.logins.append(line)
                self.say("235 ok" if self.server.lets_in else "535 no")
            elif word == "DATA":
                self.say("354 go on")
                lines = []
                while (line := self.rfile.readline()) != b".\r\n":
                    lines.append(line.decode())
                self.server.mails.append("".join(lines))
                self.say("250 ok")
            elif word == "QUIT":
                return self.say("221 bye")
            else:
                self.server.said.append(line)
                self.say("250 ok")

    def say(self, text):
        self.wfile.write(f"{text}\r\n".encode())


@pytest.fixture
def server():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        server.mails, server.logins, server.said, server.lets_in = [], [], [], True
        server.place = f"127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield server
        server.shutdown()


def test_a_mail_has_title_text_sender_and_receivers(server):
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[At(8, fail), Notify(
        smtp=server.place, sender="gpu@example.org", to=["a@example.org", "b@example.org"], encryption="none")])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(2)
    from email import message_from_string, policy

    (mail,) = (message_from_string(text, policy=policy.default) for text in server.mails)
    assert mail["Subject"] == "run crashed (ZeroDivisionError: in update 8)"
    assert (mail["From"], mail["To"]) == ("gpu@example.org", "a@example.org, b@example.org")
    assert "Traceback" in mail.get_content() and server.logins == []
    assert [line for line in server.said if line.upper().startswith("RCPT")] == [
        "rcpt TO:<a@example.org>", "rcpt TO:<b@example.org>"]


def test_the_password_comes_from_the_environment_and_stands_in_no_file_of_the_run(server, monkeypatch, capsys):
    monkeypatch.setenv("OF_THE_MAIL", "s3cret-word")
    notify = Notify(smtp=server.place, sender="gpu@example.org", user="gpu", password_from="OF_THE_MAIL", encryption="none")
    trainer = tiny_trainer(ckpt_dir="run", callbacks=[notify])
    trainer.fit(1)
    server.lets_in = False
    assert not notify.send("again", "text")
    assert len(server.mails) == 1 and len(server.logins) >= 2
    printed = capsys.readouterr().out
    assert "refused user and password (535)" in printed and "s3cret-word" not in printed + repr(vars(notify))
    for path in (path for path in Path().rglob("*") if path.is_file()):
        assert b"s3cret-word" not in path.read_bytes(), path


def test_a_password_that_is_not_there_and_a_server_that_is_not_are_told_of(monkeypatch, capsys):
    options = {"sender": "a@example.org", "user": "a", "encryption": "none"}
    monkeypatch.delenv("NO_SUCH", raising=False)
    with socketserver.TCPServer(("127.0.0.1", 0), Mailbox) as silent:  # it accepts, and says nothing
        place = f"127.0.0.1:{silent.server_address[1]}"
        assert not Notify(smtp=place, password_from="NO_SUCH", timeout_seconds=0.2, **options).send("t", "x")
    assert not Notify(smtp=place, password_from="NO_SUCH", **options).send("t", "x")
    printed = capsys.readouterr().out
    assert re.search("timed out", printed) and "refused" in printed.lower()


def test_a_password_of_the_keyring_is_asked_for_by_service_and_user(server, monkeypatch, capsys):
    import types

    options = {"smtp": server.place, "sender": "a@example.org", "user": "me", "encryption": "none"}
    notify = Notify(password_from="keyring:mail", **options)
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert not notify.send("t", "x") and "pip install keyring" in capsys.readouterr().out
    keyring = types.SimpleNamespace(get_password=lambda service, user: {("mail", "me"): "word"}.get((service, user)))
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    assert notify.send("t", "x")
    assert not Notify(password_from="keyring:other", **options).send("t", "x")
    assert "no password in keyring:other" in capsys.readouterr().out


# --- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, error", [
    ({}, "one way to send"), ({"command": "x", "smtp": "y", "sender": "z"}, "one way to send"),
    ({"command": []}, "a program"),
    ({"smtp": "y"}, "needs sender"), ({"smtp": "y", "sender": "z", "user": "u"}, "belong together"),
    ({"smtp": "y", "sender": "z", "encryption": "tls"}, "starttls"), ({"command": "x", "when": ["done"]}, "finished")])
def test_mistakes_are_told_when_it_is_made(options, error):
    with pytest.raises(ValueError, match=error):
        Notify(**options)
