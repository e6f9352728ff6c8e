"""What a check found: for a person as text or HTML, for the grader as data."""

import html
from dataclasses import dataclass

LABELS = {"broke": "Broke", "example": "Example", "expected": "Expected", "got": "Got"}
LABELS |= {"mistake": "This looks like", "look": "Look at", "printed": "It printed"}


@dataclass(frozen=True)
class Result:
    """What a check found: truthy when everything holds. Shows as one green line, or as the message."""

    part: str
    cases: int = 0
    broke: str = ""
    example: str = ""
    expected: str = ""
    got: str = ""
    mistake: str = ""
    look: str = ""
    printed: str = ""
    again = "right in the check, but the same call gave something else when it was made once more"  # for a test

    def __bool__(self) -> bool:
        return not self.broke

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The parts of the message that are there, as (label, text)."""
        return [(label, getattr(self, name)) for name, label in LABELS.items() if getattr(self, name)]

    def __str__(self) -> str:
        if self:
            return f"✓ {self.part}: {self.cases} cases hold."
        return "\n".join([f"✗ {self.part}: not yet.", *(f"  {label + ':':17}{text}" for label, text in self.lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first, *_ = str(self).splitlines()
        cell = '<td style="text-align:left;vertical-align:top;white-space:pre-wrap">'
        rows = "".join(f"<tr>{cell}<b>{a}</b></td>{cell}{html.escape(b)}</td></tr>" for a, b in self.lines)
        color, table = ("#009e73", "") if self else ("#d55e00", f"<table>{rows}</table>")
        return f'<div style="border-left:4px solid {color};padding:2px 8px">{html.escape(first)}{table}</div>'

    def require(self) -> None:
        """Raise NotYet with the same message unless everything holds: the line of a graded cell."""
        if not self:
            raise NotYet(self)


class NotYet(AssertionError):
    """What a check says of a function that is not right yet: its result is the error's argument."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"
