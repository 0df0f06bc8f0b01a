"""Object detection by torchvision's Faster R-CNN, trained with its own losses; the figure is COCO's mAP.

    python examples/vision_libraries/faster_rcnn.py                     # a minute on one core
    python examples/vision_libraries/faster_rcnn.py --folder my_data    # images, and annotations.json in COCO's form
    python examples/vision_libraries/faster_rcnn.py --pretrained        # begin with weights that torchvision downloads
    python examples/vision_libraries/faster_rcnn.py --resume auto       # go on where it stopped
    python examples/vision_libraries/faster_rcnn.py --full              # pretrained, larger and more images, for a GPU

It needs ``pip install torchvision torchmetrics pycocotools scipy matplotlib``, which ``make examples-vision`` does. The
images are made here: ellipses, rectangles and diamonds on a noisy ground. The figure stands beside the trivial answer that
each thing which stands out is of the most frequent class. samples/found.png in the folder of the run shows what was found.
"""

# %% data
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # in your project: from utils import …
from examples.vision_libraries import instances  # noqa: E402
from template import SampleOutputs, TemplateModel, run_main, seed_everything  # noqa: E402


# %% the network
def network(num_classes, size, pretrained):
    """``num_classes`` with the ground as 0. With all its weights but those of the last layer, or small and new."""
    if pretrained:
        net = fasterrcnn_resnet50_fpn(weights="DEFAULT", min_size=size, max_size=size)
        net.roi_heads.box_predictor = FastRCNNPredictor(net.roi_heads.box_predictor.cls_score.in_features, num_classes)
        return net
    stages = {"layer1": "0", "layer2": "1", "layer3": "2"}
    backbone = BackboneWithFPN(resnet18(weights=None), stages, in_channels_list=[64, 128, 256], out_channels=64)
    return FasterRCNN(
        backbone, min_size=size, max_size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(((8,), (12,), (16,), (24,)), ((0.7, 1.0, 1.4),) * 4),
        rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100, rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64, box_batch_size_per_image=32, box_detections_per_img=20,
        box_head=TwoMLPHead(64 * 7 * 7, 128), box_predictor=FastRCNNPredictor(128, num_classes))


# %% the training
class Detector(TemplateModel):
    def __init__(self, train, held_out, net, lr):
        super().__init__()
        self.model_list = [net]
        self.optimizer_list = [torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], lr)]
        self.train_loader = DataLoader(train, 8, shuffle=True, collate_fn=instances.lists)
        self.eval_loader = DataLoader(held_out, 25, collate_fn=instances.lists)
        self.eval_metrics = {"map": MeanAveragePrecision()}     # of torchmetrics, which adds map_50 and others
        self.lr_scheduler_type, self.key_metric = "onecycle", "map"
        self.ckpt_dir, self.keep_checkpoints = "check_point/faster_rcnn", 1
        self.callbacks = [SampleOutputs(found, every=4)]

    def loss_per_batch(self, batch):
        if not self.model_list[0].training:
            return {}                                   # in eval mode, torchvision's detectors give boxes and no losses
        losses = self.inference(batch)                  # net(images, targets)
        return {"tol_loss": sum(losses.values()), **losses}

    def eval_scores_per_batch(self, batch):
        images, targets = batch
        return self.metric(self.inference((images,)), targets)      # in a tuple: two images are not images and targets


def found(trainer):
    images = [trainer.eval_loader.dataset[number][0].to(trainer.device) for number in range(6)]
    return instances.pictured(images, trainer.inference((images,)), trainer.eval_loader.dataset.dataset.names)


# %% run
def main(folder: str | None = None, count=500, size=64, epochs=4, lr=2e-3, pretrained=False, seed=0,
         resume: str | None = None):
    train, held_out = instances.split(folder, count, size)
    seed_everything(seed)
    trainer = Detector(train, held_out, network(1 + len(train.dataset.names), size, pretrained), lr)
    trainer.check_init()
    if resume:
        trainer.load_state(resume)
    trainer.fit(epochs)
    trivial = instances.score_of_what_stands_out(held_out, "bbox")
    print(f"mAP {trainer.test()['map']:.3f} (at least 0.6; what stands out {trivial:.3f})")


if __name__ == "__main__":
    run_main(main, full={"count": 5000, "size": 256, "epochs": 20, "lr": 2e-4, "pretrained": True})
