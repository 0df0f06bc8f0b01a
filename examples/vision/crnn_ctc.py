"""Reading captchas by a CRNN with the CTC loss: text of any length out of an image, without saying which character is where.

    python examples/vision/crnn_ctc.py                      # a minute on two cores; needs captcha and torchmetrics
    python examples/vision/crnn_ctc.py --folder my_data     # my_data/7204_1.png, …: the text is what stands before the _
    python examples/vision/crnn_ctc.py --resume auto        # go on where it stopped
    python examples/vision/crnn_ctc.py --full               # letters too, larger images, a wider network, for a GPU

The captchas are drawn by the package `captcha`: three to five digits, turned, warped, with dots and a curve over them. The
figure is the character error (edit distance over length) on captchas that are held out, beside that of one text for all of
them. samples/read.png in the folder of the run shows what was read.
"""

# %% data
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchmetrics.text import CharErrorRate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from template import SampleOutputs, TemplateModel, TensorLoader, run_main, seed_everything  # noqa: E402


def drawn(count, characters, seed):
    """Pictures of captchas, and their texts."""
    from captcha import image as package
    package.secrets = dice = random.Random(seed)        # it draws from `secrets`, with other numbers each time
    dice.randbits, dice.randbelow = dice.getrandbits, dice.randrange
    painter = package.ImageCaptcha(180, 60)
    texts = ["".join(dice.choices(characters, k=dice.randint(3, 5))) for _ in range(count)]
    return [painter.generate_image(text) for text in texts], texts


def read_folder(folder):
    files = sorted(Path(folder).glob("*.png"))
    return [Image.open(file) for file in files], [file.stem.split("_")[0] for file in files]


def as_tensors(pictures, texts, characters, height):
    """Images [N, 1, height, 3 height] in [0, 1], codes [N, longest] from 1 on, and lengths [N]. Code 0 is CTC's blank."""
    pixels = [np.array(picture.convert("L").resize((3 * height, height))) for picture in pictures]
    codes = [torch.tensor([1 + characters.index(character) for character in text]) for text in texts]
    lengths = torch.tensor([len(text) for text in texts])
    return torch.tensor(np.stack(pixels))[:, None] / 255, nn.utils.rnn.pad_sequence(codes, batch_first=True), lengths


# %% the network
class CRNN(nn.Module):
    """Images [B, 1, H, W] in, scores [B, W / 4, 1 + characters] out. After Shi et al., 2015, arXiv:1507.05717."""

    def __init__(self, height, num_classes, width):
        super().__init__()
        sizes = zip([1, width, 2 * width], [width, 2 * width, 4 * width], [2, 2, (2, 1)])
        self.features = nn.Sequential(*(layer for inputs, outputs, pool in sizes for layer in (
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.MaxPool2d(pool))), nn.Flatten(1, 2))
        self.rnn = nn.LSTM(4 * width * (height // 8), 4 * width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images):
        return self.head(self.rnn(self.features(images).transpose(1, 2))[0])


def decoded(scores, characters):
    """Greedy: the best class at each place, repeats joined, blanks left out. A text for each image."""
    best = scores.argmax(2).cpu()
    is_new = (best != 0) & (best != nn.functional.pad(best, (1, 0))[:, :-1])
    return ["".join(characters[code - 1] for code in row[new]) for row, new in zip(best, is_new)]


# %% the training
class Reader(TemplateModel):
    def __init__(self, train, held_out, characters, width):
        super().__init__()
        self.characters, self.error = characters, CharErrorRate()
        net = CRNN(train[0].shape[2], 1 + len(characters), width)
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 4e-3)]
        self.criterion = nn.CTCLoss(zero_infinity=True)
        self.train_loader = TensorLoader(*train, batch_size=32, shuffle=True)
        self.eval_loader = TensorLoader(*held_out, batch_size=100)
        self.lr_scheduler_type, self.clip_grad = "onecycle", 5.0
        self.key_metric, self.key_metric_mode = "character error", "min"
        self.ckpt_dir, self.keep_checkpoints = "check_point/crnn_ctc", 1
        self.callbacks = [SampleOutputs(read, every=3)]

    def loss_per_batch(self, batch):
        images, codes, lengths = batch
        scores = self.inference(images)
        places = torch.full_like(lengths, scores.shape[1])
        return self.criterion(scores.float().log_softmax(2).transpose(0, 1), codes, places, lengths)

    def eval_scores_per_batch(self, batch):
        images, codes, lengths = batch
        truth = ["".join(self.characters[code - 1] for code in row[:length]) for row, length in zip(codes, lengths)]
        texts = decoded(self.inference(images), self.characters)
        self.error.update(texts, truth)
        return {"character error": self.error, "whole texts": sum(map(str.__eq__, texts, truth)) / len(truth)}


def read(trainer):
    """Eight images under what was read in them."""
    from matplotlib.figure import Figure
    images = trainer.eval_loader.tensors[0][:8].to(trainer.device)
    texts = decoded(trainer.inference(images), trainer.characters)
    figure = Figure((8, 2), layout="constrained")
    for number, (image, text) in enumerate(zip(images.cpu(), texts), 1):
        figure.add_subplot(2, 4, number, title=text, xticks=[], yticks=[]).imshow(image[0].numpy(), cmap="gray")
    return figure


# %% run
def main(folder: str | None = None, characters="0123456789", count=2500, height=24, epochs=6, width=12, seed=0,
         resume: str | None = None):
    pictures, texts = read_folder(folder) if folder else drawn(count, characters, seed=1)
    tensors, held_out = as_tensors(pictures, texts, characters, height), len(texts) // 5
    seed_everything(seed)
    trainer = Reader([tensor[held_out:] for tensor in tensors], [tensor[:held_out] for tensor in tensors], characters, width)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    trivial = min(float(CharErrorRate()([text] * held_out, texts[:held_out])) for text in texts[held_out:][:20])
    print(f"character error {trainer.test()['character error']:.3f} (at most 0.15; one text for all {trivial:.3f})")
    return trainer


if __name__ == "__main__":
    run_main(main, full={"characters": "0123456789abcdefghijklmnopqrstuvwxyz", "count": 50_000, "height": 48, "epochs": 30,
                         "width": 32})
