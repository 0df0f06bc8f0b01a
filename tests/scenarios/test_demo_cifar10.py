"""The CIFAR-10 demo: reading and downloading a small archive in the true format, augmentation by brute force, whole runs."""

import csv
import hashlib
import io
import re
import socket
import subprocess
import sys
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT, run_python, weights

from demo_cifar10 import data as cifar
from demo_cifar10.model import ResNet9
from demo_cifar10.train import Cifar10, Options, amp_of
from template import TensorLoader

FILES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
RECORDS = 7  # per file


# --- a small CIFAR-10 in the true format ----------------------------------------------------------------------------


def records(count, seed, learnable=False):
    """``count`` records as the bytes of a .bin file: noise, or noise around a grey level and a colour of each class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count, dtype=np.uint8)
    pixels = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    if learnable:
        level = np.stack([labels // 5 * 120, labels % 5 * 50, 200 - labels % 5 * 50], axis=1)[:, :, None, None]
        pixels = (level + pixels // 6).astype(np.uint8)
    return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, pixels))


def small_files(count=RECORDS, learnable=False):
    return {name: records(count, seed, learnable) for seed, name in enumerate(FILES)}


def archive_of(files, extra=()):
    """A .tar.gz with the folder of the original and its two other files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        contents = {"batches.meta.txt": b"airplane\n", "readme.html": b"<html>", **files}
        members = [(f"cifar-10-batches-bin/{name}", content) for name, content in contents.items()]
        for name, content in [*members, *extra]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def decoded_by_numpy(files, names):
    """Independent of the demo: the format as its page describes it, "the first byte is the label, the next 3072 bytes are
    the pixels: 1024 red, 1024 green, 1024 blue, in row-major order"."""
    rows = np.concatenate([np.frombuffer(files[name], np.uint8).reshape(-1, 3073) for name in names])
    pixels = np.empty((len(rows), 3, 32, 32), np.uint8)
    for channel in range(3):
        for y in range(32):
            first = 1 + channel * 1024 + y * 32
            pixels[:, channel, y] = rows[:, first:first + 32]
    return pixels, rows[:, 0].astype(np.int64)


def assert_is(loaded, files):
    for (images, labels), names in zip(loaded, (FILES[:5], FILES[5:])):
        pixels, classes = decoded_by_numpy(files, names)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images.numpy(), pixels)
        assert np.array_equal(labels.numpy(), classes)


