"""What detectors share: data in COCO's form, made or read, boxes, pictures, and COCO's mean average precision.

torchmetrics' ``MeanAveragePrecision`` gives the same figure and more, and needs torchvision and pycocotools.

Shape legend: N boxes of an image, D detections, G true boxes, T thresholds of the IoU. Boxes are (left, top, right, bottom).
"""

import json
import math
from pathlib import Path

import numpy as np
import torch


def made(count, size, seed):
    """Images [count, 1, size, size] with up to five shapes each, and their annotations as COCO has them."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    images, annotations = 0.5 + 0.05 * torch.randn(count, 1, size, size, generator=random), []
    for number, (image,) in enumerate(images):
        taken = torch.zeros(size, size, dtype=torch.bool)
        for left, top, width, height, gray, kind in torch.rand(5, 6, generator=random).tolist():
            width, height, gray, kind = 10 + 12 * width, 10 + 12 * height, gray - 0.5, int(3 * kind)
            left, top = left * (size - width), top * (size - height)
            dx, dy = (2 * (x - left) / width - 1).abs(), (2 * (y - top) / height - 1).abs()
            box = torch.maximum(dx, dy) < 1
            if not (box & taken).any():
                taken |= box
                inside = (torch.hypot(dx, dy), torch.maximum(dx, dy), dx + dy)[kind] < 1
                image[inside] += 0.4 * gray + math.copysign(0.2, gray)
                polygon = outline(kind, left + width / 2, top + height / 2, width / 2, height / 2)
                annotations.append({"image_id": number, "category_id": kind + 1, "bbox": [left, top, width, height],
                                    "segmentation": [polygon]})
    categories = [{"id": number, "name": name} for number, name in enumerate(("ellipse", "rectangle", "diamond"), 1)]
    sizes = [{"id": number, "width": size, "height": size} for number in range(count)]
    return images, {"images": sizes, "annotations": annotations, "categories": categories}


def outline(kind, x, y, width, height):
    """A polygon around a shape that reaches so far from its center, as COCO has it: [x, y, x, y, …]."""
    turns = [2 * math.pi * step / 24 for step in range(24)]
    points = [[(math.cos(turn), math.sin(turn)) for turn in turns],
              [(-1, -1), (1, -1), (1, 1), (-1, 1)], [(0, -1), (1, 0), (0, 1), (-1, 0)]][kind]
    return [place for dx, dy in points for place in (x + dx * width, y + dy * height)]


def read(folder, size):
    """The same from a folder with annotations.json, which names the files of the images. These get one size, and gray."""
    from PIL import Image
    coco = json.loads(Path(folder, "annotations.json").read_text(encoding="utf-8"))
    pictures = [Image.open(Path(folder, image["file_name"])).convert("L") for image in coco["images"]]
    return torch.tensor(np.stack([np.array(picture.resize((size, size))) for picture in pictures]))[:, None] / 255, coco


class Detections(torch.utils.data.Dataset):
    """Each image with its boxes [N, 4], in shares of its size, and their classes [N] from 1 on."""

    def __init__(self, images, coco):
        self.images, self.boxes, self.classes = images, [], []
        numbers = {category["id"]: number for number, category in enumerate(coco["categories"], 1)}
        here = {image["id"]: [] for image in coco["images"]}
        for annotation in coco["annotations"]:
            here[annotation["image_id"]].append(annotation)
        for image in coco["images"]:
            found = here[image["id"]]
            boxes = torch.tensor([annotation["bbox"] for annotation in found]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            self.boxes.append(boxes / torch.tensor([image["width"], image["height"]] * 2))
            self.classes.append(torch.tensor([numbers[annotation["category_id"]] for annotation in found]).long())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.boxes[index], self.classes[index]


def collate(samples):
    """A batch: the images as one tensor, boxes and classes as lists, because images hold different numbers of them."""
    images, boxes, classes = zip(*samples)
    return {"images": torch.stack(images), "boxes": list(boxes), "classes": list(classes)}


# --- boxes ----------------------------------------------------------------------------------------------------------------

def iou(boxes, others):
    """Intersection over union of each of ``boxes`` [N, 4] with each of ``others`` [M, 4]: [N, M]."""
    corners = torch.minimum(boxes[:, None, 2:], others[:, 2:]) - torch.maximum(boxes[:, None, :2], others[:, :2])
    shared = corners.clamp(min=0).prod(2)
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others))
    return shared / (area[:, None] + other_area - shared).clamp(min=1e-12)


def corners(boxes):
    """Of boxes (center x, center y, width, height)."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def offsets_to(boxes, anchors):
    """From anchors (center x, center y, width, height) to boxes: offsets [N, 4] of about unit size, as SSD has them."""
    center, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([(center - anchors[:, :2]) / anchors[:, 2:] / 0.1, (sides / anchors[:, 2:]).log() / 0.2], 1)


