"""A language model of characters, whose training is counted in updates: prose from Python's own documentation.

    python examples/basics/char_language_model.py                     # half a minute on two cores; needs torch alone
    python examples/basics/char_language_model.py --file my.txt       # any text; the last tenth of it is held out
    python examples/basics/char_language_model.py --resume auto       # go on where it stopped
    python examples/basics/char_language_model.py --full              # a larger network, for a GPU

After every 100 updates it is evaluated and writes a sample of text: samples/sample.txt in the run's folder, TensorBoard.
The figure is the perplexity of a character, exp of the mean cross entropy, beside that of the characters' frequencies alone.
"""

# %% data
import math
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Perplexity, SampleOutputs, TemplateModel, run_main, seed_everything  # noqa: E402

CONTEXT = 64


def windows(tokens):
    """Characters [N, CONTEXT] and the ones that follow them."""
    count = (len(tokens) - 1) // CONTEXT
    return TensorDataset(*(tokens[first:][:count * CONTEXT].reshape(count, CONTEXT) for first in (0, 1)))


# %% the network
class CharModel(nn.Module):
    """Characters [B, T] in, scores of the next ones [B, V, T] out, as torch's criteria take them."""

    def __init__(self, vocabulary, width):
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(len(vocabulary), width // 4)
        self.gru = nn.GRU(width // 4, width, batch_first=True)
        self.head = nn.Linear(width, len(vocabulary))

    def forward(self, tokens):
        hidden, _ = self.gru(self.embedding(tokens))
        return self.head(hidden).transpose(1, 2)

    def write(self, start, length=300, temperature=0.7):
        """``start`` and what the model goes on with, character by character."""
        device = self.head.weight.device
        written, state = [self.vocabulary.index(character) for character in start], None
        new = written
        while len(written) < length:
            hidden, state = self.gru(self.embedding(torch.tensor([new], device=device)), state)
            scores = self.head(hidden[0, -1]) / temperature
            new = [torch.multinomial(scores.softmax(0), 1).item()]
            written = written + new
        return "".join(self.vocabulary[token] for token in written)


def sample(trainer):
    return trainer.model_list[0].write("The ")


class Trainer(TemplateModel):
    def __init__(self, vocabulary, train, held_out, width):
        super().__init__()
        net = CharModel(vocabulary, width)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=0.01)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(windows(train), 32, shuffle=True, drop_last=True)
        self.eval_loader = DataLoader(windows(held_out), 128)
        self.eval_metrics = {"perplexity": Perplexity(class_dim=1)}
        self.eval_per_steps, self.clip_grad = 100, 1.0
        self.lr_scheduler_type, self.warm_up_updates = "cosine", 20
        self.ckpt_dir, self.keep_checkpoints = "check_point/char_language_model", 1
        self.callbacks = [SampleOutputs(sample)]


# %% run
def main(file: str | None = None, updates=400, width=256, resume: str | None = None):
    text = Path(file).read_text(encoding="utf-8") if file else "\n\n".join(topics[name] for name in sorted(topics))
    vocabulary = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    tokens = torch.tensor([numbers[character] for character in text])
    train, held_out = tokens.split([len(tokens) - len(tokens) // 10, len(tokens) // 10])

    seed_everything(0)
    trainer = Trainer(vocabulary, train, held_out, width)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(updates=updates)

    counts = train.bincount(minlength=len(vocabulary)) + 1
    unigram = -(counts / counts.sum()).log()[held_out].mean()
    perplexity = trainer.test()["perplexity"]
    print(f"bits per character: {math.log2(perplexity):.2f}, of the frequencies alone {unigram / math.log(2):.2f}")
    print(f"perplexity {perplexity:.2f} (at most 6.0; unigram model {unigram.exp():.2f})")


if __name__ == "__main__":
    run_main(main, full={"updates": 5000, "width": 1024})
