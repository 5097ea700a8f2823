"""The blind spot of AP-BSN's network is exactly one pixel."""

import pytest
import torch

from denoise.nets import NetMaker
from tests.denoise.nets.test_blind_spot import assert_blind, influence, places


def make(blind_spot=True):
    torch.manual_seed(0)
    net = NetMaker("dbsn", 1, {"features": 8})(outputs=2, blind_spot=blind_spot)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("size", [(17, 17), (13, 20)])
def test_an_output_depends_on_all_neighbours_and_not_on_its_own_pixel(size):
    at = places(*size)
    assert_blind(influence(make(), 1, size, at), at)


def test_the_plain_form_sees_every_pixel():
    at = places(13, 13)
    grads = influence(make(blind_spot=False), 1, (13, 13), at)
    assert all(grad[place] != 0 for grad, place in zip(grads, at, strict=True))


def test_the_weights_start_so_that_values_neither_grow_nor_vanish():
    with torch.no_grad():
        net = make()
        maps = torch.relu(net.first(torch.rand(1, 1, 32, 32)))
        for branch in net.branches:
            assert 0.1 < branch(maps).std() / maps.std() < 10
