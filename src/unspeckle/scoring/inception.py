"""The Inception network of 2015 behind every published FID, with the quirks of its TensorFlow original.

Szegedy et al. 2016; the names of the tensors are those of pt_inception-2015-12-05-6726825d.pth. The averages leave out
the frame of zeros, and the last block takes a maximum where its paper has an average.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299
WIDTH = 2048


class Conv(nn.Module):
    """Convolution, fixed normalisation, rectifier."""

    def __init__(self, enters: int, leaves: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(enters, leaves, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(leaves, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(nn.Module):
    def __init__(self, enters: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(enters, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(enters, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(enters, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(enters, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), five, three, self.branch_pool(_average(x))), 1)


class B(nn.Module):
    def __init__(self, enters: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(enters, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(enters, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), three, F.max_pool2d(x, 3, stride=2)), 1)


class C(nn.Module):
    def __init__(self, enters: int, narrow: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(enters, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(enters, narrow, 1), Conv(narrow, narrow, (1, 7))
        self.branch7x7_3 = Conv(narrow, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(enters, narrow, 1), Conv(narrow, narrow, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(narrow, narrow, (1, 7)), Conv(narrow, narrow, (7, 1))
        self.branch7x7dbl_5 = Conv(narrow, 192, (1, 7))
        self.branch_pool = Conv(enters, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat((self.branch1x1(x), seven, double, self.branch_pool(_average(x))), 1)


class D(nn.Module):
    def __init__(self, enters: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(enters, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(enters, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat((self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)), 1)


class E(nn.Module):
    def __init__(self, enters: int, last: bool) -> None:
        super().__init__()
        self.branch1x1 = Conv(enters, 320, 1)
        self.branch3x3_1 = Conv(enters, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(enters, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(enters, 192, 1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        one = self.branch3x3_1(x)
        two = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        sides = (self.branch3x3_2a(one), self.branch3x3_2b(one), self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        return torch.cat((self.branch1x1(x), *sides, self.branch_pool(pooled)), 1)


class Inception(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 2048), the pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, stride=2), Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = B(288), C(768, 128), C(768, 160)
        self.Mixed_6d, self.Mixed_6e, self.Mixed_7a = C(768, 160), C(768, 192), D(768)
        self.Mixed_7b, self.Mixed_7c = E(1280, last=False), E(2048, last=True)
        self.fc = nn.Linear(WIDTH, 1008)  # stored with the rest, not used

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))