@contextmanager
def served(content, ranges=True, cut_after=(), status=200):
    """An address on localhost that gives ``content``; each number of ``cut_after`` ends one answer after so many bytes.

    Yields ``(address, requested)``; the list collects the Range header of every request.
    """
    cuts, requested = list(cut_after), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            requested.append(wanted)
            if status != 200:
                return self.send_error(status)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and ranges else 0
            if start and start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: cuts.pop(0)] if cuts else body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz", requested
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_address():
    """Where nothing listens: what a machine without a network sees, only faster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/cifar-10-binary.tar.gz"


# --- downloading ----------------------------------------------------------------------------------------------------


def test_a_download_is_decoded_to_what_numpy_reads_in_the_same_bytes(tmp_path):
    files = small_files()
    content = archive_of(files)
    with served(content) as (address, requested):
        loaded = cifar.load_cifar10(tmp_path / "data", address, md5(content))
        again = cifar.load_cifar10(tmp_path / "data", address, md5(content))
    assert_is(loaded, files)
    assert_is(again, files)
    assert requested == [None]  # the second time nothing is fetched
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-binary.tar.gz"]
    assert loaded[0][0].shape == (5 * RECORDS, 3, 32, 32) and loaded[1][0].shape == (RECORDS, 3, 32, 32)


def test_a_connection_that_is_cut_half_way_is_taken_up_where_it_ended(tmp_path, capsys):
    content = archive_of(small_files())
    half = len(content) // 2
    target = tmp_path / "archive"
    with served(content, cut_after=[half]) as (address, requested):
        cifar.download(address, target, md5(content))
    assert requested == [None, f"bytes={half}-"]
    assert target.read_bytes() == content
    assert f"ended after {half:,} bytes; going on from there" in capsys.readouterr().out


def test_a_later_start_goes_on_from_the_part_file_of_an_earlier_one(tmp_path):
    content = archive_of(small_files())
    half = len(content) // 2
    target, part = tmp_path / "archive", tmp_path / "archive.part"
    with served(content, cut_after=[half, 0]) as (address, requested):
        with pytest.raises(ConnectionError, match=rf"{half:,} bytes are in .*archive\.part; the next start goes on"):
            cifar.download(address, target, md5(content))
        assert not target.exists() and part.read_bytes() == content[:half]  # what is cut short is never taken for whole
        cifar.download(address, target, md5(content))
    assert requested == [None, f"bytes={half}-", f"bytes={half}-"]
    assert target.read_bytes() == content and not part.exists()


def test_a_server_that_ignores_range_sends_the_file_from_its_beginning(tmp_path):
    content = archive_of(small_files())
    (tmp_path / "archive.part").write_bytes(b"what an earlier start left")
    with served(content, ranges=False) as (address, requested):
        cifar.download(address, tmp_path / "archive", md5(content))
    assert requested == ["bytes=26-"]
    assert (tmp_path / "archive").read_bytes() == content


def test_a_server_without_range_that_always_cuts_ends_in_an_error_and_not_in_a_circle(tmp_path):
    content = archive_of(small_files())
    with served(content, ranges=False, cut_after=[9000] * 99) as (address, requested):
        with pytest.raises(ConnectionError, match=f"after 9,000 of {len(content):,} bytes"):
            cifar.download(address, tmp_path / "archive", md5(content))
    assert len(requested) == 2


def test_a_part_file_that_is_too_long_is_started_over(tmp_path):
    content = archive_of(small_files())
    (tmp_path / "archive.part").write_bytes(content + b"more than there is")
    with served(content) as (address, requested):
        cifar.download(address, tmp_path / "archive", md5(content))
    assert requested == [f"bytes={len(content) + 18}-", None]
    assert (tmp_path / "archive").read_bytes() == content


def test_a_download_with_the_wrong_md5_is_refused_named_and_deleted(tmp_path):
    content = archive_of(small_files())
    wrong = b"something else of any length"
    with served(wrong) as (address, _):
        with pytest.raises(ValueError, match=f"must have the MD5 {md5(content)}; its 28 bytes have {md5(wrong)}"):
            cifar.load_cifar10(tmp_path / "data", address, md5(content))
    assert list((tmp_path / "data").iterdir()) == []


def test_an_answer_that_is_an_error_is_passed_on_with_its_number(tmp_path):
    with served(b"", status=404) as (address, requested):
        with pytest.raises(ConnectionError, match="HTTP Error 404"):
            cifar.download(address, tmp_path / "archive")
    assert requested == [None]
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_error_names_address_target_and_the_way_to_give_a_copy(tmp_path):
    address = closed_address()
    with pytest.raises(ConnectionError) as caught:
        cifar.load_cifar10(tmp_path / "data", address)
    message = str(caught.value)
    for part in (address, str(tmp_path / "data" / "cifar-10-binary.tar.gz"), "--data-dir", "cifar-10-batches-bin",
                 "c32a1d4ab5d03f1284b67883e8d87530"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_progress_without_a_terminal_is_one_plain_line_per_tenth(capsys):
    progress = cifar._PlainProgress(total=1_000_000, start=300_000)
    for _ in range(70):
        progress.update(10_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  0.4 of 1.0 MB (40%)" and lines[-1] == "  1.0 of 1.0 MB (100%)"
    assert len(lines) == 7


# --- an existing copy -----------------------------------------------------------------------------------------------


def test_data_dir_may_be_the_archive_the_extracted_folder_or_the_folder_that_holds_either(tmp_path):
    files = small_files()
    content = archive_of(files)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cifar-10-binary.tar.gz").write_bytes(content)
    (tmp_path / "renamed.tgz").write_bytes(content)
    extracted = write_folder(tmp_path / "b" / "cifar-10-batches-bin", files)
    for data_dir in (tmp_path / "a", tmp_path / "a" / "cifar-10-binary.tar.gz", tmp_path / "renamed.tgz",
                     extracted, tmp_path / "b", str(extracted)):
        assert_is(cifar.load_cifar10(data_dir, closed_address(), md5(content)), files)


def test_an_existing_archive_with_the_wrong_md5_is_refused_and_kept(tmp_path):
    content = archive_of(small_files())
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=f"{len(content) - 100:,} bytes have {md5(content[:-100])}"):
        cifar.load_cifar10(tmp_path, closed_address(), md5(content))
    assert archive.exists()


def test_a_bin_file_whose_size_is_no_multiple_of_3073_is_named(tmp_path):
    files = small_files() | {"data_batch_3.bin": records(RECORDS, 0)[:-1]}
    folder = write_folder(tmp_path / "cifar", files)
    with pytest.raises(ValueError, match=r"data_batch_3\.bin must hold records of 3073 bytes; it has 21,510 bytes"):
        cifar.load_cifar10(folder)
    with pytest.raises(ValueError, match="it has 0 bytes"):
        cifar.decode(b"", "empty.bin")


def test_a_label_of_ten_or_more_is_refused_with_its_record(tmp_path):
    damaged = bytearray(records(RECORDS, 0))
    damaged[2 * 3073] = 10
    with pytest.raises(ValueError, match=r"labels from 0 to 9; record 2 has 10"):
        cifar.decode(bytes(damaged), "x.bin")


def test_a_folder_that_lacks_files_is_refused_with_their_names(tmp_path):
    folder = write_folder(tmp_path / "cifar", small_files())
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"\['data_batch_2\.bin'\] are missing"):
        cifar.load_cifar10(folder, closed_address())


def test_an_archive_that_is_not_there_is_an_error_and_not_a_new_folder_of_that_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no archive at .*typo\.tar\.gz"):
        cifar.load_cifar10(tmp_path / "typo.tar.gz", closed_address())
    assert list(tmp_path.iterdir()) == []


def test_members_of_the_archive_that_lead_elsewhere_are_not_read_and_nothing_is_unpacked(tmp_path):
    files = small_files()
    bad = records(1, 99)
    content = archive_of(files, extra=[("../data_batch_1.bin", bad), ("/tmp/data_batch_1.bin", bad),
                                       ("cifar-10-batches-bin/../data_batch_1.bin", bad), ("data_batch_1.bin", bad)])
    archive = tmp_path / "a" / "archive.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(content)
    assert_is(cifar.load_cifar10(archive, md5=md5(content)), files)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "archive.tar.gz"]


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    buffer = io.BytesIO(archive_of({name: content for name, content in small_files().items() if name != FILES[0]}))
    plain = tmp_path / "plain.tar"
    with tarfile.open(fileobj=buffer) as source, tarfile.open(plain, "w") as target:
        for member in source:
            target.addfile(member, source.extractfile(member))
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        target.addfile(link)
    with pytest.raises(ValueError, match=r"\['data_batch_1\.bin'\] are missing"):
        cifar.read_archive(plain, md5(plain.read_bytes()))


# --- augmentation ---------------------------------------------------------------------------------------------------


def test_every_result_is_a_crop_or_mirrored_crop_of_the_reflected_image():
    torch.manual_seed(0)
    images = torch.randint(256, (200, 3, 32, 32), dtype=torch.uint8)
    results = cifar.crop_and_flip(images)
    assert results.shape == images.shape and results.dtype == torch.uint8
    seen = set()
    for image, result in zip(images.numpy(), results.numpy()):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        found = [(y, x, mirrored) for y in range(9) for x in range(9) for mirrored in (False, True)
                 if np.array_equal(padded[:, y:y + 32, x:x + 32][:, :, ::-1 if mirrored else 1], result)]
        assert len(found) == 1
        seen.update(found)
    shifts_y, shifts_x, mirrored = zip(*seen)
    assert set(shifts_y) == set(shifts_x) == set(range(9)) and set(mirrored) == {False, True}


def test_crops_and_flips_are_uniform():
    """One pixel marks where each image went. Chi-square over 9 x 9 x 2 outcomes: mean 161, standard deviation 18."""
    torch.manual_seed(1)
    images = torch.zeros(16200, 1, 20, 20, dtype=torch.uint8)
    images[:, 0, 9, 9] = 255  # far enough from the edges to be shown once
    images[:, 0, 9, 8] = 128  # its left neighbour, or right one in a mirrored image
    results = cifar.crop_and_flip(images)
    assert ((results == 255).flatten(1).sum(1) == 1).all()
    marked = (results == 255).flatten(1).float().argmax(1)
    mirrored = (results.flatten(1)[torch.arange(16200), marked + 1] == 128).long()
    counts = torch.bincount(2 * marked + mirrored)
    counts = counts[counts > 0].float()
    assert len(counts) == 162
    assert ((counts - 100) ** 2 / 100).sum() < 161 + 5 * 18


def test_images_too_small_to_reflect_are_refused():
    with pytest.raises(ValueError, match="max_shift=4 for images of 4 x 32"):
        cifar.crop_and_flip(torch.zeros(1, 3, 4, 32))


def test_labels_stay_with_their_images_and_pixels_are_normalized():
    labels = torch.randint(10, (64,), generator=torch.Generator().manual_seed(0))
    images = (labels * 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()  # the pixel tells the label
    train_loader, eval_loader = cifar.make_loaders((images, labels), (images, labels), batch_size=24, device="cpu")
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    for loader in (train_loader, eval_loader):
        assert all(tensor.dtype == (torch.uint8, torch.int64)[i] for i, tensor in enumerate(loader.tensors))
        seen = []
        for x, y in loader:
            assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
            expected = (y.numpy()[:, None] * 20 / 255 - mean) / std
            np.testing.assert_allclose(x.numpy(), np.broadcast_to(expected[:, :, None, None], x.shape), rtol=0, atol=1e-5)
            seen.append(y)
        assert torch.equal(torch.cat(seen).sort().values, labels.sort().values)
    assert torch.equal(torch.cat([y for _, y in eval_loader]), labels)


def test_the_augmentation_of_a_batch_depends_on_seed_epoch_and_batch_alone():
    train, test = cifar.random_data(60, 10)
    loader, _ = cifar.make_loaders(train, test, batch_size=20, device="cpu")
    whole = list(loader.epoch(seed=5, epoch=2))
    torch.manual_seed(123)
    rest = list(loader.epoch(seed=5, epoch=2, start=2))
    assert len(rest) == 1 and torch.equal(rest[0][0], whole[2][0]) and torch.equal(rest[0][1], whole[2][1])
    plain = next(TensorLoader(*train, batch_size=20, shuffle=True).epoch(5, 2))[0]
    assert not torch.equal(cifar.Normalize()(plain, None)[0], whole[0][0])


# --- network and trainer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 36, 48, 64])
def test_the_number_of_parameters_is_that_of_the_closed_form(width):
    w = width
    channels = [(3, w), (w, 2 * w), *[(2 * w, 2 * w)] * 2, (2 * w, 4 * w), (4 * w, 8 * w), *[(8 * w, 8 * w)] * 2]
    expected = sum(9 * a * b + 2 * b for a, b in channels) + 8 * w * 10
    assert sum(p.numel() for p in ResNet9(width).parameters()) == expected
    if width == 64:
        assert 6.5e6 < expected < 6.7e6


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        ResNet9(0)


def test_the_network_computes_what_the_functions_of_torch_compute():
    F = torch.nn.functional
    torch.manual_seed(0)
    model = ResNet9(2).eval()
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(*((-0.3, 0) if "mean" in name else (0.05, 0.2)))  # no layer is dead
    parts = {name: part for name, part in model.named_modules()}

    def block(x, name):
        conv, norm = parts[f"{name}.0"], parts[f"{name}.1"]
        x = F.conv2d(x, conv.weight, padding=1)
        x = (x - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + 1e-5).sqrt()
        return (x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)

    images = torch.randn(3, 3, 32, 32)
    x = F.max_pool2d(block(block(images, "0"), "1"), 2)
    x = x + block(block(x, "2.branch.0"), "2.branch.1")
    x = F.max_pool2d(block(x, "3"), 2)
    x = F.max_pool2d(block(x, "4"), 2)
    x = x + block(block(x, "5.branch.0"), "5.branch.1")
    expected = x.amax((2, 3)) @ parts["8"].weight.T / 8
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def small_trainer(num_train=40, num_test=23, **options):
    torch.manual_seed(0)
    options = Options(**{"epochs": 1, "batch_size": 20, "width": 2, "synthetic": True, **options})
    return Cifar10(options, *cifar.random_data(num_train, num_test))


def test_in_evaluation_the_logits_are_the_mean_over_image_and_mirror_image():
    trainer = small_trainer()
    (model,) = trainer.model_list
    x = torch.randn(6, 3, 32, 32)
    mirrored = torch.from_numpy(x.numpy()[:, :, :, ::-1].copy())
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(trainer.inference(x), (model(x) + model(mirrored)) / 2)
    model.train()
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    trainer.inference(x)
    assert len(calls) == 1 and calls[0] is x  # one plain forward in training


@pytest.mark.slow
def test_the_evaluation_runs_two_forwards_per_batch_and_scores_like_a_loop_by_hand():
    trainer = small_trainer(num_test=1300)  # batches of 1000 and 300
    trainer.check_init(use_tb=False)
    (model,) = trainer.model_list
    counted = []
    model[0][0].register_forward_hook(lambda *args: counted.append(1))
    result = trainer.test()
    assert len(counted) == 4
    _, (images, labels) = cifar.random_data(40, 1300)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    x = (images.double().permute(0, 2, 3, 1) / 255 - mean) / std
    x = x.permute(0, 3, 1, 2).float()
    model.eval()
    with torch.no_grad():
        logits = (model(x) + model(x.flip(3))).double() / 2
    log_p = logits.log_softmax(1)
    smoothed = torch.full_like(log_p, 0.01).scatter(1, labels[:, None], 0.91)
    assert result["acc_on_noise"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-6)
    assert result["tol_loss"] == pytest.approx(-(smoothed * log_p).sum(1).mean().item(), rel=1e-4)


@pytest.mark.slow
def test_a_run_that_was_stopped_and_continued_ends_with_the_bits_of_one_that_was_not(tmp_path):
    whole, stopped, continued = (small_trainer(epochs=3, resume=None) for _ in range(3))
    for trainer, folder in ((whole, "whole"), (stopped, "stopped"), (continued, "stopped")):
        trainer.ckpt_dir = str(tmp_path / folder)
    whole.check_init(use_tb=False)
    whole.fit(3)
    stopped.check_init(use_tb=False)
    for epoch in stopped.epochs(3):
        stopped.train_loop()
        stopped.eval()
        if epoch == 1:
            break
    continued.check_init(use_tb=False)
    continued.load_state("auto")
    assert not torch.equal(weights(continued), weights(whole))
    continued.fit(3)
    assert torch.equal(weights(continued), weights(whole))
    assert continued.best_metric == whole.best_metric


def test_the_logits_are_float32_also_under_bf16():
    trainer = small_trainer(amp="bf16")
    trainer.check_init(use_tb=False)
    assert trainer.amp == "bf16"
    with trainer.autocast():
        assert trainer.inference(torch.randn(2, 3, 32, 32)).dtype == torch.float32


def test_the_amp_option_is_named_after_what_it_does():
    assert [amp_of(name, "cpu") for name in ("auto", "off", "bf16", "fp16")] == [None, None, "bf16", "fp16"]
    with pytest.raises(ValueError, match="--amp must be auto, bf16, fp16 or off, got 'none'"):
        amp_of("none", "cpu")


# --- scenarios by command line --------------------------------------------------------------------------------------

ENVIRONMENT = {"PYTHONPATH": str(ROOT)}


def history(run):
    with open(run / "history.csv", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_run_by_command_line_learns_leaves_its_best_weights_and_can_be_continued(tmp_path):
    """300 images of ten colours, which four epochs tell apart far above the one in ten of chance."""
    files = small_files(60, learnable=True)
    write_folder(tmp_path / "cifar", files)
    command = ["-m", "demo_cifar10.train", "--data-dir", "cifar", "--width", 8, "--batch-size", 20, "--lr", 0.1]
    done = run_python(*command, "--epochs", 4, cwd=tmp_path, env=ENVIRONMENT)
    (run,) = (tmp_path / "check_point" / "cifar10").iterdir()
    assert "CIFAR-10: 300 to train, 60 to test." in done.stdout and "SYNTHETIC" not in done.stdout
    rows = history(run)
    best = max(row["eval/acc"] for row in rows)
    assert len(rows) == 4 and best > 0.6

    state = torch.load(run / "best.pth", weights_only=True)
    model = ResNet9(8).eval()
    model.load_state_dict(state["model0"])
    pixels, labels = decoded_by_numpy(files, FILES[5:])
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    x = torch.tensor((pixels / 255 - mean[:, None, None]) / std[:, None, None], dtype=torch.float32)
    with torch.no_grad():
        predicted = (model(x) + model(x.flip(3))).argmax(1)
    assert (predicted.numpy() == labels).mean() == pytest.approx(best, abs=1e-6)

    done = run_python(*command, "--epochs", 5, "--resume", "auto", cwd=tmp_path, env=ENVIRONMENT)
    assert list((tmp_path / "check_point" / "cifar10").iterdir()) == [run]
    assert "epoch   5 train" in done.stdout and "epoch   4 train" not in done.stdout


@pytest.mark.slow
def test_a_synthetic_run_says_that_it_is_no_data_and_that_its_accuracy_means_nothing(tmp_path):
    script = Path(ROOT) / "demo_cifar10" / "train.py"  # as a file, with no path to the repository but its own place
    done = run_python(script, "--synthetic", "--epochs", 1, "--width", 2, cwd=tmp_path)
    assert "SYNTHETIC RUN, this is NOT CIFAR-10" in done.stdout and "accuracy above is meaningless" in done.stdout
    assert not re.search(r"\bacc\b", done.stdout)  # the metric itself is called acc_on_noise
    (run,) = (tmp_path / "check_point" / "cifar10_synthetic").iterdir()
    assert {"best.pth", "last.pth", "log.txt", "history.csv"} <= {path.name for path in run.iterdir()}
    assert not (tmp_path / "data").exists() and not (tmp_path / "check_point" / "cifar10").exists()


@pytest.mark.slow
def test_without_a_network_the_command_ends_with_the_clear_error_and_leaves_no_run(tmp_path):
    address = closed_address()
    done = run_python("-m", "demo_cifar10.train", "--url", address, cwd=tmp_path, env=ENVIRONMENT, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ConnectionError: CIFAR-10 could not be downloaded") and address in last
    assert "During handling" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_download_that_is_killed_goes_on_where_it_was(tmp_path):
    content = archive_of(small_files(400))
    waiting = threading.Event()
    requested = []

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.headers.get("Range"))
            start = int(requested[-1].removeprefix("bytes=").removesuffix("-")) if requested[-1] else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:] if start else content[:5_000_000])
            if not start:
                waiting.wait(60)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        address, part = f"http://127.0.0.1:{server.server_port}/", tmp_path / "archive.part"
        program = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
                   f"from demo_cifar10.data import download\ndownload({address!r}, Path('archive'), {md5(content)!r})")
        child = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.DEVNULL)
        for _ in range(600):
            if part.exists() and part.stat().st_size >= 2 << 20:
                break
            threading.Event().wait(0.05)
        child.kill()
        child.wait()
        arrived = part.stat().st_size
        assert 0 < arrived < len(content) and not (tmp_path / "archive").exists()
        cifar.download(address, tmp_path / "archive", md5(content))
    finally:
        waiting.set()
        server.shutdown()
        server.server_close()
    assert requested == [None, f"bytes={arrived}-"]
    assert (tmp_path / "archive").read_bytes() == content
