import pytest
import torch

from denoise.errors import UsageError
from denoise.training.fault_injection import DRIVER, KINDS, NO_FAULTS, Fault, FaultInjector, parse_fault


def test_faults_are_parsed():
    assert parse_fault("kill:rank=1,step=37") == Fault("kill", 37, 1)
    assert parse_fault("kill:rank=driver,step=5") == Fault("kill", 5, DRIVER)
    assert parse_fault("hang:step=3,seconds=2.5") == Fault("hang", 3, 0, 2.5)


@pytest.mark.parametrize("text", ["kill", "kill:", "kill:step=x", "kill:step=3,when=now", "kill:rank=one,step=3"])
def test_an_invalid_fault_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="write KIND:step=N,rank=R,seconds=S: kill:rank=1,step=37"):
        parse_fault(text)


def test_an_unknown_kind_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"kil is not a fault \(did you mean kill\?\); use kill"):
        parse_fault("kil:step=3")
    assert len(KINDS) == 8


def test_a_fault_is_due_once_on_its_rank_at_its_step_or_later():
    faults = [Fault("nan", 3, 1), Fault("nan", 5, 0)]
    injector = FaultInjector(faults, rank=1)
    assert injector.due(2, "nan") == []
    assert injector.due(4, "kill") == []
    assert injector.due(4, "kill", "nan") == [faults[0]]
    assert injector.due(9, "nan") == []


def test_a_fault_does_not_happen_again_after_a_restart():
    happened = {Fault("nan", 3)}
    assert FaultInjector([Fault("nan", 3)], is_first_time=lambda fault: fault not in happened).due(3, "nan") == []


def test_the_default_does_nothing():
    views, write = {"noisy": torch.ones(2)}, lambda folder: None
    NO_FAULTS.before_step(3)
    NO_FAULTS.corrupt_batch(3, views)
    assert torch.equal(views["noisy"], torch.ones(2))
    assert NO_FAULTS.wrap_writer(3, write) is write


def test_a_batch_is_corrupted_once():
    injector = FaultInjector([Fault("nan", 3), Fault("memory", 4)])
    views = {"noisy": torch.ones(2)}
    injector.corrupt_batch(3, views)
    assert views["noisy"].isnan().all()
    with pytest.raises(torch.OutOfMemoryError):
        injector.corrupt_batch(4, views)
    injector.corrupt_batch(5, views)
