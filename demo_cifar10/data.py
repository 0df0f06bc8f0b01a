"""The real CIFAR-10 as tensors: download, check, decode, and augmentation in whole batches on the device.

    train, test = load_cifar10("data")              # ((images uint8 [50000, 3, 32, 32], labels int64 [50000]), …)
    train_loader, eval_loader = make_loaders(train, test, batch_size=512, device="cuda")

The official binary version is read straight out of its archive; nothing is unpacked to the disk, nothing is unpickled. The
pickled "python version" is not read.

Source: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; address, MD5 and the format of a
record as on https://www.cs.toronto.edu/~kriz/cifar.html.

Shape legend: N images, B batch, H height, W width.
"""

import hashlib
import http.client
import os
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import torch

from template import TensorLoader

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
NUM_CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the red, the green and the blue plane, each row by row

# Per channel over the training images, as fractions of 255: images.float().mean((0, 2, 3)) / 255, and .std likewise.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


def load_cifar10(data_dir="data", url=URL, md5=MD5):
    """Training and test set; the archive is downloaded into ``data_dir`` where it is not there yet (170 MB).

    Args:
        data_dir: the archive, the extracted folder with its six .bin files, or the folder that holds either.
        url: address of the archive.
        md5: of the archive, in hexadecimal; another one is refused.

    Returns:
        ``((images, labels), (images, labels))`` on the CPU: uint8 [N, 3, 32, 32] and int64 [N] in ``[0, 10)``.

    Raises:
        FileNotFoundError: ``data_dir`` names a file that is not there, or a folder without all of the six files.
        ConnectionError: the download failed; what has arrived is kept, and continued the next time.
        ValueError: MD5, size or a label is wrong.
    """
    data_dir = Path(data_dir).expanduser()
    source = find_source(data_dir)
    if source is None:
        source = data_dir / ARCHIVE
        download(url, source, md5)
    files = read_folder(source) if source.is_dir() else read_archive(source, md5)
    parts = {name: decode(content, f"{source}: {name}") for name, content in files.items()}
    return tuple(tuple(torch.cat(tensors) for tensors in zip(*(parts[name] for name in names)))
                 for names in (TRAIN_FILES, TEST_FILES))


def find_source(data_dir):
    """The archive or extracted folder that ``data_dir`` means; None where it has to be downloaded first."""
    if data_dir.is_file():
        return data_dir
    if not data_dir.exists() and data_dir.name.endswith((".gz", ".tgz", ".tar")):
        raise FileNotFoundError(f"There is no archive at {data_dir}. {_HOW_TO_GIVE_A_COPY}")
    folders = [data_dir / FOLDER, data_dir]
    for candidate in (*filter(_is_complete, folders), data_dir / ARCHIVE):
        if candidate.exists():
            return candidate
    for folder in folders:  # neither is whole, and there is no archive
        if any((folder / name).exists() for name in TRAIN_FILES + TEST_FILES):
            missing = [name for name in TRAIN_FILES + TEST_FILES if not (folder / name).is_file()]
            raise FileNotFoundError(f"The folder {folder} must hold all six files of CIFAR-10; {missing} are missing. "
                                    "Extract the archive again, or point --data-dir at the archive itself.")
    return None


_HOW_TO_GIVE_A_COPY = (
    f"--data-dir takes an existing copy: the archive {ARCHIVE}, the extracted folder {FOLDER}, or the folder that holds "
    "either."
)


def _is_complete(folder):
    return all((folder / name).is_file() for name in TRAIN_FILES + TEST_FILES)


# --- reading --------------------------------------------------------------------------------------------------------


def read_folder(folder):
    """``{file name: content}`` of the extracted folder."""
    return {name: (folder / name).read_bytes() for name in TRAIN_FILES + TEST_FILES}


