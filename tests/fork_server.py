"""Python processes that begin with torch imported, for the scripts that tests start.

    process = start_python(["-m", "fault_job", "0"], cwd=folder, env=environment, stdout=file, stderr=file)
    process.send_signal(signal.SIGKILL); process.wait()       # as of subprocess.Popen

A fresh Python takes three seconds of computing until torch and the packages that a training uses are imported, and a tiny
training less than one. So one process (this file, run as a script) imports them once, and each script is run in a fork of
it, with arguments, environment, folder, files and session of its own. It is a process as any other: it can be killed, it
has an exit code, and a traceback ends on its stderr. Nothing of the template is imported before the fork. The ranks that
torchrun starts are such forks too, except with ``FAULTS=long``.

What a fork cannot give is run by a new Python, as it would be on a command line: options before the script (``-u``, ``-W``,
``-i``), a terminal, and variables that are read when Python or torch starts. ``FORK_SERVER=0`` in the environment of a
script, or in that of all tests, asks for a new Python.
"""

import atexit
import gc
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
from contextlib import suppress

READ_AT_START = ("PYTHONHASHSEED", "PYTHONWARNINGS", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONHOME", "LANG", "LC_ALL",
                 "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MPLBACKEND", "TMPDIR",
                 "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_")


# --- in the test --------------------------------------------------------------------------------------------------------


def start_python(arguments, *, cwd, env, stdout, stderr, stdin=subprocess.DEVNULL, start_new_session=False):
    """``python <arguments>``: a ``Popen`` or what can be used like one. The streams are files or pipes as for ``Popen``."""
    arguments = [str(argument) for argument in arguments]
    options = {"cwd": cwd, "env": env, "stdout": stdout, "stderr": stderr, "start_new_session": start_new_session}
    if not _can_be_forked(arguments, env) or any(hasattr(file, "isatty") and file.isatty() for file in (stdout, stderr)):
        return subprocess.Popen([sys.executable, *arguments], stdin=stdin, **options)
    return Forked(_server(), arguments, **options)


def run_python(arguments, *, cwd, env, timeout):
    """``subprocess.run`` of ``python <arguments>``, which captures what it says as text."""
    if not _can_be_forked([str(argument) for argument in arguments], env):
        return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True,
                              timeout=timeout)
    with start_python(arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            stdout, stderr = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess([sys.executable, *arguments], process.returncode, stdout, stderr)


def run_commands(commands, *, cwd, env, timeout):
    """``subprocess.run`` of commands for bash, which finds ``python`` and ``torchrun`` of this environment, as forks."""
    here, installed = os.path.dirname(os.path.abspath(__file__)), os.path.dirname(sys.executable)
    are_forked = _can_be_forked(["script"], env)
    first = [os.path.join(here, "forked")] if are_forked else []
    env = {**env, "PATH": os.pathsep.join([*first, installed, env["PATH"]])}
    files = ()
    if are_forked:
        files = [_server().fileno()]
        env |= {"FORK_SERVER_AT": str(files[0]), "FORK_SERVER_PYTHON": sys.executable}
    return subprocess.run(["bash", "-ec", commands], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout,
                          pass_fds=files)


def _ask():
    """In the ``python`` that bash found: be the script, but for signals."""
    server = socket.socket(fileno=int(os.environ["FORK_SERVER_AT"]))
    return Forked(server, sys.argv[2:], os.getcwd(), os.environ, None, None, False).wait()


def _can_be_forked(arguments, env):
    if not hasattr(os, "fork") or "0" in (os.environ.get("FORK_SERVER"), env.get("FORK_SERVER")):
        return False
    is_script = arguments[0] in ("-c", "-m") or not arguments[0].startswith("-")
    return is_script and all(env.get(name) == os.environ.get(name) for name in READ_AT_START)


_servers = {}  # by the process that started it: a fork of the test process must not speak with that one's


def _server():
    if os.getpid() not in _servers:
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                                   env=environment, start_new_session=True, stdin=subprocess.DEVNULL)
        theirs.close()
        atexit.register(_stop, os.getpid())
        _servers[os.getpid()] = ours, process
    return _servers[os.getpid()][0]


