"""Seeds, generators, capture and restore."""

import io
import itertools
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny, weights

from template.data.seeding import (
    capture_rng,
    derive,
    draw_seed,
    own_generators,
    reseed,
    restore_rng,
    sample_rng,
    seed_everything,
    seeds_from,
)


def draws(count=5):
    """Numbers from every global generator, normal ones too: those keep half of a pair for the next call."""
    return [
        *torch.rand(count).tolist(), *torch.randn(3).tolist(),
        *np.random.rand(count).tolist(), np.random.randn(),
        *[random.random() for _ in range(count)], random.gauss(0, 1),
    ]


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# --- derive ---------------------------------------------------------------------------------------------------------


def test_derive_gives_the_same_seed_in_every_version_and_process():
    # computed with an independent SplitMix64 finalizer: the order of data in old runs hangs on these
    mask = (1 << 64) - 1

    def finalizer(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % (mask + 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % (mask + 1)
        return z ^ (z >> 31)

    def expected(seed, *key):
        state = seed
        for part in key:
            state = finalizer((state + 0x9E3779B97F4A7C15 * (2 * (part % (mask + 1)) + 1)) % (mask + 1))
        return state // 2

    for seed, key in itertools.product((0, 1, 42, 2**62), ((), (0,), (3, 7), (3, -1), (2**63 - 1, 5, 9))):
        assert derive(seed, *key) == expected(seed, *key)


def test_derive_has_no_collision_over_a_grid_of_seeds_epochs_and_batches():
    keys = [(seed, epoch, batch) for seed in range(10) for epoch in range(40) for batch in range(-1, 250)]
    assert len({derive(*key) for key in keys}) == len(keys)


def test_derive_spreads_every_bit_between_neighbouring_keys():
    values = np.array([derive(1, epoch, batch) for epoch in range(60) for batch in range(60)], dtype=np.uint64)
    bits = (values[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.05  # 6 standard deviations of 3600 coin tosses
    flips = (bits[1:] != bits[:-1]).mean(0)
    assert np.abs(flips - 0.5).max() < 0.05


def test_derive_keeps_the_order_of_its_key():
    assert len({derive(0, 1, 2), derive(0, 2, 1), derive(1, 0, 2), derive(0, 1), derive(0, 1, 2, 0)}) == 5


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**63 - 1), st.lists(st.integers(-1, 2**63 - 1), max_size=4))
def test_derive_stays_in_the_range_that_every_generator_takes(seed, key):
    derived = derive(seed, *key)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)


# --- seed_everything ------------------------------------------------------------------------------------------------


def test_seed_everything_makes_all_generators_repeat_themselves():
    assert seed_everything(7) == 7
    first = draws()
    seed_everything(8)
    other = draws()
    seed_everything(7)
    assert draws() == first
    assert all(a != b for a, b in zip(first, other))


def test_seed_everything_gives_the_streams_of_the_libraries_own_seeding():
    seed_everything(123)
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(123)))
    assert np.array_equal(np.random.rand(4), np.random.RandomState(123).rand(4))
    assert random.random() == random.Random(123).random()


def test_seed_everything_takes_the_smallest_and_the_largest_seed():
    for seed in (0, 2**63 - 1):
        seed_everything(seed)
        first = draws()
        seed_everything(seed)
        assert draws() == first


