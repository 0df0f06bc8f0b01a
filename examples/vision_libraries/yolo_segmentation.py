"""Instance segmentation by YOLO of ultralytics, trained with its own loss: which pixels belong to which object?

    python examples/vision_libraries/yolo_segmentation.py                       # a minute on one core
    python examples/vision_libraries/yolo_segmentation.py --folder my_data      # images, and annotations.json in COCO's form
    python examples/vision_libraries/yolo_segmentation.py --pretrained yolov8n-seg.pt   # with weights that are downloaded
    python examples/vision_libraries/yolo_segmentation.py --resume auto         # go on where it stopped
    python examples/vision_libraries/yolo_segmentation.py --full            # pretrained, larger and more images, for a GPU

It needs what yolo.py needs, whose subclass it is: masks are added to its batches, its loss and its answers. The figure is
COCO's mAP of masks, beside the trivial answer that each thing which stands out is of the most frequent class.
samples/found.png in the folder of the run shows what was found.
"""

# %% data
import sys
from pathlib import Path

import torch
from torchmetrics.detection import MeanAveragePrecision
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import SegmentationModel
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import process_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from examples.vision_libraries import instances, yolo  # noqa: E402
from template import run_main, seed_everything  # noqa: E402


def collate(samples):
    """A batch as ultralytics has it, with the masks of all objects [N, S, S]."""
    batch = yolo.collate(samples)
    return {**batch, "masks": torch.cat([target["masks"] for target in batch["targets"]])}


# %% the network
def network(cfg, num_classes, pretrained):
    net = SegmentationModel(cfg, nc=num_classes, verbose=False)
    net.args = get_cfg(overrides={"overlap_mask": False})       # a mask for each object, and not one for all of an image
    if pretrained:
        net.load(YOLO(pretrained).model)                        # the weights that fit; the others are new
    return net


# %% the training
class Segmenter(yolo.Detector):
    def __init__(self, train, held_out, net, lr, batch_size):
        super().__init__(train, held_out, net, lr, batch_size)
        self.train_loader, self.eval_loader = (yolo.DataLoader(part, size, shuffle=part is train, collate_fn=collate)
                                               for part, size in ((train, batch_size), (held_out, 50)))
        self.eval_metrics = {"map": MeanAveragePrecision(iou_type="segm")}
        self.ckpt_dir = "check_point/yolo_segmentation"

    def detect(self, images):
        """As that of yolo.py, and masks [N, S, S]: of each object, weights of 32 masks that its image has."""
        said = self.inference(images)
        rows = non_max_suppression(said[0][0], conf_thres=0.01, iou_thres=0.7, max_det=20, nc=len(self.names))
        return [{"boxes": row[:, :4], "scores": row[:, 4], "labels": row[:, 5].long() + 1,
                 "masks": process_mask(masks, row[:, 6:], row[:, :4], images.shape[2:], upsample=True).bool()}
                for row, masks in zip(rows, said[1]["proto"])]


# %% run
def main(folder: str | None = None, cfg="yolov8n-seg.yaml", count=400, size=64, epochs=12, lr=4e-3, batch_size=16,
         pretrained: str | None = None, seed=0, resume: str | None = None):
    train, held_out = instances.split(folder, count, size, with_masks=True)
    seed_everything(seed)
    trainer = Segmenter(train, held_out, network(cfg, len(train.dataset.names), pretrained), lr, batch_size)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    for epoch in trainer.epochs(epochs):
        trainer.train_loop()
        if epoch % 5 == 0 or epoch == epochs:
            trainer.eval()
    trivial = instances.score_of_what_stands_out(held_out, "segm")
    print(f"mask mAP {trainer.test()['map']:.3f} (at least 0.2; what stands out {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"count": 5000, "size": 320, "epochs": 50, "lr": 1e-3, "pretrained": "yolov8n-seg.pt"})
