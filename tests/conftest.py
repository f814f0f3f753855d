"Small data of real shape for tests; nothing here is a result."
import os

os.environ.setdefault("TQDM_DISABLE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

from classimpression.tasks import from_arrays  # noqa: E402


def toy_scenario(sizes=(2, 2), channels=3, per_class=30, pixels=16, name="toy", **more):
    "Classes that differ in colour and stripes, plus noise."
    k, g = sum(sizes), torch.Generator().manual_seed(0)
    y = torch.arange(k).repeat(per_class)
    stripes = torch.sin(torch.arange(pixels)*(y[:, None] + 1)*.4)[:, None, None, :]
    x = .5 + .25*stripes + .1*torch.randn(len(y), channels, pixels, pixels, generator=g)
    third = len(y)//3//k*k
    parts = [(x[:-2*third], y[:-2*third]), (x[-2*third:-third], y[-2*third:-third]), (x[-third:], y[-third:])]
    return from_arrays(*[(a.clamp(0, 1), b) for a, b in parts], sizes=list(sizes), layout="NCHW", name=name, **more)


@pytest.fixture
def toy():
    return toy_scenario


@pytest.fixture(autouse=True)
def one_thread():
    "Two threads on a busy machine spin; one is as fast for data this small."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
