"""Callbacks that look at a training see in two processes what they see in one."""

import pytest
from ranks import in_ranks
from watch_job import eval_loaders, looked_at

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_ranks(2, "watch_job", tmp_path_factory)[0]


def close(value):
    if isinstance(value, dict):
        return {key: close(part) for key, part in value.items()}
    if isinstance(value, list):
        return [close(part) for part in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("name", [*eval_loaders(), "fsdp"])
def test_samples_counts_norms_and_layers_are_those_of_one_process(name, ranks):
    alone = looked_at("in order" if name == "fsdp" else name, 8)
    for part in ("samples", "confusion", "monitor", "layers"):
        for results in ranks:
            assert results[name][part] == close(alone[part]), part
    seen = sorted(ranks[0][name]["indices"] + ranks[1][name]["indices"])
    assert seen == close(sorted(alone["indices"])) and len(seen) == 41
