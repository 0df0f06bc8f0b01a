"""What the fault scenarios compare: states of checkpoints, tables and curves of runs, bit by bit."""

import copy
import os

import torch

LONG = os.environ.get("FAULTS") == "long"


def times(short, long):
    return range(long if LONG else short)


def differences(one, other, where="state"):
    """The places at which two nested states differ in type, shape or any bit."""
    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{where}: keys {list(one)} and {list(other)}"]
        return [found for key in one for found in differences(one[key], other[key], f"{where}[{key!r}]")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: lengths {len(one)} and {len(other)}"]
        return [found for i, pair in enumerate(zip(one, other)) for found in differences(*pair, f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def comparable(saved, rngs=("torch", "numpy", "python")):
    """All of a checkpoint but the seconds that epochs took and the name of the TensorBoard run."""
    saved = copy.deepcopy(saved)
    del saved["run_name"]
    if "callbacks" in saved:
        for row in saved["callbacks"]["History"]["rows"]:
            row.pop("seconds")
        saved["rng"] = {name: saved["rng"][name] for name in rngs}
    return saved


def history(folder):
    """The lines without their last column, the seconds."""
    return [line.rpartition(",")[0] for line in (folder / "history.csv").read_text().splitlines()]


def curves(folder):
    """What TensorBoard shows of the run in ``folder``: ``{part, tag: [(step, value), …]}``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for part in ("", "train", "eval"):
        events = EventAccumulator(str(folder / part), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("speed/"):
                continue  # it tells of this machine
            found[part, tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found
