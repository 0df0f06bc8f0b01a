"""Randomness as a function of where training is: seeds, generators, capture and restore.

    >>> seed_everything(42)
    42
    >>> derive(42, 3, 7) == derive(42, 3, 7) != derive(42, 3, 8)     # epoch 3, batch 7
    True

The order of data comes from (seed, epoch), the augmentation of a batch from (seed, epoch, batch). Neither touches
the global generators, so evaluating more often or restarting changes no number of the training.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

ORDER = -1  # in the place of a batch number: the key of an epoch's order
_MASK = (1 << 64) - 1


def derive(seed: int, *key: int) -> int:
    """Mix integers into one well-spread 63-bit seed; neighbouring keys give unrelated ones. About 1 us.

    Source: the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014).
    """
    state = seed & _MASK
    for part in key:
        state = (state + 0x9E3779B97F4A7C15 * (2 * (part & _MASK) + 1)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seeds_from(first, seed, *key):
    """``derive(seed, *key, number)`` for the numbers from ``first`` on, without end. Many at a time: between two updates,
    where the caches hold other things, a single one takes 4 us, and here it takes 1."""
    for start in itertools.count(first, 64):
        yield from [derive(seed, *key, number) for number in range(start, start + 64)]


def draw_seed() -> int:
    """A fresh seed from the operating system, in ``[0, 2**31)``: short enough to be typed again. A run that reproduces
    another one (``tools/reproduce.py``) finds the seed that was drawn there in its environment."""
    if reproduced := os.environ.get("REPRODUCE_SEED"):
        return int(reproduced)
    return int.from_bytes(os.urandom(4), "little") >> 1


def seed_everything(seed: int | None = None, deterministic: bool = False, rank: int = 0) -> int:
    """Seed every generator and return the seed, drawing one when it is None. Call it before you build the models: the next
    trainer without a seed of its own takes this one, and weights, data order and augmentation all come from it.

    Args:
        seed: integer in ``[0, 2**63)``, or None.
        rank: of several processes, which draw different numbers from one seed.
        deterministic: also make torch choose deterministic kernels, and raise where it has none.
    """
    seed = draw_seed() if seed is None else seed
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be an integer in [0, 2**63) or None, got {seed!r}.")
    own = derive(seed, rank) if rank else seed
    torch.manual_seed(own)
    np.random.seed(own & 0xFFFFFFFF)
    random.seed(own)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its first handle is made
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    _asked_for[:] = [seed]
    return seed


_asked_for: list[int] = []  # the seed of the last ``seed_everything``, until a trainer took it


def is_seed_asked_for() -> bool:
    """Whether ``seed_everything`` was called, and no trainer has taken its seed yet."""
    return bool(_asked_for)


def seed_of_run(seed: int | None) -> tuple[int, bool]:
    """The seed that a trainer gets, and whether what was drawn until now came from it.

    Args:
        seed: what was set; None: that of ``seed_everything``, which counts for one trainer, else a new one.
    """
    if seed is None:
        seed = _asked_for[0] if _asked_for else draw_seed()
    _asked_for.clear()
    return seed, torch.initial_seed() == seed


def seed_data(seed):
    """Start the global generators of torch's CPU, of numpy and of ``random`` for the data's code. Returns what
    ``give_back`` needs.

        before = seed_data(derive(seed, epoch, batch))
        try:
            batch = …
        finally:
            give_back(before)

    Not ``torch.manual_seed``: that one also reseeds the GPU's generator, and with it every dropout mask.
    numpy's and ``random``'s stay as the data's code left them: putting them back costs 70 and 12 us a batch,
    seeding them 5, and seeding by position already makes them the same in every run. Two functions cost a batch between two
    updates 17 us, a ``with`` statement over a class of our own 25.
    """
    before = _of_torch.get_state()
    _of_torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    return before


_of_torch = torch.default_generator
give_back = _of_torch.set_state


class sample_rng:
    """``seed_data`` and ``give_back`` as a ``with`` statement.

        with sample_rng(derive(seed, epoch, batch)):
            batch = …

    Args:
        devices: CUDA devices whose generators the code under it uses.
    """

    def __init__(self, seed, devices=()):
        self.seed = seed
        self.devices = devices

    def __enter__(self):
        self.before = seed_data(self.seed)
        self.before_cuda = [(device, torch.cuda.get_rng_state(device)) for device in self.devices] if self.devices else ()
        for device, _ in self.before_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(self.seed)

    def __exit__(self, *error):
        give_back(self.before)
        for device, state in self.before_cuda:
            torch.cuda.set_rng_state(state, device)


def own_generators(root):
    """Generators that an object holds, in itself or in what it holds: a dataset's ``self.rng``, those of its transforms.

    Lists of more than 100 entries are taken for data, and nothing is looked at beyond 1,000 objects.

    Returns:
        list of ``torch.Generator``, numpy's ``Generator`` and ``RandomState``, and ``random.Random``, in a fixed order.
    """
    return [part for part in parts_of(root) if issubclass(type(part), GENERATORS)
            and not issubclass(type(part), random.SystemRandom)]  # which cannot be seeded


def parts_of(root):
    """An object and what it holds, and what that holds, each once and the nearest first; see ``own_generators``.

    No code of theirs runs for it: what opens its file when it is first asked for something stays closed.
    """
    seen, waiting = {}, deque([root])
    while waiting and len(seen) < 1000:
        part = waiting.popleft()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        kind = type(part)  # isinstance() would also ask the object for its __class__
        if issubclass(kind, dict):
            waiting += dict.values(part) if len(part) <= 100 else ()
        elif issubclass(kind, (list, tuple)):
            waiting += part if len(part) <= 100 else ()
        elif kind not in _VALUES and not issubclass(kind, _WITHOUT_PARTS):
            waiting += _attributes(part).values()
    return list(seen.values())


def _attributes(part):
    try:
        held = object.__getattribute__(part, "__dict__")
    except AttributeError:
        return {}
    return held if type(held) is dict else {}


GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_VALUES = {int, float, bool, str, bytes, type(None)}
_WITHOUT_PARTS = (type, ModuleType, torch.Tensor, *GENERATORS)


def reseed(generators, seed):
    """Start each of ``own_generators`` anew; 2 to 30 us each."""
    for index, generator in enumerate(generators):
        own_seed = derive(seed, index)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own_seed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(own_seed).state
        else:
            generator.seed(own_seed & 0xFFFFFFFF)


def state_of(generator):
    """For ``put_back``: where one of ``own_generators`` is."""
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        return generator.get_state()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.getstate()


def put_back(generator, state):
    """Let a generator go on from ``state``."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


