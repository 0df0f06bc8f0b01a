"""How fast training is: samples per second, time per update, share of it that was waited for data, memory.

    start = speed.mark()
    ...                                          # updates, of which the stepper counts each
    speed.since(start)                           # {"samples_per_second": …, "ms_per_update": …, "data_wait": …}

Its clock is the host's. At a log point, where the losses were just fetched, a GPU has done what was asked of it.
"""

import sys
import time

import torch


class Speed:
    """Counters since the start of training; anybody may ask for the rates since a mark of their own."""

    def __init__(self) -> None:
        self.samples: float = 0
        self.updates = 0
        self.waited = 0.0  # seconds until the batches of an update were there

    def mark(self):
        return time.perf_counter(), self.samples, self.updates, self.waited

    def since(self, mark):
        """Floats by name, "data_wait" as a share of the time; ``{}`` when there was no update."""
        seconds, samples, updates, waited = (now - before for now, before in zip(self.mark(), mark))
        if not updates:
            return {}
        return {"samples_per_second": samples / seconds, "ms_per_update": 1000 * seconds / updates,
                "data_wait": waited / seconds}


def peak_gigabytes(device):
    """The most memory that tensors took on a GPU, or this process on the host; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