def moved_by(offsets, anchors):
    """The boxes [..., N, 4] to which these offsets lead."""
    center, sides = anchors[:, :2] + 0.1 * offsets[..., :2] * anchors[:, 2:], anchors[:, 2:] * (0.2 * offsets[..., 2:]).exp()
    return corners(torch.cat([center, sides], -1))


def suppressed(boxes, scores, threshold=0.45, most=60):
    """Non-maximum suppression: which of the ``most`` surest boxes are left when those go that overlap a surer one."""
    order = scores.argsort(descending=True)[:most]
    overlap, is_left = (iou(boxes[order], boxes[order]) > threshold).cpu(), torch.ones(len(order), dtype=torch.bool)
    for number in range(len(order)):
        if is_left[number]:
            is_left[number + 1:] &= ~overlap[number, number + 1:]
    return order[is_left.to(order.device)]


def pictured(images, detections, names, least=0.5):
    """A matplotlib figure of six images, with the boxes whose score is at least ``least``."""
    from matplotlib.figure import Figure
    figure = Figure((9, 6), layout="constrained")
    for axes, image, (boxes, classes, scores) in zip(figure.subplots(2, 3).flat, images.cpu(), detections):
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0))
        axes.axis("off")
        for (left, top, right, bottom), label, score in zip(boxes.tolist(), classes.tolist(), scores.tolist()):
            if score >= least:
                axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=f"C{label}")
                axes.text(left, top, f"{names[label - 1]} {score:.2f}", color=f"C{label}", va="bottom", size=8)
    return figure


# --- how good detections are ----------------------------------------------------------------------------------------------

THRESHOLDS_T = torch.arange(0.5, 0.96, 0.05)
RECALLS = torch.arange(101, dtype=torch.float64) * 0.01


def hits(boxes, classes, scores, true_boxes, true_classes):
    """Of the detections in one image, rows [D, 2 + T] of class, score, and whether it hits a true box at each threshold.

    The surest detection comes first, and takes the box of its class that it overlaps most, of those that are left.
    """
    order = scores.argsort(descending=True, stable=True)
    overlap_DG = iou(boxes[order], true_boxes).masked_fill(classes[order, None] != true_classes, -1).cpu()
    is_free_TG = torch.ones(len(THRESHOLDS_T), len(true_boxes), dtype=torch.bool)
    is_hit_DT = torch.zeros(len(boxes), len(THRESHOLDS_T))
    for overlap_G, is_hit_T in zip(overlap_DG, is_hit_DT):
        if len(true_boxes):
            best_T, which_T = torch.where(is_free_TG, overlap_G, -1).max(1)
            is_hit_T[:] = best_T >= THRESHOLDS_T - 1e-6
            is_free_TG[torch.arange(len(THRESHOLDS_T)), which_T] &= is_hit_T == 0
    return torch.cat([torch.stack([classes[order], scores[order]], 1).cpu(), is_hit_DT], 1)


def mean_average_precision(pred, true_classes):
    """Mean over classes that occur and thresholds of the area below precision by recall, at 101 values of recall.

    ``pred`` are rows of ``hits``, and ``true_classes`` [G] those of all true boxes: ``Stored(mean_average_precision)``.
    """
    rows, values = pred[pred[:, 1].argsort(descending=True, stable=True)].double(), []
    for label in true_classes.unique():
        is_hit = rows[rows[:, 0] == label, 2:]
        found = is_hit.cumsum(0)
        precision = found / torch.arange(1, len(found) + 1)[:, None]
        precision = precision.flip(0).cummax(0).values.flip(0) if len(found) else precision
        recall = found / (true_classes == label).sum()
        for column in range(is_hit.shape[1]):
            places = torch.searchsorted(recall[:, column].contiguous(), RECALLS)
            values.append(torch.cat([precision[:, column], torch.zeros(1, dtype=torch.float64)])[places].mean())
    return torch.stack(values).mean()


def score_of_what_stands_out(samples, label, least=0.12):
    """The same of an answer that needs no training: what is brighter or darker than the rest of an image is a ``label``."""
    from scipy import ndimage
    rows = []
    for image, *true in samples:
        smooth = ndimage.median_filter(image[0].numpy(), 3)
        parts = ndimage.find_objects(ndimage.label(abs(smooth - np.median(smooth)) > least)[0])
        boxes = torch.tensor([[x.start, y.start, x.stop, y.stop] for y, x in parts]).reshape(-1, 4)
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(1).values > 3] / image.shape[-1]
        rows.append(hits(boxes, label.expand(len(boxes)), torch.ones(len(boxes)), *true))
    return mean_average_precision(torch.cat(rows), torch.cat([classes for *_, classes in samples]))
