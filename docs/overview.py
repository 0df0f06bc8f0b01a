"""Draw ``overview.png``, the picture of the README, from what a finished run left: its log beside its curves.

    python train.py
    python docs/overview.py check_point/<run>
"""

import argparse
import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 9.0, 3.75  # inches; at 200 dots each the README shows it at half its size
COLUMNS = 84  # of the terminal that is drawn
TEXT, DIM, GOOD = "#d5dbe3", "#8b98a8", "#8fd694"
TRAIN, EVAL, BEST = "tab:blue", "tab:orange", "crimson"


def shown_lines(log):
    """The command, the heading, the first epochs and the end of a log: about twenty lines."""
    lines = log.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    end = lines[lines.index(epochs[-1]) + 1:]
    shown = ["$ python train.py", lines[0], *epochs[:6], "…", *epochs[-2:], *end]
    return [line if len(line) <= COLUMNS else f"{line[:COLUMNS - 1]}…" for line in shown]


def draw_terminal(axes, lines):
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.add_patch(FancyBboxPatch((0.012, 0.02), 0.976, 0.96, boxstyle="round,pad=0,rounding_size=0.02", facecolor="#1d232b",
                                  edgecolor="none"))
    for number, color in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        axes.plot(0.038 + 0.022 * number, 0.943, "o", markersize=4.5, color=color)
    step = 0.88 / len(lines)
    for number, line in enumerate(lines):
        is_good = "| best" in line or line.startswith("EarlyStopping")
        color = DIM if line.startswith(("$", "=", "…")) else GOOD if is_good else TEXT
        axes.text(0.03, 0.90 - step * number, line, family="DejaVu Sans Mono", size=7.3, color=color, va="top")


def draw_curve(axes, rows, quantity, title):
    for part, color in (("train", TRAIN), ("eval", EVAL)):
        points = [(int(row["epoch"]), float(row[f"{part}/{quantity}"])) for row in rows if row.get(f"{part}/{quantity}")]
        if points:
            axes.plot(*zip(*points), color=color, marker="o", markersize=2.2, linewidth=1.3, label=part)
    if quantity == "acc":
        best = max(points, key=lambda point: (point[1], point[0]))
        axes.plot(*best, "*", color=BEST, markersize=9, label=f"best {best[1]:.4f}")
    axes.set_title(title, size=8, loc="left")
    axes.set_xlabel("epoch", size=6.5, labelpad=1)
    axes.tick_params(labelsize=6.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run of train.py")
    run = parser.parse_args().run
    with open(run / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    FigureCanvasAgg(figure)
    draw_terminal(figure.add_axes((0, 0, 0.61, 1)), shown_lines((run / "log.txt").read_text(encoding="utf-8")))
    draw_curve(figure.add_axes((0.655, 0.61, 0.33, 0.315)), rows, "tol_loss", "loss")
    draw_curve(figure.add_axes((0.655, 0.115, 0.33, 0.315)), rows, "acc", "accuracy")
    figure.savefig(Path(__file__).with_name("overview.png"), dpi=200)


if __name__ == "__main__":
    main()
