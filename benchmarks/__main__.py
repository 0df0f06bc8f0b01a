"""All benchmarks in turn, or some of them.

    python -m benchmarks                            # in about sixteen minutes on two CPU cores
    python -m benchmarks --only loop growth --rounds 3

What each measures, and its own options, tells ``python -m benchmarks.loop --help`` and so on.
"""

import argparse
import sys
from importlib import import_module

BENCHMARKS = ("loop", "growth", "everyday", "evaluation", "images", "long_run", "checkpoint", "imports", "memory", "scaling",
              "gpu")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="which, in this order")
    parser.add_argument("--rounds", type=int, help="of each; else as many as each has by default")
    parser.add_argument("--folder", default=".", help="where runs write: the file system that is measured")
    options = parser.parse_args()
    arguments = ["--folder", options.folder] + (["--rounds", str(options.rounds)] if options.rounds else [])
    for number, name in enumerate(options.only):
        print(f"{chr(10) * bool(number)}=== {name} ===", flush=True)
        sys.argv[1:] = arguments
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
