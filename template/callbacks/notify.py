"""Tell a person that a training has finished, was stopped or has crashed: by a command of their own, or by mail.

    trainer.callbacks = [Notify(command=["notify-send", "{title}", "{text}"])]
    trainer.callbacks = [Notify(command=["curl", "-fsS", "-d", "@-", "https://ntfy.sh/my-own-topic"])]   # the text on stdin
    trainer.callbacks = [Notify(smtp="smtp.example.org", sender="gpu@example.org", to="me@example.org",
                                user="gpu@example.org", password_from="MAIL_PASSWORD")]

A run that is killed (SIGKILL, out of memory, power) can tell nobody. Nothing that it sends to is part of the template.
"""

from __future__ import annotations

import os
import smtplib
import socket
import subprocess
import time
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hooks import Callback
from ..output.run_folder import REPRODUCE_IN

if TYPE_CHECKING:
    from ..template import TemplateModel

WHEN = ("finished", "stopped", "crashed")
_READ = 1 << 16  # bytes of the log's end
_LONGEST = 32_000  # characters of a text: systems limit arguments and environments
_KEYRING = "keyring:"
_ENCRYPTIONS = ("starttls", "ssl", "none")


class Notify(Callback):
    """Sends one message when the training ends. A message that cannot be sent is told of, and ends nothing.

    Args:
        command: a program with its arguments, or a line for the shell. In arguments ``{title}``, ``{text}``, ``{state}``
            and ``{run}`` are filled in; a shell finds them as ``$NOTIFY_TITLE``, ``$NOTIFY_TEXT`` and so on. The text also
            comes on stdin.
        smtp: the mail server, "smtp.example.org" or "smtp.example.org:587".
        sender: the address that the mail comes from.
        to: the address or addresses that it goes to; None: ``sender``.
        user: name to log in with; None: no log-in.
        password_from: where the password is: the name of an environment variable, or "keyring:<service>" for that of
            ``user`` in the system's keyring (``pip install keyring``). The password itself is stored nowhere.
        encryption: "starttls", "ssl", or "none" for a server in your own network.
        when: which ends are told.
        of_each: also tell the end of each run that ``kfold``, ``seeds`` or ``search`` makes.
        lines: so many of the last lines of the log are in the text.
        timeout_seconds: for sending.

    Raises:
        ValueError: there is neither a command nor a server, or both; or a value that does not fit.
    """

    def __init__(self, command: str | Sequence[str] | None = None, *, smtp: str | None = None, sender: str | None = None,
                 to: str | Sequence[str] | None = None, user: str | None = None, password_from: str | None = None,
                 encryption: str = "starttls", when: Sequence[str] = WHEN, of_each: bool = False,
                 lines: int = 20, timeout_seconds: float = 20.0) -> None:
        if (command is None) == (smtp is None):
            raise ValueError("Notify needs one way to send: Notify(command=[\"notify-send\", \"{title}\"]), or "
                             "Notify(smtp=\"smtp.example.org\", sender=\"me@example.org\").")
        if not command and smtp is None:
            raise ValueError(f"command must name a program, got {command!r}.")
        if smtp is not None and not sender:
            raise ValueError("Notify(smtp=…) needs sender, the address that the mail comes from.")
        if encryption not in _ENCRYPTIONS:
            raise ValueError(f"encryption must be one of {list(_ENCRYPTIONS)}, got {encryption!r}.")
        if (user is None) != (password_from is None):
            raise ValueError("user and password_from belong together: the name to log in with, and where its password is. "
                             "Give both, or neither for a server without log-in.")
        when = (when,) if isinstance(when, str) else tuple(when)
        if unknown := [name for name in when if name not in WHEN]:
            raise ValueError(f"when must name ends of a run, some of {list(WHEN)}; got {unknown}.")
        self.command = command
        self.smtp, self.sender, self.user, self.password_from = smtp, sender, user, password_from
        self.to = [to] if isinstance(to, str) else list(to or [sender or ""])
        self.encryption, self.when, self.of_each = encryption, when, of_each
        self.lines, self.timeout_seconds = lines, timeout_seconds
        self._began: float | None = None   # on time.monotonic's clock
        self._told: Any = None             # what the last message was about

    def on_run_start(self, model: TemplateModel) -> None:
        self._began = time.monotonic()

    def on_exit(self, model: TemplateModel) -> None:
        model.lifetime.end.when_known(lambda: self._tell(model))

    def _tell(self, model):
        end = model.lifetime.end
        about = model.ckpt_dir, end.how, end.why, model.global_step
        if not model.is_main or not end.has_trained or end.how not in self.when or about == self._told:
            return
        is_one_of_many = model.path_of("trial.json").exists()
        if is_one_of_many and not self.of_each:
            return
        self._told = about  # an evaluation behind the training closes the run once more
        seconds = None if self._began is None else time.monotonic() - self._began
        title, text = _words(model, seconds, self.lines)
        self.send(title, text, end.how, Path(model.ckpt_dir).name)

    def send(self, title: str, text: str, state: str = "", run: str = "") -> bool:
        """Send a message of your own, for example to try it, or at the end of a script. Returns whether it was sent; what
        went wrong is printed. A run that is reproduced tells nobody a second time."""
        if REPRODUCE_IN in os.environ:
            return False
        title, text = " ".join(title.split())[:200], text.replace("\0", "")[:_LONGEST]
        send = self._run_command if self.command else self._send_mail
        try:
            send({"title": title, "text": text, "state": state, "run": run})
        except Exception as error:  # of networks, servers and programs
            print(f"Notify could not send \"{title}\": {_reason(error)}. Nothing else needs it.")
            return False
        return True

    # --- ways to send ---------------------------------------------------------------------------------------------------

    def _run_command(self, message):
        is_line = isinstance(self.command, str)
        environment = {**os.environ, **{f"NOTIFY_{name.upper()}": value for name, value in message.items()}}
        command: Any = self.command if is_line else [_filled(part, message) for part in self.command or ()]
        done = subprocess.run(command, shell=is_line, input=message["text"].encode(), env=environment, capture_output=True,
                              timeout=self.timeout_seconds)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"the command ended with exit code {done.returncode}{f': {said[-1]}' if said else ''}")

    def _send_mail(self, message):
        host, _, port = str(self.smtp).partition(":")
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = message["title"], self.sender, ", ".join(self.to)
        mail.set_content(message["text"])
        kind = smtplib.SMTP_SSL if self.encryption == "ssl" else smtplib.SMTP
        number = int(port) if port else {"ssl": 465, "starttls": 587, "none": 25}[self.encryption]
        with kind(host, number, timeout=self.timeout_seconds) as server:
            if self.encryption == "starttls":
                import ssl
                server.starttls(context=ssl.create_default_context())
            if self.user is not None:
                server.login(self.user, _password(self.password_from, self.user))
            server.send_message(mail)


