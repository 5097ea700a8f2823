import pytest
import torch

from denoise.nets import NetMaker


@pytest.mark.parametrize(
    ("channels", "fields", "counts"),
    [
        (1, {}, [320, 18_496, 73_856, 36_896, 289]),  # Kumar et al., figure 1
        (3, {}, [896, 18_496, 73_856, 36_896, 867]),
        (1, {"features": 64}, [640, 36_928, 36_928, 36_928, 577]),
    ],
)
def test_there_are_five_convolutions_of_the_stated_sizes_and_nothing_else_that_learns(channels, fields, counts):
    net = NetMaker("cnn5", channels, fields)()
    layers = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [sum(p.numel() for p in layer.parameters()) for layer in layers] == counts
    assert sum(p.numel() for p in net.parameters()) == sum(counts)
    assert {layer.kernel_size for layer in layers} == {(3, 3)}


def test_an_output_sees_eleven_by_eleven_pixels():
    torch.manual_seed(0)
    noisy = torch.rand(1, 1, 21, 21, requires_grad=True)
    NetMaker("cnn5", 1, {})()(noisy)[0, 0, 10, 10].backward()
    seen = noisy.grad[0, 0] != 0
    assert seen[5:16, 5:16].all()
    assert seen.sum() == 11 * 11
