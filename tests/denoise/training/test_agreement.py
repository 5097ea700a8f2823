"""Ranks that agree to stop, in real processes."""

from unittest.mock import patch

import torch.distributed as dist

from denoise.distributed import Agreement
from tests.denoise.training.test_gradient_averaging import in_ranks

REQUESTS = ([False, False, False, False], [False, True, False, False])  # by rank and step


def answers(rank):
    stop = Agreement(30)
    return [stop.reached(requested) for requested in REQUESTS[rank]], stop._group is None


def answers_beside_gpus(rank):
    """As where gradients are averaged by nccl, which no machine without GPUs has."""
    with patch.object(dist, "get_backend", lambda: "nccl"):
        return answers(rank)


def test_all_ranks_agree_at_the_step_after_the_request():
    assert in_ranks(answers, 2) == [([False, False, True, False], True)] * 2


def test_beside_gpus_the_hosts_agree_in_a_group_of_their_own():
    assert in_ranks(answers_beside_gpus, 2) == [([False, False, True, False], False)] * 2