def test_without_a_seed_one_is_drawn_that_can_be_typed_again():
    seeds = {seed_everything() for _ in range(5)} | {draw_seed() for _ in range(5)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**31 for seed in seeds)
    seed = seed_everything(None)
    first = draws()
    seed_everything(seed)
    assert draws() == first


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, [1]])
def test_a_seed_that_is_no_integer_in_range_is_refused_with_its_value(seed):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="seed must be an integer") as error:
        seed_everything(seed)
    assert repr(seed) in str(error.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_deterministic_refuses_kernels_that_vary_and_is_off_by_default(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seed_everything(1)
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    seed_everything(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_many_seeds_are_those_that_are_derived_one_by_one():
    found = list(itertools.islice(seeds_from(60, 42, 3), 150))
    assert found == [derive(42, 3, number) for number in range(60, 210)]


# --- sample_rng -----------------------------------------------------------------------------------------------------


def test_sample_rng_gives_one_stream_per_seed_and_puts_torch_back():
    torch.manual_seed(5)
    expected_after = torch.rand(3, generator=torch.Generator().manual_seed(5))
    with sample_rng(11):
        first = draws()
    assert torch.equal(torch.rand(3), expected_after)
    with sample_rng(11):
        assert draws() == first
    with sample_rng(12):
        assert all(a != b for a, b in zip(draws(), first))


def test_sample_rng_puts_torch_back_after_an_exception():
    torch.manual_seed(5)
    torch.randn(3)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), sample_rng(11):
        torch.rand(3)
        raise KeyError("a broken sample")
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_rng_nests():
    with sample_rng(1):
        alone = torch.rand(4).tolist()
    with sample_rng(1):
        around = torch.rand(2).tolist()
        with sample_rng(2):
            torch.rand(9)
        around += torch.rand(2).tolist()
    assert around == alone


# --- capture and restore --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**63 - 1), st.integers(0, 700), st.booleans())
def test_every_generator_goes_on_where_it_was_captured(seed, consumed, half_of_a_pair):
    seed_everything(seed)
    draws(consumed)
    if half_of_a_pair:
        np.random.randn()
        random.gauss(0, 1)
    state = through_a_file(capture_rng())
    expected = draws()
    seed_everything(0)
    draws(3)
    restore_rng(state)
    assert draws() == expected


def test_capturing_moves_no_generator():
    seed_everything(3)
    expected = draws()
    seed_everything(3)
    capture_rng()
    assert draws() == expected


def test_a_captured_state_can_be_restored_more_than_once():
    state = capture_rng()
    restore_rng(state)
    first = draws()
    restore_rng(state)
    assert draws() == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_states_of_gpus_that_are_not_here_are_left_out():
    state = capture_rng()
    expected = draws()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)]
    restore_rng(state)
    assert draws() == expected


# --- generators of a dataset's own ------------------------------------------------------------------------------------


class Holder:
    def __init__(self, **parts):
        vars(self).update(parts)


def generators():
    return [torch.Generator(), np.random.default_rng(), np.random.RandomState(), random.Random(),
            np.random.Generator(np.random.MT19937()), np.random.Generator(np.random.Philox()),
            np.random.Generator(np.random.SFC64())]


def own_draws(generator):
    if isinstance(generator, torch.Generator):
        return torch.randn(4, generator=generator).tolist()
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(0, 1), generator.random()]
    return [*generator.normal(size=3).tolist(), generator.uniform()]


@pytest.mark.parametrize("build", [
    lambda g: g, lambda g: Holder(rng=g), lambda g: [0, "a", g], lambda g: {"a": {"b": (g,)}},
    lambda g: Holder(dataset=Holder(transform=Holder(transforms=[Holder(p=0.5), Holder(rng=g)]))),
    lambda g: torch.utils.data.Subset(Holder(rng=g), [0]),
    lambda g: torch.utils.data.ConcatDataset([torch.utils.data.TensorDataset(torch.zeros(2)), Sized(g)]),
    lambda g: Holder(method=Holder(rng=g).__init__, rng=g),
], ids=["itself", "attribute", "list", "dicts", "nested", "Subset", "ConcatDataset", "method"])
def test_a_generator_is_found_wherever_an_object_holds_it(build):
    for generator in generators():
        assert own_generators(build(generator)) == [generator]


def test_the_generator_of_the_operating_system_which_nothing_seeds_is_left_out():
    assert own_generators(Holder(rng=random.SystemRandom())) == []


class Sized(Holder):
    def __init__(self, generator):
        super().__init__(rng=generator)

    def __len__(self):
        return 2


def test_all_are_found_once_each_in_an_order_that_two_processes_share():
    def build():
        first, second, third = np.random.default_rng(1), random.Random(2), torch.Generator().manual_seed(3)
        return Holder(a=first, b=[second, first], c={"x": Holder(again=second, third=third)})

    found = own_generators(build())
    assert len(found) == 3
    assert [own_draws(generator) for generator in found] == [own_draws(generator) for generator in own_generators(build())]