def _filled(part, message):
    """With the values in their places; other braces, as in JSON, stay as they are."""
    for name, value in message.items():
        part = part.replace(f"{{{name}}}", value)
    return part


def _password(where, user):
    if where.startswith(_KEYRING):
        try:
            import keyring  # type: ignore  # optional
        except ImportError:
            raise RuntimeError("password_from names the keyring, and the package is missing: pip install keyring") from None
        found = keyring.get_password(where.removeprefix(_KEYRING), user)
    else:
        found = os.environ.get(where)
    if not found:
        raise RuntimeError(f"there is no password in {where}")
    return found


def _reason(error):
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took longer than {error.timeout:g} seconds"
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"the mail server refused user and password ({error.smtp_code})"
    return f"{type(error).__name__}: {error}" if not isinstance(error, RuntimeError) else str(error)


def _words(model, seconds, count):
    """Title and text of the message."""
    end, run = model.lifetime.end, Path(model.ckpt_dir).name
    best = "".join(f"best {name} {value:.5g} (epoch {model.best_epoch.get(name, '?')})" for name, value
                   in model.best_metric.items() if name == model.key_metric)
    why = f" ({end.why})" if end.why and end.how != "finished" else ""
    title = f"{run} {end.how}{why}" + (f", {best}" if best and end.how == "finished" else "")
    of = f" of {model.total_epochs}" if model.total_epochs else ""
    facts = [title.replace("\n", " "), f"{model.epochs_done}{of} epochs, {model.global_step} updates"
             + (f", {seconds / 60:.1f} minutes" if seconds is not None else "") + f", on {socket.gethostname()}",
             *([best] if best else []), str(model.path_of(".").resolve())]
    last = _last_lines(model, count)
    return title, "\n".join([*facts, *(["", *last] if last else [])]) + "\n"


def _last_lines(model, count):
    if count < 1:
        return []
    try:
        with open(model.stdout_logger.filename, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _READ, 0))
            return file.read().decode(errors="replace").rstrip().splitlines()[-count:]
    except OSError:
        return []
