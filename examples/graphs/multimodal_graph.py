"""Node classification on a graph of several modalities: which emotion does each utterance of a conversation express?

    python examples/graphs/multimodal_graph.py                # ten seconds on two cores; needs scikit-learn
    python examples/graphs/multimodal_graph.py --resume auto  # go on where it stopped

Every utterance is three nodes: text, sound and picture. A node is joined with those of its modality in the conversation and
with the two others of its utterance, by edges that are stronger the more alike two nodes are. After Hu et al., "MMGCN"
(2021), arXiv:2107.06779, with the layers of Chen et al., "GCNII" (2020), arXiv:2007.02133. The conversations are made here:
emotions last for a few utterances, and each modality shows them with much noise.
"""

# %% data
import math
import sys
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Confusion, TemplateModel, run_main, seed_everything  # noqa: E402

EMOTIONS, SPEAKERS = 4, 2
WIDTHS = {"text": 24, "sound": 16, "picture": 20}


def conversations(count, seed):
    """Of 8 to 16 utterances: ``({modality: [U, width]}, speakers [U], emotions [U])``. IEMOCAP's features have this form."""
    world, random = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    looks = {name: torch.randn(EMOTIONS, width, generator=world) for name, width in WIDTHS.items()}
    made = []
    for length in torch.randint(8, 17, (count,), generator=random).tolist():
        moves, drawn = torch.rand(length, generator=random) < 0.2, torch.randint(EMOTIONS, (length,), generator=random)
        emotions = drawn[torch.where(moves, torch.arange(length), 0).cummax(0).values]
        shown = {name: look[emotions] + 5 * torch.randn(length, look.shape[1], generator=random)
                 for name, look in looks.items()}
        made.append((shown, torch.randint(SPEAKERS, (length,), generator=random), emotions))
    return made


def joined(samples):
    """A batch as one graph; ``conversation`` [U] says which utterances belong together."""
    shown, speakers, emotions = zip(*samples)
    conversation = torch.cat([torch.full((len(part),), number) for number, part in enumerate(emotions)])
    return ({name: torch.cat([part[name] for part in shown]) for name in WIDTHS}, torch.cat(speakers), conversation,
            torch.cat(emotions))


# %% the network
def adjacency(nodes_MUD, conversation_U):
    """Edges of the 3 * U nodes, by angle, and normalized so that messages keep their size: [M * U, M * U]."""
    flat = nn.functional.normalize(nodes_MUD.flatten(0, 1), dim=1)
    alike = 1 - torch.arccos((flat @ flat.T).clamp(-0.999, 0.999)) / math.pi
    together = (conversation_U[:, None] == conversation_U).float()
    modality, utterance = (torch.eye(size, device=flat.device) for size in nodes_MUD.shape[:2])
    weights = alike * (torch.kron(modality, together) + torch.kron(1 - modality, utterance))
    scale = weights.sum(1).rsqrt()
    return scale[:, None] * weights * scale


class GraphNet(nn.Module):
    """Features ``{modality: [U, width]}``, speakers [U] and conversations [U] in, scores [U, EMOTIONS] out."""

    def __init__(self, width=32, layers=4, alpha=0.2, theta=0.5):
        super().__init__()
        self.inputs = nn.ModuleDict({name: nn.Linear(size, width) for name, size in WIDTHS.items()})
        self.speakers = nn.Embedding(SPEAKERS, width)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.alpha, self.betas = alpha, [math.log(theta / (number + 1) + 1) for number in range(layers)]
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(len(WIDTHS) * 2 * width, EMOTIONS))

    def forward(self, features, speakers, conversation):
        first = torch.stack([self.inputs[name](part) for name, part in features.items()]) + self.speakers(speakers)
        edges = adjacency(first.detach(), conversation)
        first = h = first.flatten(0, 1).relu()
        for layer, beta in zip(self.layers, self.betas):
            mixed = (1 - self.alpha) * edges @ h + self.alpha * first
            h = ((1 - beta) * mixed + beta * layer(mixed)).relu()
        both = torch.cat([first, h], 1).reshape(len(WIDTHS), len(speakers), -1)
        return self.head(both.transpose(0, 1).flatten(1))


class Trainer(TemplateModel):
    def __init__(self, count):
        super().__init__()
        net = GraphNet()
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=1e-2)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(conversations(count, seed=1), 8, shuffle=True, collate_fn=joined)
        self.eval_loader = DataLoader(conversations(100, seed=2), 16, collate_fn=joined)
        self.lr_scheduler_type, self.key_metric, self.ckpt_dir = "cosine", "acc", "check_point/graph"

    def metric(self, pred, y):
        confusion = Confusion(EMOTIONS).update(pred, y)
        return {"acc": confusion.accuracy(), "f1": confusion.f1("weighted")}


# %% run
def flat(conversations):
    features, _, _, emotions = joined(conversations)
    return torch.cat(list(features.values()), 1), emotions


def main(epochs=8, count=200, resume: str | None = None):
    seed_everything(0)
    trainer = Trainer(count)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    (x, y), (held_out, expected) = flat(trainer.train_loader.dataset), flat(trainer.eval_loader.dataset)
    linear = LogisticRegression(max_iter=1000).fit(x, y).score(held_out, expected)
    most = expected.bincount().max().item() / len(expected)
    acc = trainer.test()["acc"]
    print(f"{len(expected)} utterances: graph {acc:.3f}, linear model of one utterance {linear:.3f}")
    print(f"accuracy {acc:.3f} (at least 0.72; most frequent emotion {most:.3f})")


if __name__ == "__main__":
    run_main(main)
