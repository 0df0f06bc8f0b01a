"""What only GPUs can show of several processes: NCCL, SyncBatchNorm, and that each needs a GPU of its own.

The jobs are those of the ``*_dist.py`` tests; one process on the CPU is what they are compared with.
"""

import pytest
import torch
from ranks import in_ranks, torchrun
from sharded_job import WAYS, deep
from sharded_job import train as train_deep
from training_job import ALIKE, BATCH, Normed, run, train

COUNT = torch.cuda.device_count()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not COUNT, reason="needs a CUDA device")]
two_gpus = pytest.mark.skipif(COUNT < 2, reason="needs two CUDA devices: NCCL lets no two ranks share one")


def close(found, expected):
    """Kernels of GPU and CPU sum in other orders."""
    torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-3, atol=1e-4)
    assert found["eval"] == pytest.approx(expected["eval"], rel=1e-3)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return in_ranks(2, "training_job", tmp_path_factory, device="cuda")[0]


@two_gpus
@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_over_nccl_train_like_one_process(name, two):
    close(two[0][name], run(name, 2 * BATCH))
    assert torch.equal(two[1][name]["weights"], two[0][name]["weights"])


@two_gpus
def test_synchronised_batchnorm_sees_the_batches_of_all_ranks(two):
    close(two[0]["synced"], train(Normed(2 * BATCH), "alone"))


@two_gpus
def test_unused_parameters_are_named_over_nccl_too(two):
    assert "['spare.weight', 'spare.bias']" in two[0]["unused"]


@two_gpus
def test_weights_in_parts_train_and_are_saved_over_nccl(tmp_path_factory):
    results = in_ranks(2, "sharded_job", tmp_path_factory, ".", 9, "signal", device="cuda")[0]
    alone = train_deep(deep(2 * BATCH), "alone")
    for name in WAYS:
        close(results[0]["ways"][name], alone)
    kinds = results[0]["kinds"]
    assert [part["began"] for part in kinds] == [0, 5, 9], "DDP, FSDP2 and DDP go on from each other"


@pytest.mark.skipif(COUNT != 1, reason="needs a single CUDA device")
def test_more_processes_than_gpus_are_refused_in_words(tmp_path):
    done = torchrun(2, "-m", "failing_job", cwd=tmp_path, env={"DEVICE_OF_RANKS": "cuda"}, check=False)
    assert done.returncode == 1
    assert "ValueError: Each process needs a GPU of its own; this is number 1 on a machine with 1." in done.stderr
