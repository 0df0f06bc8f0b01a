"""``by_group``, and accumulators of one's own."""

import pytest
import torch
from accumulated import WAYS, split, values
from sklearn.metrics import accuracy_score, roc_auc_score
from tiny import Tiny, tiny_data
from torch.utils.data import DataLoader, TensorDataset

from template import BinaryScores, Confusion, Metric, by_group
from template.metrics.by_group import ByGroup
from template.metrics.epoch import EpochMetrics

GENERATOR = torch.Generator().manual_seed(4)
PRED, Y = torch.randint(2, (2, 60), generator=GENERATOR)
SCORES = torch.randn(60, generator=GENERATOR)
GROUPS = torch.randint(8, 12, (60,), generator=GENERATOR)
NAMES = [["berlin", "paris"][number % 2] for number in GROUPS.tolist()]


@pytest.mark.parametrize("way", WAYS)
def test_each_group_has_the_value_of_its_samples_in_the_order_of_their_names(way):
    batches = [(PRED[i:i + 7], Y[i:i + 7], GROUPS[i:i + 7]) for i in range(0, 60, 7)]
    found = values(lambda: Grouped(Confusion(2).accuracy()), batches, way)
    expected = {f"m/{group}": accuracy_score(Y[group == GROUPS], PRED[group == GROUPS]) for group in range(8, 12)}
    assert found == pytest.approx(expected) and list(found) == ["m/8", "m/9", "m/10", "m/11"]


class Grouped(ByGroup):
    """Made once for all batches, with the groups as an argument."""

    def update(self, pred, y, groups):
        return super().update(pred, y, groups=groups)


def test_names_as_groups_and_a_metric_of_several_values():
    epoch = EpochMetrics()
    for i in range(0, 60, 7):
        epoch.update({"score": by_group(BinaryScores(), NAMES[i:i + 7]).update(SCORES[i:i + 7], Y[i:i + 7])}, 7)
    found = epoch.compute()
    for city in ("berlin", "paris"):
        own = torch.tensor([name == city for name in NAMES])
        assert found[f"score/{city}/auroc"] == pytest.approx(roc_auc_score(Y[own], SCORES[own]))


def test_in_an_evaluation_with_the_group_in_the_batch():
    class Slices(Tiny):
        def loss_per_batch(self, batch):
            return super().loss_per_batch(batch[:2])

        def eval_scores_per_batch(self, batch):
            x, y, group = batch
            return {"of": by_group(Confusion(3).accuracy(), group).update(self.inference(x), y)}

    x, y = tiny_data(30)
    trainer = Slices(eval_loader=DataLoader(TensorDataset(x, y, torch.arange(30) % 3), 8))
    trainer.check_init(use_tb=False)
    result = trainer.test()
    pred = trainer.predict(x).argmax(1)
    for group in range(3):
        assert result[f"of/{group}"] == pytest.approx((pred == y)[group::3].float().mean().item())


def test_a_wrong_number_of_groups_is_refused_in_words():
    with pytest.raises(ValueError, match="got 3 groups for 2 samples"):
        by_group(Confusion(2), [1, 2, 3]).update(torch.zeros(2).long(), torch.zeros(2).long())


# --- accumulators of one's own ----------------------------------------------------------------------------------------


class Bias(Metric):
    sums = ("total", "count")

    def update(self, pred, y):
        self.total = self.total + (pred - y).sum(0)
        self.count = self.count + len(y)
        return self

    def compute(self):
        return {f"bias{i}": value for i, value in enumerate((self.total / self.count).tolist())}


@pytest.mark.parametrize("way", WAYS)
def test_one_that_names_its_sums_needs_update_and_compute_alone(way):
    generator = torch.Generator().manual_seed(1)
    pred, y = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    expected = dict(zip(("bias0", "bias1", "bias2"), (pred - y).mean(0).tolist()))
    assert values(Bias, split((pred, y), 7), way) == pytest.approx(expected)


def test_they_can_be_added():
    parts = [Bias().update(torch.ones(2, 1), torch.zeros(2, 1)), Bias().update(torch.zeros(2, 1), torch.zeros(2, 1))]
    assert (parts[0] + parts[1]).compute() == sum(parts).compute() == {"bias0": 0.5}
    assert parts[0].compute() == {"bias0": 1.0}


def test_one_that_says_nothing_of_its_state_is_told_what_to_write():
    class Lacks(Metric):
        def update(self, pred, y):
            return self

    with pytest.raises(NotImplementedError, match="Lacks must name in `sums` the attributes that add up, or define reset"):
        Lacks()
