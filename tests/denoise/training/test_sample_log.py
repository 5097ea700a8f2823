import numpy as np

from denoise.training.sample_log import SampleLog


def log(steps, before=""):
    """Log (positions, samples) by step."""
    result = SampleLog(before)
    for step, (positions, samples) in steps.items():
        result.add(step, np.array(positions), np.array(samples))
    return result


WHOLE = {0: ([0, 1, 2], [7, 3, 9]), 1: ([0, 1, 2], [7, 7, 1])}


def test_a_digest_can_be_continued():
    first = log({0: WHOLE[0]})
    assert log({1: WHOLE[1]}, first.digest()).digest() == log(WHOLE).digest()
    assert first.digest() == log({0: WHOLE[0]}).digest()  # reading it changes nothing


def test_parts_of_batches_add_up_in_any_order():
    shared = log({0: ([2], [9]), 1: ([0, 1], [7, 7])})
    assert log({0: ([1, 0], [3, 7]), 1: ([2], [1])}, shared.digest()).digest() == log(WHOLE).digest()


def test_any_change_changes_the_digest():
    others = [
        {0: ([0, 1, 2], [7, 9, 3]), 1: WHOLE[1]},  # two change places
        {0: ([0, 1, 2], [7, 3, 8]), 1: WHOLE[1]},  # another sample
        {0: WHOLE[0], 2: WHOLE[1]},  # another step
        {0: WHOLE[0]},
        {0: WHOLE[1], 1: WHOLE[0]},
    ]
    digests = {log(steps).digest() for steps in [WHOLE, *others]}
    assert len(digests) == 6
    assert all(len(digest) == 16 for digest in digests)


def test_forget_drops_the_ids_but_not_the_digest():
    samples = log(WHOLE)
    digest = samples.digest()
    assert (samples.of(1), samples.of(5)) == ([7, 7, 1], [])
    samples.forget()
    assert samples.of(1) == []
    assert samples.digest() == digest
