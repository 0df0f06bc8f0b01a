"""A decoder in the form of Llama, trained on prose from Python's documentation, that writes with a cache of keys and values.

    python examples/language/llama.py                     # a minute on two cores; needs torch alone
    python examples/language/llama.py --file my.txt       # any text; two empty lines stand between its documents
    python examples/language/llama.py --resume auto       # go on where it stopped
    python examples/language/llama.py --full              # a larger network, for a GPU

RMSNorm, rotary positions, grouped keys and values, SwiGLU. An update takes two batches, weighed by tokens; weight decay goes
by role; the rate warms up and then follows a cosine. The figure is the perplexity of a piece (word or character) in
documents that were held out, beside that of a model which counted the pairs of pieces.
"""

# %% data: pieces, which are the most frequent words, and characters for all other words
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Perplexity, SampleOutputs, TemplateModel, build_optimizer, run_main, seed_everything  # noqa: E402

CONTEXT, PADDING = 64, -100  # the criterion leaves out -100
words = re.compile(r" ?\w+| +|\s|[^\w\s]").findall
linear = partial(nn.Linear, bias=False)


def windows(documents):
    """Tokens [N, CONTEXT] and the ones that follow them; behind the end of a document comes PADDING."""
    parts = [tokens[start:start + CONTEXT + 1] for tokens in documents for start in range(0, len(tokens) - 1, CONTEXT)]
    tokens = torch.tensor([part + [PADDING] * (CONTEXT + 1 - len(part)) for part in parts])
    return TensorDataset(tokens[:, :-1].clamp(min=0), tokens[:, 1:].contiguous())


# %% the network. B batch, T new tokens, S tokens that are looked at, H heads, D width of a head, V pieces
def rotated(x_BHTD, rotary):
    """Feature i turns with feature i + D/2, by an angle for each position, and the later ones by less."""
    first, second = x_BHTD.chunk(2, -1)
    return x_BHTD * rotary[0] + torch.cat([-second, first], -1) * rotary[1]


class Block(nn.Module):
    def __init__(self, width, heads, groups):
        super().__init__()
        self.depth = width // heads
        self.query, self.out = linear(width, width), linear(width, width)
        self.key, self.value = linear(width, groups * self.depth), linear(width, groups * self.depth)  # fewer heads
        self.gate, self.up, self.down = linear(width, 3 * width), linear(width, 3 * width), linear(3 * width, width)
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5)

    def forward(self, x, rotary, cache=None):
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (-1, self.depth)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        q, k = rotated(q, rotary), rotated(k, rotary)
        if cache is not None:
            k, v = cache[self] = [torch.cat(pair, 2) for pair in zip(cache[self], (k, v))] if self in cache else [k, v]
        mask_TS = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - q.shape[2])
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask_TS, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Tokens [B, T] in, scores of the next ones [B, V, T] out. A ``cache`` (a dict, empty at first) holds what was read."""

    def __init__(self, vocabulary, width=128, layers=3, heads=4, groups=2, positions=1024):
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, width), linear(width, vocabulary)
        self.blocks, self.norm = nn.ModuleList(Block(width, heads, groups) for _ in range(layers)), nn.RMSNorm(width, 1e-5)
        angles = torch.outer(torch.arange(positions), 10_000.0 ** -torch.arange(0, 1, 2 * heads / width)).repeat(1, 2)
        self.register_buffer("rotary", torch.stack([angles.cos(), angles.sin()]), persistent=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens, cache=None):
        read = next(iter(cache.values()))[0].shape[2] if cache else 0
        x, rotary = self.embedding(tokens), self.rotary[:, read:read + tokens.shape[1]]
        for block in self.blocks:
            x = block(x, rotary, cache)
        return self.head(self.norm(x)).transpose(1, 2)

    def write(self, tokens, length=80, temperature=0.7):
        new, written, cache = tokens, list(tokens), {}
        for _ in range(length):
            scores = self(torch.tensor([new], device=self.head.weight.device), cache)[0, :, -1] / temperature
            written += (new := [torch.multinomial(scores.softmax(0), 1).item()])
        return written


# %% training
class Trainer(TemplateModel):
    def __init__(self, pieces, train, held_out, width, layers):
        super().__init__()
        self.model_list = [net := Llama(len(pieces), width, layers)]
        self.optimizer_list = build_optimizer("AdamW", net, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
        self.criterion, self.eval_metrics = nn.CrossEntropyLoss(), {"perplexity": Perplexity(PADDING, class_dim=1)}
        self.train_loader = DataLoader(windows(train), 8, shuffle=True)
        self.eval_loader = DataLoader(windows(held_out), 64)
        self.accumulate_steps, self.clip_grad, self.lr_scheduler_type, self.warm_up_updates = 2, 1.0, "cosine", 40
        self.ckpt_dir, self.keep_checkpoints = "check_point/llama", 1
        self.callbacks = [SampleOutputs(lambda trainer: "".join(pieces[number] for number in net.write(train[0][:50])))]

    def count_samples(self, batch):
        return (batch[1] != PADDING).sum()


# %% run
def main(file: str | None = None, updates=360, width=128, layers=3, vocabulary=1500, resume: str | None = None):
    texts = Path(file).read_text(encoding="utf-8").split("\n\n\n") if file else [topics[name] for name in sorted(topics)]
    frequent = Counter(word for text in texts for word in words(text) if len(word) > 1).most_common(vocabulary)
    pieces = sorted(set("".join(texts))) + [word for word, _ in frequent]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokens = [[numbers[piece] for word in words(text) for piece in ([word] if word in numbers else word)] for text in texts]
    held_out, train = tokens[::10], [document for number, document in enumerate(tokens) if number % 10]
    seed_everything(0)
    trainer = Trainer(pieces, train, held_out, width, layers)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(updates=updates)
    before, after, held_before, held_after = (torch.tensor([number for tokens in part for number in tokens[place]])
                                              for part in (train, held_out) for place in (slice(-1), slice(1, None)))
    pairs = torch.full(2 * [len(pieces)], 0.02).index_put_((before, after), torch.tensor(1.0), accumulate=True)
    counted = (pairs / pairs.sum(1, keepdim=True))[held_before, held_after].log().mean().neg().exp()
    print(f"perplexity {trainer.test()['perplexity']:.1f} (at most 45; counted pairs {counted:.1f})")


if __name__ == "__main__":
    run_main(main, full={"updates": 3000, "width": 512, "layers": 8, "vocabulary": 4000})
