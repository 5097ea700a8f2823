import pytest
import torch

from denoise.nets import NetMaker
from denoise.nets.drunet import DRUNet, ResidualBlock

WIDTHS = (64, 128, 256, 512)


def count(channels, outputs):
    """The paper's layers summed up: nothing has a bias."""
    ends = 9 * 64 * (channels + outputs)
    blocks = 4 * 2 * 9
    down_and_up = 2 * sum(blocks * fine * fine + 4 * fine * (2 * fine) for fine in WIDTHS[:3])
    return ends + down_and_up + blocks * 512 * 512


@pytest.mark.parametrize(("channels", "outputs", "total"), [(3, 3, 32_640_384), (4, 3, 32_640_960), (2, 1, 32_638_656)])
def test_there_are_as_many_parameters_as_in_the_paper(channels, outputs, total):
    """With the map of the noise level, which is left out here, 32,638,656 is the published grey network."""
    with torch.device("meta"):
        net = DRUNet(channels, outputs)
    assert sum(p.numel() for p in net.parameters()) == count(channels, outputs) == total


def make(features=8, blocks=1):
    torch.manual_seed(0)
    return NetMaker("drunet", 3, {"features": features, "blocks": blocks})()


def test_there_are_four_blocks_at_each_of_seven_places():
    net = make(blocks=4)
    places = [*net.down, net.body, *net.up]
    assert [sum(isinstance(m, ResidualBlock) for m in place) for place in places] == [4] * 7
    assert [m.out_channels for place in net.down for m in place if isinstance(m, torch.nn.Conv2d)] == [16, 32, 64]
    assert [m.out_channels for place in net.up for m in place if isinstance(m, torch.nn.ConvTranspose2d)] == [8, 16, 32]


def test_an_image_twice_as_bright_gives_an_output_twice_as_bright():
    net, noisy = make(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(2 * noisy), 2 * net(noisy))
        assert not torch.allclose(net(-noisy), -net(noisy), rtol=0.01)


def test_the_signal_neither_dies_nor_explodes_on_its_way():
    torch.manual_seed(0)
    noisy = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        restored = NetMaker("drunet", 3, {"features": 16})()(noisy)
    assert 0.1 < restored.std() / noisy.std() < 20


def test_scales_are_joined_by_sums():
    """With the body silent the coarsest map still reaches the way up."""
    net, noisy = make(), torch.rand(1, 3, 16, 16)
    seen = {}
    for scale, up in enumerate(net.up):
        up.register_forward_hook(lambda _module, inputs, output, scale=scale: seen.update({scale: (inputs[0], output)}))
    with torch.no_grad():
        net(noisy)
        first = net.head(noisy)
        maps = [first]
        for down in net.down:
            maps.append(down(maps[-1]))
        torch.testing.assert_close(seen[2][0], net.body(maps[3]) + maps[3])
        torch.testing.assert_close(seen[1][0], seen[2][1] + maps[2])
        torch.testing.assert_close(seen[0][0], seen[1][1] + maps[1])
        torch.testing.assert_close(net(noisy), net.last(seen[0][1] + first))


def test_a_block_adds_to_its_input():
    block, x = ResidualBlock(4), torch.randn(1, 4, 5, 6)
    assert not torch.equal(block(x), x)
    torch.nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x)