def read_archive(path, md5=MD5):
    """``{file name: content}`` out of the archive, whose MD5 is checked first. Other members are not looked at, and none
    is written to the disk, so no member's name can lead anywhere.

    Raises:
        ValueError: the MD5 is another one, or a file is not in the archive.
    """
    found = md5_of(path)
    if found != md5:
        raise ValueError(
            f"The archive {path} must have the MD5 {md5}; its {path.stat().st_size:,} bytes have {found}: it is incomplete, "
            "altered, or not the binary version. Delete it to have it downloaded again, or point --data-dir at another copy."
        )
    wanted = {f"{FOLDER}/{name}": name for name in TRAIN_FILES + TEST_FILES}
    with tarfile.open(path, "r:*") as archive:
        files = {wanted[member.name]: archive.extractfile(member).read()
                 for member in archive if member.name in wanted and member.isreg()}
    missing = [name for name in wanted.values() if name not in files]
    if missing:
        raise ValueError(f"The archive {path} must hold {list(wanted)} as plain files; {missing} are missing.")
    return files


def decode(content, name):
    """Records of 1 + 3,072 bytes as ``(images uint8 [N, 3, 32, 32], labels int64 [N])``.

    Args:
        content: bytes of a .bin file.
        name: what an error calls it.

    Raises:
        ValueError: no whole number of records, none at all, or a label of 10 or more.
    """
    if not content or len(content) % RECORD_BYTES:
        raise ValueError(f"{name} must hold records of {RECORD_BYTES} bytes; it has {len(content):,} bytes, which is "
                         f"{len(content) / RECORD_BYTES:.2f} records. It is cut short or another file: get it again.")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, RECORD_BYTES)
    labels = records[:, 0].long()
    if labels.max() >= NUM_CLASSES:
        position = int((labels >= NUM_CLASSES).nonzero()[0])
        raise ValueError(f"{name} must hold labels from 0 to {NUM_CLASSES - 1}; record {position} has "
                         f"{int(labels[position])}. It is damaged, or not CIFAR-10: get it again.")
    return records[:, 1:].reshape(-1, *IMAGE_SHAPE), labels


def md5_of(path):
    """The file's MD5 in hexadecimal. It guards against damage, not against malice: MD5 is all that is published."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# --- downloading ----------------------------------------------------------------------------------------------------


def download(url, path, md5=MD5):
    """Fetch ``url`` into ``path``, which appears only when it is whole and its MD5 is right.

    Until then the bytes are in ``<path>.part``. A connection that ends early is taken up again where it ended, for as long
    as that brings something new; a later call goes on from the ``.part`` file as well.

    Raises:
        ConnectionError: the server cannot be reached, or stops answering.
        ValueError: the MD5 is another one; the ``.part`` file is deleted.
    """
    part = path.with_name(path.name + ".part")
    print(f"Downloading CIFAR-10 from {url} to {path}", flush=True)
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            if _size(part) > before:
                print(f"The connection ended after {_size(part):,} bytes; going on from there.", flush=True)
                continue
            kept = f" {_size(part):,} bytes are in {part}; the next start goes on from there." if _size(part) else ""
            raise ConnectionError(
                f"CIFAR-10 could not be downloaded from {url} to {path}: {error}.{kept} Without a network, get "
                f"the archive (MD5 {md5}) elsewhere. {_HOW_TO_GIVE_A_COPY}"
            ) from None
    found = md5_of(part)
    if found != md5:
        size = _size(part)
        part.unlink()
        raise ValueError(f"The download from {url} must have the MD5 {md5}; its {size:,} bytes have {found}. They were "
                         f"deleted. Try again, or another source. {_HOW_TO_GIVE_A_COPY}")
    os.replace(part, path)


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _fetch_rest(url, part):
    """Append to ``part`` what it lacks of ``url``.

    Raises:
        OSError, http.client.HTTPException: there is no answer, or it ended before the announced length.
    """
    with _open_at(url, _size(part)) as response:
        part.parent.mkdir(parents=True, exist_ok=True)
        start = _start_of(response)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with open(part, "ab") as file, _progress(total, start) as progress:
            file.truncate(start)  # a server that ignores Range sends everything again
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
        if total is not None and _size(part) != total:  # read(size) does not tell a cut from the end
            raise ConnectionError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _open_at(url, start):
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)  # the .part is as long as the file: not its beginning


def _start_of(response):
    """Where in the file the response begins: Content-Range is "bytes 100-199/200"."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    return int(response.headers["Content-Range"].removeprefix("bytes ").partition("-")[0])


