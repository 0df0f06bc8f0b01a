"""Object detection by YOLO of ultralytics, trained with its own loss in a loop that you can read; the figure is COCO's mAP.

    python examples/vision_libraries/yolo.py                        # a minute on one core
    python examples/vision_libraries/yolo.py --folder my_data       # images, and annotations.json in COCO's form
    python examples/vision_libraries/yolo.py --pretrained yolov8n.pt    # begin with weights that ultralytics downloads
    python examples/vision_libraries/yolo.py --resume auto          # go on where it stopped
    python examples/vision_libraries/yolo.py --full                 # pretrained, larger and more images, for a GPU

It needs ``pip install ultralytics torchmetrics pycocotools scipy matplotlib``, which ``make examples-vision`` does.
Ultralytics has the AGPL as its license. The network comes from a YAML file in the package, and nothing is downloaded. The
images are made here: ellipses, rectangles and diamonds on a noisy ground. The figure stands beside the trivial answer that
each thing which stands out is of the most frequent class. samples/found.png in the folder of the run shows what was found.
"""

# %% data
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from examples.vision_libraries import instances  # noqa: E402
from template import EMA, SampleOutputs, TemplateModel, run_main, seed_everything  # noqa: E402


def collate(samples):
    """A batch as ultralytics has it: the boxes of all images in one tensor, beside the number of their image."""
    images, targets = instances.lists(samples)
    boxes, labels = (torch.cat([target[name] for target in targets]) for name in ("boxes", "labels"))
    numbers = torch.tensor([number for number, target in enumerate(targets) for _ in target["labels"]])
    return {"img": torch.stack(images), "bboxes": box_convert(boxes / images[0].shape[-1], "xyxy", "cxcywh"),
            "cls": labels - 1, "batch_idx": numbers, "targets": targets}


# %% the network
def network(cfg, num_classes, pretrained):
    net = DetectionModel(cfg, nc=num_classes, verbose=False)
    net.args = get_cfg()                                # the loss reads its weights there
    if pretrained:
        net.load(YOLO(pretrained).model)                # the weights that fit; the others are new
    return net


# %% the training
class Detector(TemplateModel):
    def __init__(self, train, held_out, net, lr, batch_size):
        super().__init__()
        self.names, self.net, self.model_list = train.dataset.names, net, [net]
        self.optimizer_list = [torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], lr)]
        self.train_loader = DataLoader(train, batch_size, shuffle=True, collate_fn=collate)
        self.eval_loader = DataLoader(held_out, 50, collate_fn=collate)
        self.eval_metrics = {"map": MeanAveragePrecision()}     # of torchmetrics, which adds map_50 and others
        self.lr_scheduler_type, self.key_metric, self.one_forward = "onecycle", "map", True
        self.ckpt_dir, self.keep_checkpoints = "check_point/yolo", 1
        self.callbacks = [EMA(0.98), SampleOutputs(found)]

    def count_samples(self, batch):
        return len(batch["img"])

    def loss_per_batch(self, batch):
        sums, parts = self.net.loss(batch, self.inference(batch["img"]))        # v8DetectionLoss of what the net gave
        return {"tol_loss": sums.sum() / len(batch["img"]), **parts}            # it multiplies by the number of images

    def detect(self, images):
        """For each image boxes [N, 4], labels [N] and scores [N], as torchvision's detectors give them."""
        return [{"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long() + 1}
                for rows in non_max_suppression(self.inference(images), conf_thres=0.01, iou_thres=0.7, max_det=20)]

    def eval_scores_per_batch(self, batch):
        return self.metric(self.detect(batch["img"]), batch["targets"])


def found(trainer):
    images = torch.stack([trainer.eval_loader.dataset[number][0] for number in range(6)]).to(trainer.device)
    return instances.pictured(images, trainer.detect(images), trainer.names, least=0.25)


# %% run
def main(folder: str | None = None, cfg="yolov8n.yaml", count=400, size=64, epochs=12, lr=4e-3, batch_size=16,
         pretrained: str | None = None, seed=0, resume: str | None = None):
    train, held_out = instances.split(folder, count, size)
    seed_everything(seed)
    trainer = Detector(train, held_out, network(cfg, len(train.dataset.names), pretrained), lr, batch_size)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    for epoch in trainer.epochs(epochs):
        trainer.train_loop()
        if epoch % 5 == 0 or epoch == epochs:
            trainer.eval()
    trivial = instances.score_of_what_stands_out(held_out, "bbox")
    print(f"mAP {trainer.test()['map']:.3f} (at least 0.2; what stands out {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"count": 5000, "size": 320, "epochs": 50, "lr": 1e-3, "pretrained": "yolov8n.pt"})
