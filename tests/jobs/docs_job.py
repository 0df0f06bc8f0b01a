"""Run Python blocks of Markdown pages, each as a program of its own: ``python docs_job.py blocks.json``.

The file holds ``[[page, line, code, folder], …]``. What all of them import is imported once; each block then runs in a fork
of this process, in its folder, where ``utils`` and ``train`` are found. Lines in a traceback are those of the page. The exit
code is 1 when a block failed; its output is printed. ``history.png`` is drawn where a block speaks of pictures, see warm.py.
"""

import gc
import json
import os
import sys
import tempfile
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  (these take long, and most blocks use them)
import matplotlib.figure  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import torchmetrics  # noqa: F401
import tqdm.auto  # noqa: F401
from fork_server import leave
from warm import warm_up


def run(page, line, code, folder, output):
    """In the child: never returns."""
    os.chdir(folder)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.path.insert(0, folder)
    sys.argv[:] = ["block.py"]
    os.environ["CURVES"] = str(int("png" in code))
    leave(lambda: exec(compile("\n" * line + code, page, "exec"), sys.modules["__main__"].__dict__))


def main():
    failed = 0
    warm_up()
    gc.freeze()  # or each child looks through all that was imported when it ends, which takes a second
    for page, line, code, folder in json.loads(Path(sys.argv[1]).read_text()):
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if not child:
                run(page, line, code, folder, output)
            if os.waitpid(child, 0)[1]:
                failed += 1
                output.seek(0)
                print(f"--- {page}, line {line}\n{code}---\n{output.read().decode(errors='replace')}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
