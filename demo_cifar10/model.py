"""A small residual network for 32 x 32 images that trains fast.

    model = ResNet9(width=64)                       # 6.6 million parameters
    logits_BC = model(torch.zeros(8, 3, 32, 32))    # [8, 10]

Source: the idea, a shallow network of wide residual stages, is David Page's: "How to Train Your ResNet 4: Architecture",
Myrtle AI, 2018. What is not here: his whitening layer, CELU, "ghost" batch normalisation.

Shape legend: B batch, C classes, H height, W width.
"""

from torch import nn


def conv_block(channels_in, channels_out, pool=False):
    """3 x 3 convolution, batch normalisation, ReLU; ``pool`` halves height and width."""
    layers = [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),  # the normalisation has the bias
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *[nn.MaxPool2d(2)] * pool)


class Residual(nn.Module):
    """``x + branch(x)``; the branch keeps the shape."""

    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


class ResNet9(nn.Sequential):
    """Eight convolutions in four stages and a linear layer.

    Args:
        width: channels of the first stage, 1 or more; the last has 8 times as many. 64 gives 6.6, 48 gives 3.7 and 36 gives
            2.1 million parameters.
        num_classes: C.

    Takes float images [B, 3, H, W] with H and W of at least 8, returns float32 logits [B, C], also under autocast: the
    few digits of bf16 would let classes tie.

    Raises:
        ValueError: ``width`` is below 1.
    """

    logit_scale = 0.125  # keeps the first softmaxes soft, as in the source

    def __init__(self, width=64, num_classes=10):
        if width < 1:
            raise ValueError(f"width must be at least 1, the channels of the first stage; got {width}. 64 is usual.")
        super().__init__(
            conv_block(3, width),
            conv_block(width, 2 * width, pool=True),
            Residual(conv_block(2 * width, 2 * width), conv_block(2 * width, 2 * width)),
            conv_block(2 * width, 4 * width, pool=True),
            conv_block(4 * width, 8 * width, pool=True),
            Residual(conv_block(8 * width, 8 * width), conv_block(8 * width, 8 * width)),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, num_classes, bias=False),
        )

    def forward(self, images_B3HW):
        return super().forward(images_B3HW).float() * self.logit_scale
