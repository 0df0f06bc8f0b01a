"""A GCN sorts the members of a karate club by two known ones: who went with whom when the club split in 1977.

    python examples/graphs/gcn_karate.py                     # a few seconds; needs networkx
    python examples/graphs/gcn_karate.py --resume auto       # go on where it stopped

The graph holds 34 members, and how often two of them met outside of the club. Two labels are known, the instructor's and
the administrator's. A sample is a node: its number goes in, its class comes out, and the graph is part of the network. So
loaders, losses and metrics are those of any classification, and several labels, a split by nodes or a larger graph need
nothing new.

The figure is the accuracy on the 32 others, beside always guessing the more frequent side.
"""

# %% data
import sys
from pathlib import Path

import networkx
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, run_main, seed_everything  # noqa: E402


def karate_club():
    """``(weights [N, N] of the edges, sides [N], the numbers of the two members that everybody knows)``."""
    graph = networkx.karate_club_graph()    # your own: networkx.read_weighted_edgelist("edges.txt")
    edges = torch.tensor(networkx.to_numpy_array(graph, weight="weight"), dtype=torch.float32)
    sides = torch.tensor([graph.nodes[node]["club"] == "Officer" for node in graph]).long()
    return edges, sides, [0, 33]


# %% the network
class GCN(nn.Module):
    """Numbers of nodes [B] in, scores of their classes [B, C] out.

    The nodes have no features but who they are, so the first layer learns a row for each.
    Source: Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", 2017, arXiv:1609.02907.
    """

    def __init__(self, edges, width, classes, dropout=0.5):
        super().__init__()
        with_self = edges + edges[edges > 0].mean() * torch.eye(len(edges))
        scale = with_self.sum(1).rsqrt()
        self.register_buffer("mix", scale[:, None] * with_self * scale)     # the mean over a node and its neighbours
        self.first, self.second = nn.Linear(len(edges), width), nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes):
        hidden = (self.mix @ self.first.weight.T + self.first.bias).relu()
        return self.second(self.mix @ self.dropout(hidden))[nodes]


class Trainer(TemplateModel):
    def __init__(self, edges, sides, known, width):
        super().__init__()
        net = GCN(edges, width, len(sides.unique()))
        self.model_list = [net]
        self.optimizer_list = [torch.optim.Adam(net.parameters(), 1e-2, weight_decay=5e-3)]
        self.criterion = nn.CrossEntropyLoss()
        known, others = torch.tensor(known), torch.tensor([node for node in range(len(sides)) if node not in known])
        self.train_loader = DataLoader(TensorDataset(known, sides[known]), len(known))
        self.eval_loader = DataLoader(TensorDataset(others, sides[others]), len(others))
        self.ckpt_dir, self.keep_checkpoints = "check_point/gcn_karate", 1


# %% run
def main(epochs=100, width=16, seed=0, resume: str | None = None):
    edges, sides, known = karate_club()
    seed_everything(seed)
    trainer = Trainer(edges, sides, known, width)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    for _ in trainer.epochs(epochs):        # no choice is made by the other members: the last weights are what counts
        trainer.train_loop()
    trainer.wait_for_saves()

    others = trainer.eval_loader.dataset.tensors[1]
    most = (others.bincount().max() / len(others)).item()
    print(f"accuracy {trainer.test()['acc']:.3f} (at least 0.9; more frequent side {most:.3f})")


if __name__ == "__main__":
    run_main(main)
