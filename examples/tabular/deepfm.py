"""DeepFM for click data: columns of categories as embeddings, the AUROC, and files in the form of Criteo's.

    python examples/tabular/deepfm.py                          # a quarter of a minute on two cores; needs scikit-learn
    python examples/tabular/deepfm.py --file train.txt         # Criteo's: label, 13 numbers, 26 categories, by tabs
    python examples/tabular/deepfm.py --resume auto            # go on where it stopped
    python examples/tabular/deepfm.py --full                   # larger tables, for a GPU and the real file

Without a file the rows are made, in that form and with gaps as it has: whether somebody clicks depends above all on
whether two columns go together, such as the person's taste and the kind of thing. A linear model cannot see that, and the
AUROC of one is printed beside. Numbers are put into bins, so that every column is one of categories, hashed into one
table.
"""

# %% data
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import BinaryScores, EarlyStopping, TemplateModel, TensorLoader, run_main, seed_everything  # noqa: E402

NUMBERS, CATEGORIES = 13, 26


def made_lines(count, seed=0):
    """Made: lines as in Criteo's file, where a tenth of the cells is empty."""
    chance = np.random.default_rng(seed)
    numbers = chance.poisson(np.exp(chance.normal(1, 1, (count, NUMBERS))))
    sizes = chance.integers(3, 10, CATEGORIES)
    categories = chance.integers(0, sizes, (count, CATEGORIES))
    tastes = [chance.normal(size=(size, 3)) for size in sizes[:8]]     # the first eight columns meet, two by two
    score = sum((tastes[i][categories[:, i]] * tastes[i + 1][categories[:, i + 1]]).sum(1) for i in range(0, 8, 2))
    score = 1.2 * score + 0.5 * np.log1p(numbers[:, 0]) + 0.5 * tastes[0][categories[:, 0], 0] - 3
    clicks = chance.random(count) < 1 / (1 + np.exp(-score))
    empty = chance.random((count, NUMBERS + CATEGORIES)) < 0.1
    for click, row, gone in zip(clicks, np.concatenate([numbers, categories], 1).tolist(), empty):
        cells = [f"{value}" if i < NUMBERS else f"{value:08x}" for i, value in enumerate(row)]
        yield "\t".join([str(int(click)), *("" if is_gone else cell for cell, is_gone in zip(cells, gone))])


def read(lines, buckets):
    """Clicks [N] and, of each column, the row of its value in one table of ``buckets`` rows, [N, 39].

    A number n becomes the bin ``floor(log(n + 1)²)``, as the winners of Criteo's contest had it. Empty is a value too.
    """
    clicks, rows, known = [], [], {}
    for line in lines:
        click, *cells = line.rstrip("\n").split("\t")
        row = [f"{i}={int(np.log(max(float(cell), 0) + 1) ** 2)}" if i < NUMBERS and cell else f"{i}={cell}"
               for i, cell in enumerate(cells)]
        rows.append([known.get(word) or known.setdefault(word, zlib.crc32(word.encode()) % buckets) for word in row])
        clicks.append(float(click))
    return torch.tensor(rows), torch.tensor(clicks)


# %% the network
class DeepFM(nn.Module):
    """Rows of the table [B, F] in, one score [B] each out: linear part, pairs of columns, and a network, added.

    Source: Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", 2017, arXiv:1703.04247.
    """

    def __init__(self, fields, buckets, size, width):
        super().__init__()
        self.weights, self.vectors = nn.Embedding(buckets, 1), nn.Embedding(buckets, size)
        nn.init.zeros_(self.weights.weight)
        nn.init.normal_(self.vectors.weight, std=0.05)
        self.deep = nn.Sequential(nn.Linear(fields * size, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 1))

    def forward(self, rows):
        vectors = self.vectors(rows)        # [B, F, K]
        pairs = (vectors.sum(1).square() - vectors.square().sum(1)).sum(1) / 2     # the products of all pairs, in one pass
        return self.weights(rows).sum((1, 2)) + pairs + self.deep(vectors.flatten(1))[:, 0]


class Trainer(TemplateModel):
    def __init__(self, train, held_out, buckets, size, width):
        super().__init__()
        net = DeepFM(train[0].shape[1], buckets, size, width)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 5e-3, weight_decay=1e-5)]
        self.criterion = nn.BCEWithLogitsLoss()
        self.train_loader, self.eval_loader = TensorLoader(*train, batch_size=256, shuffle=True), TensorLoader(*held_out,
                                                                                                             batch_size=4096)
        self.key_metric, self.ckpt_dir, self.keep_checkpoints = "auroc", "check_point/deepfm", 1
        self.callbacks = [EarlyStopping(patience=2)]

    def metric(self, pred, y):
        return {"auroc": BinaryScores().update(pred, y).auroc()}


# %% run
def linear_auroc(train, test, buckets):
    """Of a logistic regression on the same columns, each value a column of its own."""
    tables = [csr_matrix((np.ones(rows.numel()), rows.flatten().numpy(), np.arange(0, rows.numel() + 1, rows.shape[1])),
                         (len(rows), buckets)) for rows, _ in (train, test)]
    model = LogisticRegression(C=0.1, max_iter=200).fit(tables[0], train[1].numpy())
    return BinaryScores().update(torch.from_numpy(model.decision_function(tables[1])), test[1]).auroc().compute()


def main(file: str | None = None, rows=20_000, epochs=12, buckets=4096, size=8, width=64, seed=0, resume: str | None = None):
    with open(file, encoding="utf-8") if file else nullcontext(made_lines(rows)) as lines:
        x, y = read(lines, buckets)
    train, held_out, test = zip(*(part.split([len(y) - 2 * (len(y) // 5), len(y) // 5, len(y) // 5]) for part in (x, y)))
    seed_everything(seed)
    trainer = Trainer(train, held_out, buckets, size, width)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    trainer.use_best()
    auroc, linear = trainer.test(TensorLoader(*test, batch_size=4096))["auroc"], linear_auroc(train, test, buckets)
    print(f"{len(y)} rows, {y.mean():.1%} clicks: AUROC {auroc:.3f}, of a logistic regression {linear:.3f}")
    alike = BinaryScores().update(torch.zeros_like(test[1]), test[1]).auroc().compute()
    print(f"AUROC {auroc:.3f} (at least 0.72; the same score for all {alike:.3f})")


if __name__ == "__main__":
    run_main(main, full={"buckets": 1_000_000, "size": 16, "width": 400})
