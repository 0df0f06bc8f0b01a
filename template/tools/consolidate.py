"""One plain checkpoint out of one whose weights the ranks wrote in parts (FSDP2).

    python -m utils.tools.consolidate check_point/<run>/last.pth whole.pth

It needs no GPU and no other process; what it writes loads everywhere, with one process as with many.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..checkpoint import files, sharded


def consolidate(source: str | Path, target: str | Path) -> None:
    """Join the parts that ``source`` names into ``target``.

    Raises:
        FileNotFoundError, CheckpointError: there is no such file, or it or a part of it is damaged.
        ValueError: it is whole already.
    """
    state = files.read(source)
    if "shards" not in state:
        raise ValueError(f"{source} is whole already: its weights are in it. Use it as it is.")
    files.write(sharded.plain_state(state), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint of a run with parallel='fsdp'")
    parser.add_argument("target", help="the file to write")
    options = parser.parse_args()
    try:
        consolidate(options.source, options.target)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{options.target} holds all of {options.source}")


if __name__ == "__main__":
    main()
