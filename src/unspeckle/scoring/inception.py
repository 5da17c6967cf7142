"""The Inception v3 network behind every published FID, with the peculiarities of its TensorFlow original.

After Szegedy et al. 2016; the modules have the tensor names of pt_inception-2015-12-05-6726825d.pth. Average pooling
does not count the zero padding, and the last block has a maximum where the paper has an average.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_SIZE = 299  # pixels
FEATURE_DIM = 2048


class BasicConv2d(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], stride: int = 1, pad: bool = True
    ):
        super().__init__()
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (height // 2, width // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _avg_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    """35 × 35: 1×1, 5×5, double 3×3 and pooling branches."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(in_channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = BasicConv2d(in_channels, 48, 1), BasicConv2d(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = BasicConv2d(in_channels, 64, 1), BasicConv2d(64, 96, 3)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3)
        self.branch_pool = BasicConv2d(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), branch5x5, branch3x3dbl, self.branch_pool(_avg_pool(x))), 1)


class InceptionB(nn.Module):
    """35 × 35 -> 17 × 17."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = BasicConv2d(in_channels, 64, 1), BasicConv2d(64, 96, 3)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), branch3x3dbl, F.max_pool2d(x, 3, stride=2)), 1)


class InceptionC(nn.Module):
    """17 × 17, with 7×7 convolutions factorized into 1×7 and 7×1."""

    def __init__(self, in_channels: int, mid_channels: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(in_channels, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = (
            BasicConv2d(in_channels, mid_channels, 1),
            BasicConv2d(mid_channels, mid_channels, (1, 7)),
        )
        self.branch7x7_3 = BasicConv2d(mid_channels, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = (
            BasicConv2d(in_channels, mid_channels, 1),
            BasicConv2d(mid_channels, mid_channels, (7, 1)),
        )
        self.branch7x7dbl_3, self.branch7x7dbl_4 = (
            BasicConv2d(mid_channels, mid_channels, (1, 7)),
            BasicConv2d(mid_channels, mid_channels, (7, 1)),
        )
        self.branch7x7dbl_5 = BasicConv2d(mid_channels, 192, (1, 7))
        self.branch_pool = BasicConv2d(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        return torch.cat((self.branch1x1(x), branch7x7, branch7x7dbl, self.branch_pool(_avg_pool(x))), 1)


class InceptionD(nn.Module):
    """17 × 17 -> 8 × 8."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = BasicConv2d(in_channels, 192, 1), BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = BasicConv2d(in_channels, 192, 1), BasicConv2d(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = BasicConv2d(192, 192, (7, 1)), BasicConv2d(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7x3 = self.branch7x7x3_2(self.branch7x7x3_1(x))
        branch7x7x3 = self.branch7x7x3_4(self.branch7x7x3_3(branch7x7x3))
        return torch.cat((self.branch3x3_2(self.branch3x3_1(x)), branch7x7x3, F.max_pool2d(x, 3, stride=2)), 1)


class InceptionE(nn.Module):
    """8 × 8, with 3×3 convolutions split into parallel 1×3 and 3×1."""

    def __init__(self, in_channels: int, use_max_pool: bool) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(in_channels, 320, 1)
        self.branch3x3_1 = BasicConv2d(in_channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = BasicConv2d(384, 384, (1, 3)), BasicConv2d(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = BasicConv2d(in_channels, 448, 1), BasicConv2d(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = BasicConv2d(384, 384, (1, 3)), BasicConv2d(384, 384, (3, 1))
        self.branch_pool = BasicConv2d(in_channels, 192, 1)
        self.use_max_pool = use_max_pool

    def forward(self, x: Tensor) -> Tensor:
        branch3x3 = self.branch3x3_1(x)
        branch3x3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = (
            self.branch3x3_2a(branch3x3),
            self.branch3x3_2b(branch3x3),
            self.branch3x3dbl_3a(branch3x3dbl),
            self.branch3x3dbl_3b(branch3x3dbl),
        )
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.use_max_pool else _avg_pool(x)
        return torch.cat((self.branch1x1(x), *branches, self.branch_pool(pooled)), 1)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 2048): the features after global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = BasicConv2d(3, 32, 3, stride=2), BasicConv2d(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = BasicConv2d(64, 80, 1), BasicConv2d(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = InceptionB(288), InceptionC(768, 128), InceptionC(768, 160)
        self.Mixed_6d, self.Mixed_6e, self.Mixed_7a = InceptionC(768, 160), InceptionC(768, 192), InceptionD(768)
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280, use_max_pool=False), InceptionE(2048, use_max_pool=True)
        self.fc = nn.Linear(FEATURE_DIM, 1008)  # in the published file, but not used for features

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))
