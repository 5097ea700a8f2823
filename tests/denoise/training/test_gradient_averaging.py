"""Averaging of gradients in real processes: through shared memory as through a collective operation."""

import multiprocessing
import os
import signal
import socket
import time

import pytest
import torch
from torch import nn

from denoise import distributed
from denoise.training import gradient_averaging
from denoise.training.gradient_averaging import plain_averaging, shared_averaging


def in_ranks(task, world):
    """Call ``task`` in the processes of a group; return their results by rank, None for one that was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["denoise.training.loop", "torch._dynamo", "skimage.metrics"])  # as attempts.py does
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    ranks = [context.Process(target=_rank, args=(rank, world, port, task, pipes[rank][1])) for rank in range(world)]
    for process, (_, sender) in zip(ranks, pipes, strict=True):
        process.start()
        sender.close()
    results = []
    for process, (receiver, _) in zip(ranks, pipes, strict=True):
        try:
            results.append(receiver.recv())
        except EOFError:
            results.append(None)
        process.join(60)
    return results


def _rank(rank, world, port, task, results):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.start_from_environment(30)
    results.send(task(rank))
    os._exit(0)  # without waiting for the ranks that are gone


def net_of(rank):
    torch.manual_seed(rank)  # rank 0's weights are to replace the others
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3)).to(memory_format=torch.channels_last)
    net.unused = nn.Parameter(torch.ones(3))
    return net


def backward(net, rank, step):
    torch.manual_seed(100 * step + rank)
    net(torch.randn(2, 3, 9, 9)).square().sum().backward()


def both_ways(rank):
    net = net_of(rank)
    average, rows = shared_averaging(net, 30), []
    for step in range(3):
        backward(net, rank, step)
        own = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
        average()
        shared = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        assert [grad.stride() for grad in shared] == [grad.stride() for grad in own]
        assert net.unused.grad is None
        for parameter, grad in zip(list(net.parameters()), [None, *own], strict=True):
            parameter.grad = grad
        shared = [grad.clone() for grad in shared]
        plain_averaging(net)()
        plain = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        rows.append((shared, plain, [tensor.clone() for tensor in net.state_dict().values()]))
        net.zero_grad()
    return [[[tensor.numpy() for tensor in part] for part in row] for row in rows]


@pytest.mark.parametrize("world", [2, 3])
def test_the_mean_is_that_of_a_collective_operation_on_every_rank(world):
    results = in_ranks(both_ways, world)
    for step in range(3):
        for shared, plain, state in (result[step] for result in results):
            for one, other in zip(shared, plain, strict=True):
                assert abs(one - other).max() <= (0 if world == 2 else 1e-6 * abs(other).max())
            assert all((one == other).all() for one, other in zip(state, results[0][step][2], strict=True))
            assert all((one == other).all() for one, other in zip(shared, results[0][step][0], strict=True))


def one_dies(rank):
    net = net_of(rank)
    average = shared_averaging(net, 30)
    backward(net, rank, 0)
    average()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    try:
        average()
    except RuntimeError as error:
        return str(error), time.monotonic() - started
    return None


def test_the_others_notice_at_once_that_a_rank_has_died():
    (message, seconds), killed = in_ranks(one_dies, 2)
    assert killed is None
    assert message == "rank 1 has died"
    assert seconds < 10


def one_hangs(rank):
    net = net_of(rank)
    average = shared_averaging(net, 1)
    backward(net, rank, 0)
    if rank == 1:
        time.sleep(2.5)
        return None
    with pytest.raises(RuntimeError, match=r"rank 1 has not answered for 1 s \(ray.timeout\)"):
        average()
    return "gave up"


def test_the_others_give_up_where_a_rank_hangs():
    assert in_ranks(one_hangs, 2) == ["gave up", None]


def no_room(rank):
    if rank == 0:
        gradient_averaging.os = type("NoRoom", (), {"__getattr__": lambda self, name: getattr(os, name)})()
        gradient_averaging.os.posix_fallocate = lambda *arguments: os.posix_fallocate(-1, 0, 1)  # fails
    return shared_averaging(net_of(rank), 30) is None


def other_host(rank):
    if rank == 1:
        opened = gradient_averaging._open_memory
        gradient_averaging._open_memory = lambda pid, file, token, size: opened(pid, file, b"x" * len(token), size)
    return shared_averaging(net_of(rank), 30) is None


def other_processor(rank):
    if rank == 1:
        gradient_averaging.platform.machine = lambda: "aarch64"
    return shared_averaging(net_of(rank), 30) is None


@pytest.mark.parametrize("obstacle", [no_room, other_host, other_processor])
def test_no_rank_shares_memory_where_one_cannot(obstacle):
    assert in_ranks(obstacle, 2) == [True, True]


def test_a_single_process_needs_no_averaging():
    assert shared_averaging(net_of(0), 30) is None
