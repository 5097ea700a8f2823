"""StackOptions: what a user says about stacks that their files do not."""

from dataclasses import dataclass

from denoise.stacks.layout import check_channels
from denoise.stacks.survey import Survey
from denoise.stacks.value_range import ValueRange, parse_range, type_range

AUTO, BY_TYPE, BY_PERCENTILES = "auto", "type", "percentiles"


@dataclass(frozen=True)
class StackOptions:
    """How stacks are read.

    Attributes:
        axes: a letter for each side, instead of what the file says.
        channels: ``each``, ``joint``, or the number of the only one that is taken.
        value_range: the values that become 0 and 1 for a network: ``LOW,HIGH``, ``type``, ``percentiles``, or
            ``auto``: the type of 8 bits, the percentiles of other types.

    Raises:
        UserError: the channels or the range are nothing of that.
    """

    axes: str | None = None
    channels: str = "each"
    value_range: str = AUTO

    def __post_init__(self) -> None:
        check_channels(self.channels)
        if self.value_range not in (AUTO, BY_TYPE, BY_PERCENTILES):
            parse_range(self.value_range)


def choose_range(wanted: str, dtype: str, measured: Survey, name: str) -> ValueRange:
    """Return the range of values of a type.

    Args:
        wanted: as ``StackOptions.value_range``.
        dtype: of the values.
        measured: the survey of all planes.
        name: of what holds them, for messages.

    Raises:
        UserError: it is none, or zero.
    """
    if wanted == BY_TYPE or (wanted == AUTO and dtype in ("uint8", "int8")):
        return type_range(dtype)
    if wanted in (AUTO, BY_PERCENTILES):
        return measured.measured_range(name)
    return parse_range(wanted)
