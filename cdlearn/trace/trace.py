"""A record that can be read, rescored, drawn and kept: every method is a function of the files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cdlearn.show import handout, html
from cdlearn.trace import file, flips, rescore, tables
from cdlearn.trace.flips import FlipPoints
from cdlearn.trace.record import Record, Recorder

if TYPE_CHECKING:
    import pandas as pd


class Trace(Record):
    """One row of a generation, step by step: the data of a `Record`, and what can be told of it without a model."""

    def _repr_html_(self) -> str:
        return html.trace_html(self)

    def to_html(self, path: str | Path, *, candidates: int = 24) -> None:
        """Write a self-contained page with working sliders: a handout that needs neither Python nor a network."""
        handout.write(self, path, candidates=candidates)

    @property
    def truncated(self) -> Tensor:
        """[P] bool: where the kept set may reach beyond the recorded candidates, so that `rescore` may miss a token."""
        return rescore.truncated(self, self.settings)

    def rescore(
        self,
        strength: float | None = None,
        alpha: float | None = None,
        amateur_temperature: float | None = None,
        top_k: int | None = None,
        beta: float | None = None,
        layer: int | None = None,
    ) -> Trace:
        """The same text with other settings, without a model: `token_ids` are greedy's picks at each recorded prefix.

        None leaves a setting as it was; alpha=0 takes the mask away. `strength` and `beta` are two forms, giving one
        leaves the other. A contrast can change all but `layer`, DoLa `alpha` and `layer` (one candidate layer at every
        position instead of the most divergent), a mixture `alpha`. The picks are exact wherever the result's
        `truncated` is False; what would follow the first changed token is another text, see `first_change`. With
        another amateur_temperature the scores hold up to a constant per position (settings["scores"] says so): its
        normaliser needs the whole vocabulary. Details and rounds stay those of the recorded run.
        Raises ValueError for a method with nothing to change or a setting it does not have.
        """
        return rescore.rescore(
            self,
            strength=strength,
            alpha=alpha,
            amateur_temperature=amateur_temperature,
            top_k=top_k,
            beta=beta,
            layer=layer,
        )

    def first_change(self, **settings: Any) -> int | None:
        """The first position where greedy picks another token at these settings (as in `rescore`), None if nowhere.

        Up to and including it, `rescore(...).token_ids` is what `generate` gives at these settings. What it is compared
        with are greedy's picks at the recorded settings, also where the text was sampled.
        """
        changed = (rescore.picks(self) != rescore.picks(self, **settings)).nonzero()
        return int(changed[0]) if len(changed) else None

    def flip_points(self, position: int) -> FlipPoints:
        """Where greedy's pick at a position flips as one setting moves and the others stay: see `FlipPoints`.

        Exact and in closed form: scores are linear in the strength, so the winners are the upper envelope of lines, and
        alpha only lets candidates in one after the other. Raises ValueError as `rescore` does.
        """
        return flips.flip_points(self, position)

    def to_json(self) -> str:
        """The whole trace as strict JSON text, token texts included; `from_json` gives the very same numbers back.

        JSON has no infinities and no NaN: they become the texts "-inf", "inf" and "nan"; so do settings it cannot say.
        """
        return file.to_json(self)

    @classmethod
    def from_json(cls, text: str, *, tokenizer: Any = None) -> Trace:
        """A trace from `to_json`'s text; without a tokenizer it shows the token texts stored in it.

        Raises ValueError for text that is no trace, or one of a newer format.
        """
        return file.from_json(cls, text, tokenizer)

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to a file, compressed if its name ends in .gz."""
        file.save(self.to_json(), path)

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: Any = None) -> Trace:
        """Read what `save` wrote. Raises OSError for the file, ValueError for its content."""
        return cls.from_json(file.load(path), tokenizer=tokenizer)

    def summary(self) -> str:
        """A few lines of text: the settings, the choices, and how sure and how different the models were."""
        return tables.summary(self)

    def step_frame(self) -> pd.DataFrame:
        """A tidy table, one row per position: what `to_frame` cannot say of a single candidate.

        Columns: position, token_id, token, then for "expert", "amateur", ... `expert_surprisal` (of the chosen token)
        and `expert_entropy` in nats, `expert_rank` (of the chosen token) and `amateur_tv` (total-variation distance
        from the expert), then `truncated` and the details with one value a position. Parts with layers are left out.
        """
        return tables.step_frame(self)

    def to_frame(self, *, top: int | None = None) -> pd.DataFrame:
        """A tidy table, one row per position and candidate; `top` keeps the expert's best few and the chosen token.

        Columns: position (0 is the first new token), rank (1 is the expert's best), token_id, token (None without a
        tokenizer), expert_logit, amateur_logit, expert_prob, amateur_prob (NaN without an amateur), score, kept,
        chosen, then the same pair of columns for any other part, and one column per detail with one value a position.
        """
        return tables.to_frame(self, top)


Recorder.makes = Trace