def _stop(tests):
    if tests == os.getpid():
        ours, process = _servers.pop(tests)
        ours.close()
        process.wait()


class Forked:
    """A script in a fork of the server, to be used like a ``Popen`` with text streams."""

    def __init__(self, server, arguments, cwd, env, stdout, stderr, start_new_session):
        self.args, self.returncode, self.stdin = [sys.executable, *arguments], None, None
        files, mine = [], []  # the child's ends of the three streams, and those of pipes that are read here
        null = os.open(os.devnull, os.O_RDWR)
        for number, file in enumerate((stdout, stderr), 1):
            read, write = os.pipe() if file == subprocess.PIPE else (None, None)
            mine.append(read if read is None else open(read, encoding="utf-8"))
            files.append(write if read is not None else self._number(file, null, number, files))
        self.stdout, self.stderr = mine
        self._connection, theirs = socket.socketpair()
        asked = {"arguments": arguments, "cwd": os.fspath(cwd), "env": dict(env), "session": start_new_session}
        socket.send_fds(server, [b"!"], [theirs.fileno(), null, *files])
        for file in {null, *(write for write, read in zip(files, mine) if read is not None)}:
            os.close(file)
        theirs.close()
        self._connection.sendall(json.dumps(asked).encode() + b"\n")
        self.pid = int(self._line())

    @staticmethod
    def _number(file, null, default, files):
        if file is None:
            return default
        if file == subprocess.STDOUT:
            return files[0]
        return null if file == subprocess.DEVNULL else file if isinstance(file, int) else file.fileno()

    def _line(self):
        line = b""
        while not line.endswith(b"\n"):  # byte by byte: what is behind it must go on to be seen by a selector
            byte = self._connection.recv(1)
            if not byte:
                raise RuntimeError("The server of tests/fork_server.py has ended. FORK_SERVER=0 does without it.")
            line += byte
        return line

    def poll(self):
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._line())
            self._connection.close()
        return self.returncode

    def communicate(self, timeout=None):
        """All that it says until its streams are closed, also by processes that it started."""
        said = {name: [] for name in ("stdout", "stderr")}
        with selectors.DefaultSelector() as selector:
            for name in said:
                if getattr(self, name) is not None:
                    selector.register(getattr(self, name).buffer.raw, selectors.EVENT_READ, name)
            while selector.get_map():
                ready = selector.select(timeout)
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                for key, _ in ready:
                    part = os.read(key.fd, 1 << 16)
                    said[key.data].append(part)
                    if not part:
                        selector.unregister(key.fileobj)
        self._close()
        self.wait(timeout)
        return tuple(io.TextIOWrapper(io.BytesIO(b"".join(parts)), encoding="utf-8").read() for parts in said.values())

    def send_signal(self, number):
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()
        self.wait()

    def _close(self):
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


# --- in the server ------------------------------------------------------------------------------------------------------


def import_ahead():
    """What a training imports sooner or later, and nothing that starts a thread or draws a number."""
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401  (of train.py)
    import torch._dynamo
    import torch.distributed
    import torch.utils.data
    import torch.utils.tensorboard  # noqa: F401
    import tqdm  # noqa: F401
    from warm import warm_up

    warm_up()


