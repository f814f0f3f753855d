"Networks and the growing head."

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from classimpression.core.errors import ConfigError
from classimpression.data import tensor_digest
from classimpression.heads import CosineHead, grow, imprint
from classimpression.models import Block, Classifier, LargeNet, SmallNet, adapt_resnet, build_classifier, frozen_copy
from classimpression.models import batch_norms, find_network, frozen_statistics, rebuild


@pytest.mark.parametrize("channels,size", [(1, 28), (1, 32), (3, 32), (3, 64), (3, 45)])
def test_small_network_takes_any_size(channels, size):
    assert SmallNet(channels)(torch.rand(2, channels, size, size)).shape == (2, 256)


@pytest.mark.parametrize("size", [64, 112, 224])
def test_large_network_takes_any_size(size):
    net, x = LargeNet(1), torch.rand(2, 1, size, size)
    assert net(x).shape == (2, 128) and (net.blocks(net.stem(x)) < 0).any()  # the last map is not rectified


def test_growing_keeps_old_logits_to_the_last_bit_through_many_tasks():
    model = build_classifier("small", 1, [2], seed=3).eval()
    f = torch.randn(333, 256, generator=torch.Generator().manual_seed(0))
    for n_new in (1, 3, 1, 7):
        before = model.head(f)
        grow(model.head, n_new)
        assert torch.equal(model.head(f)[:, : before.shape[1]], before)
    assert model.head.sizes == [2, 1, 3, 1, 7] and [b.requires_grad for b in model.head.blocks] == [False] * 4 + [True]


def test_frozen_rows_stay_and_new_rows_learn():
    head = grow(CosineHead(8, [2]), 2)
    old, new = head.blocks[0].clone(), head.blocks[1].clone()
    sgd = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], 0.5)
    F.cross_entropy(head(torch.randn(20, 8)), torch.randint(0, 4, (20,))).backward()
    sgd.step()
    assert torch.equal(head.blocks[0], old) and not torch.equal(head.blocks[1], new) and head.sigma.item() != 1.0


def test_imprinting_by_hand():
    head = CosineHead(3, [2])
    head.blocks[0].data = torch.tensor([[3.0, 0, 0], [0, 4.0, 3.0]])  # lengths 3 and 5: mean 4
    grow(head, 2)
    f = torch.tensor([[2.0, 0, 0], [0, 0, 7.0], [0, 1.0, 0], [0, 9.0, 0]])
    imprint(head, f, torch.tensor([2, 2, 3, 3]))
    torch.testing.assert_close(head.blocks[1].data, torch.tensor([[4 / 2**0.5, 0, 4 / 2**0.5], [0, 4.0, 0]]))


def test_cosine_scores_ignore_lengths_and_stay_in_range():
    head, f = CosineHead(16, [3]), torch.randn(50, 16)
    assert head.scores(f).abs().max() <= 1 + 1e-6
    torch.testing.assert_close(head.scores(f), head.scores(100 * f))
    head.sigma.data.fill_(7.0)
    torch.testing.assert_close(head(f), 7 * head.scores(f))


def test_seeds():
    digest = lambda seed: tensor_digest(*build_classifier("small", 3, [2], seed).state_dict().values())
    assert digest(0) == digest(0) != digest(1)


def test_frozen_statistics_leave_no_trace_even_after_an_error():
    model = build_classifier("small", 1, [2]).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        with frozen_statistics(model):
            model(torch.rand(4, 1, 32, 32))
            raise RuntimeError
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_resnet(channels):
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    backbone = adapt_resnet(net, channels)
    model = Classifier(backbone, CosineHead(backbone.n_features, [3]))
    assert model(torch.rand(2, channels, 40, 40)).shape == (2, 3) and isinstance(net.fc, nn.Linear)
    frozen = frozen_copy(model)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_what_is_no_network_is_refused():
    with pytest.raises(ConfigError, match="features"):
        Classifier(nn.Linear(2, 2), CosineHead(2, [1]))
    with pytest.raises(ConfigError, match="not a torchvision ResNet"):
        adapt_resnet(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="unknown network"):
        build_classifier("transformer", 3, [2])


def test_a_block_draws_the_weights_that_it_keeps_and_no_more():
    "Else every later layer starts elsewhere, and reported results cannot be repeated."
    for n_in, n_out, stride in ((16, 16, 1), (16, 32, 1), (16, 16, 2)):
        torch.manual_seed(0)
        block = Block(n_in, n_out, stride)
        after = torch.get_rng_state()
        torch.manual_seed(0)
        for w in [m.weight for m in block.modules() if isinstance(m, torch.nn.Conv2d)]:
            again = torch.nn.Conv2d(w.shape[1], w.shape[0], w.shape[2], bias=False)
            assert torch.equal(again.weight, w)
        assert torch.equal(torch.get_rng_state(), after)


def test_continual_normalisation_is_group_then_batch_normalisation():
    net, x = find_network("small-continual")(3).train(), torch.rand(4, 3, 32, 32)
    a = net.stem[0](x)
    by_hand = a.view(4, 8, 2, 16, 16)
    by_hand = by_hand - by_hand.mean((2, 3, 4), keepdim=True)
    by_hand = by_hand / (by_hand.pow(2).mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
    by_hand = by_hand.view_as(a)
    by_hand = (by_hand - by_hand.mean((0, 2, 3), keepdim=True)) / (
        by_hand.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    assert torch.allclose(net.stem[1](a), by_hand, atol=1e-4)
    assert [len(batch_norms(find_network(f"{n}-continual")(1))) for n in ("small", "large")] == [9, 21]


def test_continual_network_is_built_again_from_its_file():
    model = build_classifier("small-continual", 1, [2, 1]).eval()
    again = rebuild(model.spec)
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(again.eval()(x), model(x)) and isinstance(again.backbone.stem[1][0], torch.nn.GroupNorm)


def test_a_head_that_is_defined_again_is_the_newer_one():
    from classimpression.heads import HEADS, register_head

    def define(number):
        @register_head("test-again")
        class Again(torch.nn.Module):
            version = number

        return Again

    try:
        _, newer = define(1), define(2)
        assert HEADS["test-again"] is newer and newer.version == 2
        with pytest.raises(ConfigError, match="exists already"):
            register_head("cosine")(torch.nn.Identity)
    finally:
        HEADS.pop("test-again", None)
