"""What only a GPU can show: no hidden waits, its generator, its scaler, files that cross between devices."""

import pytest
import torch
from tiny import Tiny, tiny_data, tiny_model, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from template import Callback, TensorLoader
from template.data import in_memory
from template.data.copied_ahead import copied_ahead
from template.data.loaders import make_batches

CUDA = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trainer(ckpt_dir="run", device="cuda", **attributes):
    built = Tiny(ckpt_dir=ckpt_dir, device=device, **attributes)
    built.check_init(use_tb=False)
    return built


class NoWaits(Callback):
    """Any wait for the device between the first batch and the last update is an error."""

    def __init__(self, updates):
        self.updates = updates

    def on_train_start(self, model):
        torch.cuda.set_sync_debug_mode("error")

    def on_after_step(self, model):
        if model.global_step % self.updates == 0:
            torch.cuda.set_sync_debug_mode("default")

    def on_exit(self, model):
        torch.cuda.set_sync_debug_mode("default")


def jitter(x, y):
    return x + 0.1 * torch.randn_like(x), y


@pytest.mark.parametrize("attributes", [
    {}, {"amp": "bf16"}, {"accumulate_steps": 3}, {"clip_grad": 1.0}, {"lr_scheduler_type": "cosine", "total_epochs": 2},
], ids=str)
@pytest.mark.parametrize("loader", ["tensors", "tensors with transform", "tensors of the host", "slices", "samples"])
def test_no_update_waits_for_the_device(attributes, loader):
    x, y = tiny_data(80)
    if loader in ("slices", "samples"):
        train_loader = DataLoader(TensorDataset(x, y), 10, shuffle=True, pin_memory=True)
        attributes = {**attributes, "slice_tensors": loader == "slices"}
    else:
        train_loader = TensorLoader(x, y, batch_size=10, shuffle=True, device="cpu" if "host" in loader else "cuda",
                                    transform=jitter if "transform" in loader else None)
    updates = -(-8 // attributes.get("accumulate_steps", 1))
    attributes = {**attributes, "train_loader": train_loader, "callbacks": [NoWaits(updates)]}
    built = trainer(log_per_step=1000, preflight=False, **attributes)
    result = built.train_loop()
    built.train_loop()
    assert result["tol_loss"] > 0


# --- the way to the device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pin", [True, False], ids=["pinned", "pageable"])
def test_batches_that_are_copied_ahead_arrive_whole_while_their_memory_is_used_again(pin):
    """Each batch of 32 MB is summed behind work that lasts longer than the copies of those that follow."""
    generator = torch.Generator().manual_seed(1)
    host = [torch.randint(2**31, (8_000_000,), dtype=torch.int32, generator=generator) for _ in range(6)]
    host = [part.pin_memory() for part in host] if pin else host
    square = torch.randn(4096, 4096, device=CUDA)
    sums = []
    for number, batch in copied_ahead(((number, host[number % 6]) for number in range(60)), CUDA):
        for _ in range(3):
            square @ square
        sums.append((number, batch.sum(dtype=torch.int64)))
    expected = [part.sum(dtype=torch.int64).item() for part in host]
    assert [(number, total.item()) for number, total in sums] == [(number, expected[number % 6]) for number in range(60)]


def test_a_slow_reader_gets_the_batches_of_plain_copying():
    """Batches that are kept, dropped and changed in place while the next one is on its way."""
    host = [(torch.full((1_000_000,), float(number)).pin_memory(), {"n": torch.tensor([number])}) for number in range(20)]
    kept = []
    for (large, small), _ in zip(copied_ahead(iter(host), CUDA), range(20)):
        torch.cuda._sleep(2_000_000)  # cycles, about a millisecond
        kept.append((large.clone(), small["n"]))
        large.fill_(-1.0)
    for number, (large, n) in enumerate(kept):
        assert large.is_cuda and n.item() == number and bool((large == number).all())


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_tensor_loader_moves_to_the_device_what_fits_and_pins_the_batches_of_what_does_not(shuffle, monkeypatch):
    x, y = tiny_data(83)
    epochs = []
    for share, place, device in ((0.5, "cuda", None), (0.0, "cpu", None), (0.5, "cpu", "cpu")):
        monkeypatch.setattr(in_memory, "_SHARE_OF_FREE_MEMORY", share)
        loader = TensorLoader(x, y, batch_size=10, shuffle=shuffle, device=device)
        batches = make_batches(loader, 3, CUDA)
        assert {tensor.device.type for tensor in loader.tensors} == {place}
        assert all(part.is_pinned() == (place == "cpu") for batch in batches.read(1) for part in batch)
        epochs.append(list(batches.epoch(1)))
        assert all(part.is_cuda for batch in epochs[-1] for part in batch)
    on_the_cpu = list(make_batches(TensorLoader(x, y, batch_size=10, shuffle=shuffle), 3, torch.device("cpu")).epoch(1))
    for epoch in epochs:
        assert len(epoch) == len(on_the_cpu) == 9
        for batch, expected in zip(epoch, on_the_cpu):
            assert all(torch.equal(part.cpu(), wanted) for part, wanted in zip(batch, expected))


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("slice_tensors", [False, True])
def test_a_loader_with_pin_memory_gives_pinned_batches_sliced_or_not(pin_memory, slice_tensors):
    loader = DataLoader(TensorDataset(*tiny_data()), 10, shuffle=True, pin_memory=pin_memory)
    batches = make_batches(loader, 3, CUDA, slice_tensors)
    read = list(batches.read(1))
    assert len(read) == 6 and all(part.is_pinned() == pin_memory for batch in read for part in batch)
    assert all(type(batch) is list for batch in read)
    for batch, there in zip(read, batches.epoch(1)):
        assert all(torch.equal(part, moved.cpu()) for part, moved in zip(batch, there))


def test_a_loader_over_tensors_on_the_device_is_sliced_there():
    x, y = tiny_data()
    there = make_batches(DataLoader(TensorDataset(x.cuda(), y.cuda()), 10, shuffle=True), 3, CUDA)
    here = make_batches(DataLoader(TensorDataset(x, y), 10, shuffle=True), 3, CUDA)
    for batch, other in zip(there.read(1), here.read(1)):
        assert all(part.is_cuda and torch.equal(part.cpu(), wanted) for part, wanted in zip(batch, other))


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_the_same_weights_as_a_plain_loop_on_the_device():
    x, y = tiny_data()
    batches = list(zip(x.split(10), y.split(10)))
    built = trainer(model=tiny_model(dropout=0.0), train_loader=batches)
    for _ in range(3):
        built.train_loop()
    model = tiny_model(dropout=0.0).cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        for a, b in batches:
            nn.functional.cross_entropy(model(a.cuda()), b.cuda()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(weights(built), torch.cat([p.detach().double().flatten() for p in model.parameters()]))


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
@pytest.mark.parametrize("save_per_steps", [None, 4])
def test_a_continued_run_ends_with_the_same_bits_dropout_on_the_device_included(amp, save_per_steps):
    class Interrupt(Callback):
        def on_after_step(self, model):
            if model.global_step == 11:
                raise KeyboardInterrupt

    def loader():
        x, y = tiny_data()
        return TensorLoader(x, y, batch_size=10, shuffle=True, transform=jitter, device="cuda")

    whole = trainer("whole", amp=amp, train_loader=loader(), save_per_steps=save_per_steps)
    whole.fit(4)
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", amp=amp, train_loader=loader(), save_per_steps=save_per_steps, callbacks=[Interrupt()]).fit(4)
    resumed = trainer("cut", amp=amp, train_loader=loader(), save_per_steps=save_per_steps)
    resumed.load_state("auto")
    assert resumed.global_step == (8 if save_per_steps else 6)
    resumed.fit(4)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.best_metric == whole.best_metric


def test_a_checkpoint_from_the_gpu_continues_on_the_cpu_and_back():
    gpu = trainer("run")
    gpu.fit(1)
    cpu = trainer("run", device="cpu")
    cpu.load_state("auto")
    assert torch.equal(weights(cpu), weights(gpu).cpu())
    cpu.fit(2)
    back = trainer("run")
    back.load_state("auto")
    back.fit(3)
    assert back.epochs_done == 3 and next(back.model_list[0].parameters()).is_cuda


def test_the_data_leaves_the_generator_of_the_device_alone():
    x, y = tiny_data()
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    for _ in TensorLoader(x, y, batch_size=10, shuffle=True, transform=jitter, device="cuda").epoch(1, 2):
        pass
    for _ in trainer().train_batches.epoch(1):
        pass
    torch.cuda.manual_seed(5)
    list(TensorLoader(x, y, batch_size=10, transform=jitter, device="cuda").epoch(1, 2))
    assert torch.equal(torch.rand(3, device="cuda"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [True, "reduce-overhead", "step"])
def test_a_compiled_model_trains_and_is_scored_like_an_eager_one(mode):
    """"reduce-overhead" replays CUDA graphs, which use the memory of their outputs again."""
    x, y = tiny_data(80)
    results = []
    for compile in (False, mode):
        built = trainer(f"compile_{compile}", model=tiny_model(dropout=0.0), compile=compile,
                        train_loader=TensorLoader(x, y, batch_size=10, shuffle=True, device="cuda"))
        built.fit(2)
        results.append((weights(built), built.eval_result["tol_loss"]))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=1e-4)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-3)
