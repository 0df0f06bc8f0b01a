"""Object detection from scratch, after SSD: anchors, hard negative mining, non-maximum suppression, and COCO's mAP.

    python examples/vision/ssd.py                           # a minute on two cores; needs scipy and matplotlib
    python examples/vision/ssd.py --folder my_data          # images, and annotations.json in COCO's form; needs pillow
    python examples/vision/ssd.py --resume auto             # go on where it stopped
    python examples/vision/ssd.py --full                    # a wider network and more images, for a GPU

The images are made here: ellipses, rectangles and diamonds on a noisy ground. The figure is COCO's mean average precision,
beside the trivial answer that each thing which stands out is of the most frequent class. samples/found.png in the folder of
the run shows what was found. After Liu et al., 2015, arXiv:1512.02325; what detectors share is in detection.py.

Shape legend: B images, A anchors, C classes with the ground as 0, N boxes of an image, (left, top, right, bottom) in shares.
"""

# %% data
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torch.utils.data import DataLoader, Subset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from examples.vision import detection  # noqa: E402
from template import SampleOutputs, Stored, TemplateModel, run_main, seed_everything  # noqa: E402


# %% anchors and boxes
def make_anchors(size):
    """Squares (center x, center y, width, height) [A, 4]: small ones on the fine map, large ones on the coarse map."""
    anchors = []
    for cells, sides in ((size // 4, (0.2, 0.28)), (size // 8, (0.36, 0.46))):
        places = (torch.arange(cells) + 0.5) / cells
        y, x, side = torch.meshgrid(places, places, torch.tensor(sides), indexing="ij")
        anchors.append(torch.stack([x, y, side, side], 3).reshape(-1, 4))
    return torch.cat(anchors)


def assigned(boxes, classes, anchors):
    """What each anchor should say: a class [A], 0 where it covers no box, and offsets [A, 4]."""
    if not len(boxes):
        return anchors.new_zeros(len(anchors), dtype=torch.long), torch.zeros_like(anchors)
    best, which = (overlap := detection.iou(detection.corners(anchors), boxes)).max(1)
    nearest = overlap.argmax(0)                         # each box has one anchor at least
    best[nearest], which[nearest] = 1.0, torch.arange(len(boxes), device=boxes.device)
    return torch.where(best >= 0.5, classes[which], 0), detection.offsets_to(boxes[which], anchors)


# %% the network
class SSD(nn.Module):
    """Images [B, 1, H, W] in, scores [B, A, C] and offsets [B, A, 4] out."""

    def __init__(self, num_classes, width, size):
        super().__init__()
        def block(inputs, outputs, stride=1):
            return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        fine = nn.Sequential(*block(1, width, 2), *block(width, 2 * width, 2), *block(2 * width, 2 * width))
        self.stages = nn.ModuleList([fine, nn.Sequential(*block(2 * width, 4 * width, 2), *block(4 * width, 4 * width))])
        outputs = 2 * (num_classes + 4)
        self.heads = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=1) for inputs in (2 * width, 4 * width))
        self.register_buffer("anchors", make_anchors(size), persistent=False)

    def forward(self, x):
        said = []
        for stage, head in zip(self.stages, self.heads):
            x = stage(x)
            said.append(head(x).unflatten(1, (2, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3))
        return torch.cat(said, 1).split([said[0].shape[2] - 4, 4], 2)


# %% the training
class Detector(TemplateModel):
    def __init__(self, train, held_out, names, width):
        super().__init__()
        self.names, net = names, SSD(1 + len(names), width, train[0][0].shape[-1])
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW(net.parameters(), 4e-3)]
        self.train_loader = DataLoader(train, 16, shuffle=True, collate_fn=detection.collate)
        self.eval_loader = DataLoader(held_out, 50, collate_fn=detection.collate)
        self.lr_scheduler_type, self.key_metric = "onecycle", "mAP"
        self.ckpt_dir, self.keep_checkpoints = "check_point/ssd", 1
        self.callbacks = [SampleOutputs(found, every=4)]

    def loss_per_batch(self, batch):
        scores, offsets = self.inference(batch["images"])
        told = [assigned(*true, self.model_list[0].anchors) for true in zip(batch["boxes"], batch["classes"])]
        classes_BA, offsets_BA4 = map(torch.stack, zip(*told))
        is_box = classes_BA > 0
        losses = cross_entropy(scores.transpose(1, 2), classes_BA, reduction="none")
        hardest = losses.detach().masked_fill(is_box, -1).argsort(1, descending=True).argsort(1)    # their ranks
        counts = is_box | (hardest < 3 * is_box.sum(1, keepdim=True).clamp(min=1))
        num_boxes = is_box.sum().clamp(min=1)
        of_class, of_box = (losses * counts).sum(), smooth_l1_loss(offsets[is_box], offsets_BA4[is_box], reduction="sum")
        return {"tol_loss": (of_class + of_box) / num_boxes, "class": of_class / num_boxes, "box": of_box / num_boxes}

    def detect(self, images):
        """For each image, boxes [N, 4], their classes [N] and scores [N]."""
        scores, offsets = self.inference(images)
        best, classes = scores.softmax(2)[..., 1:].max(2)
        for rows in zip(detection.moved_by(offsets, self.model_list[0].anchors), classes + 1, best):
            boxes, labels, sure = (row[rows[2] > 0.05] for row in rows)
            left = detection.suppressed(boxes + 2 * labels[:, None], sure)      # moved, boxes of two classes do not overlap
            yield boxes[left], labels[left], sure[left]

    def eval_scores_per_batch(self, batch):
        truth = zip(batch["boxes"], batch["classes"])
        rows = [detection.hits(*said, *true) for said, true in zip(self.detect(batch["images"]), truth)]
        return {"mAP": Stored(detection.mean_average_precision).update(torch.cat(rows), torch.cat(batch["classes"]))}


def found(trainer):
    images = torch.stack([trainer.eval_loader.dataset[number][0] for number in range(6)]).to(trainer.device)
    return detection.pictured(images, trainer.detect(images), trainer.names)


# %% run
def main(folder: str | None = None, count=500, size=48, epochs=20, width=16, seed=0, resume: str | None = None):
    images, coco = detection.read(folder, size) if folder else detection.made(count, size, seed=1)
    num_held_out, names = len(images) // 5, [category["name"] for category in coco["categories"]]
    samples = detection.Detections(images, coco)
    held_out, train = Subset(samples, range(num_held_out)), Subset(samples, range(num_held_out, len(samples)))
    seed_everything(seed)
    trainer = Detector(train, held_out, names, width)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    trivial = detection.score_of_what_stands_out(held_out, torch.cat(samples.classes).mode().values)
    print(f"mAP {trainer.test()['mAP']:.3f} (at least 0.5; what stands out {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"count": 10_000, "epochs": 60, "width": 64})