def serve(control):
    """Fork for each one that asks. Returns, in a fork, what it was asked for, and None when the tests are over."""
    running = {}
    wake, sleeper = socket.socketpair()
    for end in (wake, sleeper):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(sleeper, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if sleeper in ready:
                sleeper.recv(1 << 12)
                _tell_of_ended(running)
            if control in ready:
                word, files, *_ = socket.recv_fds(control, 1, 4)
                if not word:
                    return None
                connection = socket.socket(fileno=files[0])
                asked = json.loads(connection.makefile("r", encoding="utf-8").readline())
                pid = os.fork()
                if pid == 0:
                    for other in (control, connection, wake, sleeper, *running.values()):
                        other.close()
                    return asked, files[1:]
                connection.sendall(f"{pid}\n".encode())
                running[pid] = connection
                for file in files[1:]:
                    os.close(file)


def _tell_of_ended(running):
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as connection, suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(asked, files, site):
    """In the fork: as if Python had just been started with these arguments. Returns what runs the script."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if asked["session"]:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in set(files) - {0, 1, 2}:
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    streams = [open(number, "wb", 0 if at_once else -1, closefd=False) for number in (1, 2)]
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(streams[0], write_through=at_once)
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(streams[1], errors="backslashreplace", line_buffering=True,
                                                   write_through=at_once)
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    import numpy

    numpy.random.seed()  # Python's own generator is seeded after every fork
    how, *rest = asked["arguments"]
    sys.orig_argv = [sys.executable, how, *rest]
    own_path = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    if how == "-m":
        sys.path[:] = [os.getcwd(), *own_path, *site]
        sys.argv = ["-m", *rest[1:]]
        return lambda: runpy._run_module_as_main(rest[0])
    if how == "-c":
        sys.path[:] = ["", *own_path, *site]
        sys.argv = ["-c", *rest[1:]]
        code = rest[0], "<string>"
    else:
        sys.path[:] = [os.path.dirname(os.path.realpath(how)), *own_path, *site]
        sys.argv = [how, *rest]
        main.__file__ = os.path.abspath(how)
        code = io.open_code(main.__file__).read(), how
    main.__dict__.setdefault("__annotations__", {})
    return lambda: exec(compile(*code, "exec"), main.__dict__)


def fork_ranks_too(asked, files):
    """In the fork that becomes torchrun: its ranks are forks of a server of its own, which ends with it. Returns, also in
    the ranks, what each is to become."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        for file in {ours.detach(), *files}:
            os.close(file)
        return serve(theirs)
    theirs.close()
    _servers[os.getpid()] = ours, None
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def popen(self, args, env):
        python, *arguments = args
        if arguments[0] == "-u":
            arguments, env = arguments[1:], {**env, "PYTHONUNBUFFERED": "1"}
        return start_python(arguments, cwd=os.getcwd(), env=env, stdout=self._stdout, stderr=self._stderr,
                            start_new_session=True)

    subprocess_handler.SubprocessHandler._popen = popen
    return asked, files


def run(script):
    """An error is printed without the lines of this file, and ends the process as it would end Python."""
    try:
        script()
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        error.__traceback__ = sys.last_traceback = trace
        sys.last_type, sys.last_value = type(error), error
    else:
        return 0
    sys.excepthook(sys.last_type, sys.last_value, sys.last_traceback)
    return 1


def leave(script):
    """Run it and end the process as Python would, but for taking all modules apart: that writes into every page which the
    fork shares with the server, and takes longer than a tiny training. What the script holds is freed."""
    try:
        code = run(script)
    except SystemExit as error:
        code = error.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    threading._shutdown()
    with suppress(BaseException):  # it was printed, and has no say in the exit code
        atexit._run_exitfuncs()
    sys.modules["__main__"].__dict__.clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not getattr(stream, "closed", False):
            try:
                stream.flush()
            except OSError:
                code = 120  # as Python does
    os._exit((code or 0) & 0xff)


if __name__ == "__main__" and sys.argv[1] == "ask":
    sys.exit(_ask())
elif __name__ == "__main__":
    _site = sys.path[1:]
    sys.modules["fork_server"] = sys.modules["__main__"]  # so that a script finds `leave`, by which its own forks may end
    import_ahead()
    gc.collect()
    gc.freeze()
    _asked = serve(socket.socket(fileno=int(sys.argv[1])))
    _is_torchrun = _asked is not None and _asked[0]["arguments"][:2] == ["-m", "torch.distributed.run"]
    if _is_torchrun and os.environ.get("FAULTS") != "long":
        _asked = fork_ranks_too(*_asked)
    if _asked is not None:
        leave(become(*_asked, _site))
