"""What the detectors of this folder share: data in COCO's form, made or read, pictures, and what a trivial answer reaches.

Targets and answers are those of torchvision's detectors, which torchmetrics' ``MeanAveragePrecision`` takes as they are.

Shape legend: N objects of an image, S its height and width. Boxes are (left, top, right, bottom).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as run_lengths
from torch.utils.data import Dataset, Subset
from torchmetrics.detection import MeanAveragePrecision

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from examples.vision import detection  # noqa: E402


class Instances(Dataset):
    """Each image [3, S, S] in [0, 1], and its target: boxes [N, 4] in pixels, labels [N] from 1 on, masks [N, S, S].

    Args:
        coco: what a file of COCO's annotations holds.
        open_image: function of the number of an image, and of what ``coco`` says of it, to a PIL image.
        size: S, to which images, boxes and masks are brought.
        with_masks: False leaves out the masks, which take most of the time.
    """

    def __init__(self, coco, open_image, size, with_masks):
        self.infos, self.open_image, self.size, self.with_masks = coco["images"], open_image, size, with_masks
        self.names = [category["name"] for category in coco["categories"]]
        self.labels = {category["id"]: label for label, category in enumerate(coco["categories"], 1)}
        self.found = {info["id"]: [] for info in self.infos}
        for annotation in coco["annotations"]:      # crowds have no single box, and a box without an area stops torchvision
            if not annotation.get("iscrowd") and min(annotation["bbox"][2:]) > 0:
                self.found[annotation["image_id"]].append(annotation)

    def __len__(self):
        return len(self.infos)

    def __getitem__(self, index):
        info, size = self.infos[index], self.size
        image, found = self.open_image(index, info).convert("RGB").resize((size, size)), self.found[info["id"]]
        boxes = torch.tensor([annotation["bbox"] for annotation in found]).float().reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {"boxes": boxes * size / torch.tensor([info["width"], info["height"]] * 2),
                  "labels": torch.tensor([self.labels[annotation["category_id"]] for annotation in found]).long()}
        if self.with_masks:
            masks = [self.mask(annotation["segmentation"], info) for annotation in found]
            target["masks"] = torch.tensor(np.array(masks), dtype=torch.uint8).reshape(-1, size, size)
        return torch.tensor(np.array(image)).permute(2, 0, 1) / 255, target

    def mask(self, segmentation, info):
        """[S, S] of 0 and 1. COCO has polygons, or run lengths where an object is in many parts."""
        encoded = run_lengths.frPyObjects(segmentation, info["height"], info["width"])
        encoded = run_lengths.merge(encoded) if isinstance(encoded, list) else encoded
        mask = Image.fromarray(run_lengths.decode(encoded))
        return np.array(mask.resize((self.size, self.size), Image.Resampling.NEAREST))


def split(folder, count, size, with_masks=False):
    """Datasets for training, and of a fifth that is held out.

    Args:
        folder: holds annotations.json in COCO's form, and the images that it names; None: shapes are made.
        count: of the images that are made.
    """
    if folder is None:
        made, coco = detection.made(count, size, seed=1)
        pixels = (made[:, 0].clamp(0, 1) * 255).byte().numpy()
        instances = Instances(coco, lambda index, info: Image.fromarray(pixels[index]), size, with_masks)
    else:
        coco = json.loads(Path(folder, "annotations.json").read_text(encoding="utf-8"))
        instances = Instances(coco, lambda index, info: Image.open(Path(folder, info["file_name"])), size, with_masks)
    num_held_out = len(instances) // 5
    return Subset(instances, range(num_held_out, len(instances))), Subset(instances, range(num_held_out))


def lists(samples):
    """A batch: lists of images and of targets, as torchvision's detectors take them."""
    return tuple(map(list, zip(*samples)))


def pictured(images, answers, names, least=0.5):
    """A matplotlib figure of six images [3, S, S] and what was found in them with a score of at least ``least``."""
    from matplotlib.figure import Figure
    figure = Figure((9, 6), layout="constrained")
    for axes, image, answer in zip(figure.subplots(2, 3).flat, images, answers):
        axes.imshow(image.cpu().permute(1, 2, 0).numpy(), extent=(0, image.shape[2], image.shape[1], 0))
        axes.axis("off")
        answer = {name: values[answer["scores"] >= least].cpu() for name, values in answer.items()}
        for (left, top, right, bottom), label in zip(answer["boxes"].tolist(), answer["labels"].tolist()):
            axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=f"C{label}")
            axes.text(left, top, names[label - 1], color=f"C{label}", va="bottom", size=8)
        for mask, label in zip(answer.get("masks", ()), answer["labels"].tolist()):
            axes.contour(mask, [0.5], colors=f"C{label}", linestyles="dotted")
    return figure


def score_of_what_stands_out(held_out, kind, least=0.12):
    """COCO's mAP of an answer without training: what is brighter or darker than the rest is of the most frequent class.

    Args:
        kind: "bbox" or "segm".
    """
    from scipy import ndimage
    images, targets = lists(held_out)
    label, score = torch.cat([target["labels"] for target in targets]).mode().values, MeanAveragePrecision(iou_type=kind)
    for image, target in zip(images, targets):
        smooth = ndimage.median_filter(image[0].numpy(), 3)
        parts, count = ndimage.label(abs(smooth - np.median(smooth)) > least)
        places = [place for place in ndimage.find_objects(parts) if min(part.stop - part.start for part in place) > 3]
        masks = torch.tensor(parts) == torch.tensor([parts[place].max() for place in places]).reshape(-1, 1, 1)
        boxes = torch.tensor([[x.start, y.start, x.stop, y.stop] for y, x in places]).float().reshape(-1, 4)
        score.update([{"boxes": boxes, "masks": masks, "labels": label.expand(len(boxes)),
                       "scores": torch.ones(len(boxes))}], [target])
    return score.compute()["map"]