def _progress(total, start):
    """A bar on a terminal, plain lines elsewhere."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainProgress(total, start)
    if not sys.stderr.isatty():
        return _PlainProgress(total, start)
    return tqdm(total=total, initial=start, desc=ARCHIVE, unit="B", unit_scale=True)


class _PlainProgress:
    """A line for every tenth of ``total`` bytes; without a known total one for every 16 MiB."""

    def __init__(self, total, start):
        self.total = total
        self.done = start
        self.step = max(total // 10, 1) if total else 1 << 24
        self.next = (start // self.step + 1) * self.step

    def update(self, num_bytes):
        self.done += num_bytes
        if self.done >= self.next:
            self.next = (self.done // self.step + 1) * self.step
            share = f" of {self.total / 1e6:.1f} MB ({self.done / self.total:.0%})" if self.total else " MB"
            print(f"  {self.done / 1e6:.1f}{share}", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


# --- batches --------------------------------------------------------------------------------------------------------


def make_loaders(train, test, batch_size, device):
    """Training and eval loader over uint8 images that live on ``device``: 184 MB for the whole of CIFAR-10.

    Their batches are ``(float32 [B, 3, 32, 32] in channels_last, int64 [B])``; those of training are shuffled, cropped and
    mirrored at random.
    """
    normalize = Normalize(device)

    def augment(images, labels):
        return normalize(crop_and_flip(images), labels)

    return (TensorLoader(*train, batch_size=batch_size, shuffle=True, transform=augment, device=device),
            TensorLoader(*test, batch_size=1000, transform=normalize, device=device))


class Normalize:
    """uint8 images as float32 with mean 0 and standard deviation 1 per channel over the training set."""

    def __init__(self, device="cpu"):
        self.mean_311 = 255 * torch.tensor(MEAN, device=device).view(3, 1, 1)  # once: a copy per batch would wait
        self.std_311 = 255 * torch.tensor(STD, device=device).view(3, 1, 1)

    def __call__(self, images_B3HW, labels_B):
        floats_B3HW = images_B3HW.to(torch.float32, copy=True, memory_format=torch.channels_last)
        return floats_B3HW.sub_(self.mean_311).div_(self.std_311), labels_B


def crop_and_flip(images_BCHW, max_shift=4):
    """Each image shifted by up to ``max_shift`` pixels, mirrored left to right with probability one half.

    The same as padding by reflection, cropping at random and flipping, done as one gather: for each row and column of the
    result, the row and column of the image that it shows. Draws from the global generator of the images' device.

    Args:
        images_BCHW: any dtype, H and W above ``max_shift``.
        max_shift: pixels of padding on every side, 0 or more.

    Raises:
        ValueError: the images are too small to be reflected that far.
    """
    num_images, num_channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    if min(height, width) <= max_shift:
        raise ValueError(f"Reflection reaches at most size - 1 pixels; got max_shift={max_shift} for images of {height} x "
                         f"{width}. Take a smaller max_shift.")

    def reflected(size):
        shifts_B1 = torch.randint(-max_shift, max_shift + 1, (num_images, 1), device=device)
        positions_BS = (torch.arange(size, device=device) + shifts_B1).abs()  # left of 0: 1, 2, …
        return size - 1 - (size - 1 - positions_BS).abs()                     # right of size - 1: size - 2, size - 3, …

    rows_BH, columns_BW = reflected(height), reflected(width)
    is_flipped_B1 = torch.rand(num_images, 1, device=device) < 0.5
    columns_BW = torch.where(is_flipped_B1, columns_BW.flip(1), columns_BW)
    return images_BCHW[
        torch.arange(num_images, device=device)[:, None, None, None],
        torch.arange(num_channels, device=device)[None, :, None, None],
        rows_BH[:, None, :, None],
        columns_BW[:, None, None, :],
    ]


def random_data(num_train=1024, num_test=256, seed=0):
    """Noise in the place of CIFAR-10, to try a program without it: shaped and typed like ``load_cifar10``'s result."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randint(256, (size, *IMAGE_SHAPE), dtype=torch.uint8, generator=generator),
         torch.randint(NUM_CLASSES, (size,), generator=generator))
        for size in (num_train, num_test)
    )