@contextmanager
def reseeded(generators, seed):
    """Generators that somebody gave to a loader or a sampler decide the order: seed them meanwhile."""
    generators = list({id(generator): generator for generator in generators}.values())
    states = [state_of(generator) for generator in generators]
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        else:
            reseed([generator], seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states):
            put_back(generator, state)


def capture_rng() -> dict[str, Any]:
    """The state of every global generator as plain data: loads under ``weights_only=True``."""
    numpy_state: Any = np.random.get_state()
    python_state = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        # uint32 keys become int64: numpy's own arrays are refused by weights_only
        "numpy": {
            "keys": torch.from_numpy(numpy_state[1].astype(np.int64)),
            "rest": [int(numpy_state[2]), int(numpy_state[3]), float(numpy_state[4])],
        },
        "python": {
            "version": python_state[0],
            "internal": torch.tensor(python_state[1], dtype=torch.int64),
            "gauss_next": python_state[2],
        },
    }


def restore_rng(state):
    """Put back what ``capture_rng`` took. CUDA states beyond the devices of this machine are left out."""
    torch.set_rng_state(state["torch"].cpu())
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state.cpu(), index)
    position, has_gauss, cached = state["numpy"]["rest"]
    np.random.set_state(("MT19937", state["numpy"]["keys"].numpy().astype(np.uint32), position, has_gauss, cached))
    python_state = state["python"]
    random.setstate((python_state["version"], tuple(python_state["internal"].tolist()), python_state["gauss_next"]))


@contextmanager
def rng_kept():
    """Around whatever looks at the training from outside: all global generators go on as if it had not happened."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    before = torch.get_rng_state()
    with host_rng_kept():
        try:
            yield
        finally:
            torch.set_rng_state(before)
            for index, state in enumerate(cuda):
                torch.cuda.set_rng_state(state, index)


@contextmanager
def host_rng_kept():
    """The same of numpy's and ``random``'s alone. About 100 us: for what happens once in an epoch."""
    states = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
