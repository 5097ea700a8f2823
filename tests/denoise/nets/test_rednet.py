import pytest
import torch

from denoise.nets import NetMaker


def make(channels=3, **fields):
    torch.manual_seed(0)
    return NetMaker("rednet30", channels, fields)()


def test_there_are_15_convolutions_and_15_transposed_ones():
    net = make()
    down = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    up = [m for m in net.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in down] == [(3, 128), *[(128, 128)] * 14]
    assert sorted((m.in_channels, m.out_channels) for m in up) == [(128, 3), *[(128, 128)] * 14]
    assert {(m.kernel_size, m.stride) for m in down + up} == {((3, 3), (1, 1))}
    assert len(list(net.children())) == 3


@pytest.mark.parametrize(("channels", "count"), [(3, 4_139_395), (1, 4_134_785)])
def test_there_are_as_many_parameters_as_the_layers_sum_to(channels, count):
    ends = (9 * channels * 128 + 128) + (9 * 128 * channels + channels)
    assert sum(p.numel() for p in make(channels).parameters()) == ends + 28 * (9 * 128 * 128 + 128) == count


def test_the_second_and_every_second_map_after_it_is_handed_to_its_mirror():
    """With transposed convolutions silent but for the last, only the map of conv 2 is left before the last two."""
    net, noisy = make(features=8), torch.rand(1, 3, 16, 16)
    for layer in net.up[:13]:
        torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        handed = torch.relu(net.down[1](torch.relu(net.down[0](noisy))))
        expected = noisy + net.last(torch.relu(net.up[13](handed)))
        torch.testing.assert_close(net(noisy), expected)


def test_every_second_map_matters():
    net, noisy = make(features=8), torch.rand(1, 3, 16, 16)
    for layer in net.up[1:]:
        torch.nn.init.dirac_(layer.weight)
    maps = []
    for layer in net.down:
        layer.register_forward_hook(lambda _module, _inputs, output: maps.append(torch.relu(output)))
    with torch.no_grad():
        restored = net(noisy)
        summed = torch.relu(net.up[0](maps[14])) + sum(maps[number - 1] for number in (2, 4, 6, 8, 10, 12, 14))
        torch.testing.assert_close(restored, noisy + net.last(summed))


def test_rectifying_the_sums_as_ports_do_changes_nothing():
    noisy, results = torch.rand(1, 3, 16, 16), []
    for rectified in (False, True):
        net = make(features=8)
        if rectified:
            for layer in net.up[1::2]:  # which read the sums
                layer.register_forward_pre_hook(lambda _module, inputs: torch.relu(inputs[0]))
        output = net(noisy)
        output.square().mean().backward()
        results.append([output.detach(), *(p.grad for p in net.parameters())])
    assert all(torch.equal(plain, twice) for plain, twice in zip(*results, strict=True))


def test_the_image_is_added_to_the_last_layer():
    net, noisy = make(features=4), torch.rand(1, 3, 5, 7)
    torch.nn.init.zeros_(net.last.weight)
    assert torch.equal(net(noisy), noisy)
