"""Fine-tuning on chats of several rounds: what the assistant says counts, and what it is told does not.

    python examples/language/chat.py                        # a quarter of a minute on two cores
    python examples/language/chat.py --file my.jsonl        # {"messages": [{"role": "user", "content": "…"}, …]} on a line
    python examples/language/chat.py --model HuggingFaceTB/SmolLM2-135M-Instruct    # a model of Hugging Face, or a folder
    python examples/language/chat.py --resume auto          # go on where it stopped
    python examples/language/chat.py --full                 # more chats and a larger network, for a GPU

It needs ``pip install transformers``. Without ``--model`` the network is a small Llama with random weights, and the chats
are made by the script: a customer asks, and asks again ("and figs ?"), which only the round before explains. The figure is
the share of chats in which every answer is right to the last token, of those that were held out, beside that of always
giving the answers of the first chat.
"""

# %% data
import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import Mean, SampleOutputs, TemplateModel, run_main, seed_everything  # noqa: E402

GOODS = {"apples": ("red", "2"), "pears": ("green", "3"), "plums": ("blue", "5"), "figs": ("purple", "7"),
         "lemons": ("yellow", "4"), "carrots": ("orange", "1")}
QUESTIONS = ("what colour are {} ?", "{} are {} ."), ("what do {} cost ?", "{} cost {} .")
TEMPLATE = ("{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|> {% endif %}")


def made(count):
    """Lines of JSON: two to four rounds each."""
    chance, lines = random.Random(0), []
    for _ in range(count):
        messages, kind = [], None
        for name in chance.sample(list(GOODS), chance.randint(2, 4)):
            is_again = kind is not None and chance.random() < 0.6
            kind = kind if is_again else chance.randrange(2)
            question, answer = QUESTIONS[kind]
            messages += [{"role": "user", "content": f"and {name} ?" if is_again else question.format(name)},
                         {"role": "assistant", "content": answer.format(name, GOODS[name][kind])}]
        lines.append(json.dumps({"messages": messages}))
    return list(dict.fromkeys(lines))


def small_tokenizer(chats):
    """A token for each word of the chats."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<|unknown|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    tokenizer.train_from_iterator((message["content"] for chat in chats for message in chat),
                                  trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, unk_token="<|unknown|>",
                                   pad_token="<|pad|>", eos_token="<|end|>")


def encoded(chat, tokenizer):
    """Tokens of a chat, and the labels: those of the assistant, and -100 for all that it is told."""
    def tokens_of(messages, **options):
        return tokenizer.apply_chat_template(messages, return_dict=False, **options)

    tokens = tokens_of(chat)
    labels = torch.full((len(tokens),), -100)
    for number, message in enumerate(chat):
        if message["role"] == "assistant":
            part = slice(len(tokens_of(chat[:number], add_generation_prompt=True)), len(tokens_of(chat[:number + 1])))
            labels[part] = torch.tensor(tokens[part])
    return torch.tensor(tokens), labels


def batch_of(samples):
    tokens, labels = zip(*samples)
    return {"input_ids": pad_sequence(tokens, True, 0), "labels": pad_sequence(labels, True, -100),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in tokens], True, 0)}


# %% training: the network returns its own loss, of the labels that are not -100
class Trainer(TemplateModel):
    def __init__(self, net, tokenizer, train, held_out, lr):
        super().__init__()
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01)]
        train, tested = ([encoded(chat, tokenizer) for chat in chats] for chats in (train, held_out))
        self.train_loader = DataLoader(train, 16, shuffle=True, collate_fn=batch_of)
        self.eval_loader = DataLoader(tested, 64, collate_fn=batch_of)
        self.lr_scheduler_type, self.warm_up_updates, self.clip_grad = "cosine", 20, 1.0
        self.ckpt_dir, self.keep_checkpoints = "check_point/chat", 1

        def answer(trainer):
            """To the last question of a chat, in the network's own words."""
            told = tokenizer.apply_chat_template(held_out[0][:-1], add_generation_prompt=True, return_tensors="pt",
                                                 return_dict=False).to(trainer.device)
            said = net.generate(told, attention_mask=torch.ones_like(told), max_new_tokens=20, do_sample=False)
            return tokenizer.decode(said[0])

        self.callbacks = [SampleOutputs(answer)]

    def metric(self, pred, y):
        """Whether every token of every answer is the likeliest one, so that greedy decoding would say it."""
        is_right = (pred.logits[:, :-1].argmax(-1) == y[:, 1:]) | (y[:, 1:] == -100)
        return {"exact": Mean().update(is_right.all(1).float().mean(), len(y))}

    def count_samples(self, batch):
        return (batch["labels"] != -100).sum()


# %% run
def main(file: str | None = None, model: str | None = None, epochs=5, count=700, width=64, layers=2, lr=3e-3,
         resume: str | None = None):
    lines = Path(file).read_text("utf-8").splitlines() if file else made(count)
    chats = [json.loads(line)["messages"] for line in lines]
    held_out, train = chats[::7], [chat for number, chat in enumerate(chats) if number % 7]
    seed_everything(0)
    tokenizer = AutoTokenizer.from_pretrained(model) if model else small_tokenizer(chats)
    net = AutoModelForCausalLM.from_pretrained(model) if model else LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id))
    trainer = Trainer(net, tokenizer, train, held_out, lr)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    first = [message["content"] for message in train[0][1::2]]
    trivial = sum([message["content"] for message in chat[1::2]] == first for chat in held_out) / len(held_out)
    print(f"exact chats {trainer.test()['exact']:.3f} (at least 0.8; answers of the first chat {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"epochs": 5, "count": 20_000, "width": 256, "layers": 6, "lr": 1e-3})