def test_objects_that_hold_each_other_are_looked_at_once():
    a, b = Holder(rng=random.Random()), Holder()
    a.other, b.other = b, a
    a.itself = [a]
    a.itself.append(a.itself)
    assert own_generators(a) == [a.rng] == own_generators(b)


def test_data_is_not_searched():
    """A list of a million samples costs nothing, and neither does an endless tree."""
    assert own_generators(Holder(samples=[random.Random()] * 101)) == []
    assert own_generators(Holder(samples={n: random.Random() for n in range(101)})) == []
    assert len(own_generators(Holder(parts=[random.Random() for _ in range(100)]))) == 100
    deep = Holder(rng=random.Random())
    for _ in range(2000):
        deep = Holder(inner=deep)
    assert own_generators(deep) == []  # beyond 1,000 objects
    wide = Holder(rng=random.Random(), parts=[[Holder(n=n) for n in range(90)] for _ in range(90)])
    assert len(own_generators(wide)) <= 1


def test_classes_modules_and_tensors_are_not_searched():
    class WithGenerator:
        rng = random.Random()

    tensor = torch.zeros(2)
    tensor.rng = random.Random()
    assert own_generators(Holder(kind=WithGenerator, module=random, tensor=tensor, none=None, text="a")) == []


@pytest.mark.parametrize("index", range(len(generators())))
def test_a_reseeded_generator_gives_the_same_stream_wherever_it_was(index):
    one, other = generators()[index], generators()[index]
    streams = []
    for generator, seed in ((one, 5), (other, 5), (one, 5), (one, 6)):
        own_draws(generator)  # half of a pair of normal numbers may be left of it
        reseed([generator], seed)
        streams.append(own_draws(generator))
    assert streams[0] == streams[1] == streams[2] != streams[3]


def test_each_of_several_generators_gets_a_stream_of_its_own():
    several = [np.random.default_rng(), np.random.default_rng(), random.Random(), random.Random(), torch.Generator(),
               torch.Generator(), np.random.RandomState(), np.random.RandomState()]
    reseed(several, 5)
    first = [own_draws(generator)[0] for generator in several]
    assert len(set(first)) == len(several)
    reseed(several[::-1], 5)
    assert own_draws(several[-1])[0] != first[-1]  # it counts at which place one stands
    reseed([], 5)


def test_reseeding_leaves_the_global_generators_alone():
    seed_everything(3)
    expected = draws()
    seed_everything(3)
    reseed(generators(), 9)
    assert draws() == expected


# --- the seed of a run ------------------------------------------------------------------------------------------------

MESSAGE = "Weights that were drawn before do not come from seed"


def run_of(seed, seeded=None):
    """The weights after an epoch of a job whose model is drawn after ``seed_everything(seeded)``, and the trainer's seed."""
    torch.seed()  # whatever came before
    if seeded is not None:
        seed_everything(seeded)
    model = torch.nn.Sequential(torch.nn.Linear(6, 3))
    trainer = Tiny(model=model, optimizer_list=[torch.optim.SGD(model.parameters(), 0.1)], seed=seed)
    trainer.check_init(use_tb=False)
    trainer.train_loop()
    trainer.close()
    return weights(trainer), trainer.seed


def test_a_run_under_seed_everything_repeats_itself_weights_and_all(capsys):
    (first, seed), (second, _), (other, _) = run_of(None, 5), run_of(5, 5), run_of(None, 6)
    assert seed == 5 and torch.equal(first, second) and not torch.equal(first, other)
    assert MESSAGE not in capsys.readouterr().out


@pytest.mark.parametrize("seed, seeded", [(5, None), (None, None), (5, 6)])
def test_a_run_whose_weights_were_drawn_before_its_seed_says_so_in_its_first_lines(seed, seeded, capsys):
    first, second = run_of(seed, seeded), run_of(seed, seeded)
    assert torch.equal(first[0], second[0]) == (seeded is not None)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said[:3] if MESSAGE in line and f"seed_everything({first[1]})" in line]


def test_seed_everything_counts_for_one_trainer_and_the_next_draws_its_own():
    seed_everything(5)
    seeds = []
    for _ in range(3):
        trainer = Tiny(seed=None)
        trainer.check_init(use_tb=False)
        seeds.append(trainer.seed)
    assert seeds[0] == 5 and len(set(seeds)) == 3
