"Numbers that do not fit: means over very many images."

from __future__ import annotations

import torch
from classimpression.methods.statistical import feature_means
from classimpression.carryover import class_means
from classimpression.data import Split

from . import fault, peak


@fault("numbers", "class means of 400,000 images of 28x28 pixels, two classes", "right", slow=True, seconds=120)
def _(folder):
    x = torch.arange(251, dtype=torch.uint8).repeat(400_000 * 784 // 251 + 1)[: 400_000 * 784].view(-1, 1, 28, 28)
    y = torch.arange(len(x)) % 2
    with peak() as grown:
        means = class_means(Split(x, y), [0, 1])
    assert grown[0] < 1e9, f"{grown[0]:,} bytes"  # in one piece: 1.9 GB
    assert torch.allclose(means[1], (x[1::2].sum(0, dtype=torch.int64) / (255 * len(x) / 2)).float(), atol=1e-6)


@fault("numbers", "means of 300,000 feature vectors of length 512", "right", slow=True, seconds=120)
def _(folder):
    f, y = torch.rand(300_000, 512), torch.arange(300_000) % 2
    with peak() as grown:
        means = feature_means(f, y, [0, 1])
    assert grown[0] < 1e9, f"{grown[0]:,} bytes"  # in one piece: 1.2 GB
    assert torch.allclose(means[0], f[::2].mean(0), atol=1e-5)
