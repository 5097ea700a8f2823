import pytest

from denoise.errors import UsageError
from denoise.training.fault_injection import DRIVER, KINDS, Fault, FaultInjector, parse_fault


def test_what_is_understood():
    assert parse_fault("kill:rank=1,step=37") == Fault("kill", 37, 1)
    assert parse_fault("kill:rank=driver,step=5") == Fault("kill", 5, DRIVER)
    assert parse_fault("hang:step=3,seconds=2.5") == Fault("hang", 3, 0, 2.5)


@pytest.mark.parametrize("text", ["kill", "kill:", "kill:step=x", "kill:step=3,when=now", "kill:rank=one,step=3"])
def test_what_is_not_understood_is_told_with_an_example(text):
    with pytest.raises(UsageError, match="write KIND:step=N,rank=R,seconds=S: kill:rank=1,step=37"):
        parse_fault(text)


def test_another_kind_is_told_with_the_nearest():
    with pytest.raises(UsageError, match=r"kil is no fault \(did you mean kill\?\); use kill"):
        parse_fault("kil:step=3")
    assert len(KINDS) == 8


def test_a_fault_is_due_once_on_its_rank_at_its_step_or_later():
    chosen = [Fault("nan", 3, 1), Fault("nan", 5, 0)]
    ours = FaultInjector(chosen, rank=1)
    assert ours.due(2, "nan") == []
    assert ours.due(4, "kill") == []
    assert ours.due(4, "kill", "nan") == [chosen[0]]
    assert ours.due(9, "nan") == []


def test_a_fault_that_has_struck_before_a_restart_does_not_strike_again():
    struck = {Fault("nan", 3)}
    assert FaultInjector([Fault("nan", 3)], first=lambda fault: fault not in struck).due(3, "nan") == []
