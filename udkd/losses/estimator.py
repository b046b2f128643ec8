"""How one target is computed from a teacher or from several, as recipes and the keys of caches name it."""

import re
from dataclasses import dataclass
from typing import Literal

EstimatorKind = Literal["plain", "mc_dropout", "ensemble", "evidential"]

_MC_DROPOUT = re.compile(r"mc_dropout, (\d+) passes, p (\S+), seed (\d+)")


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How the teacher predicts, and which uncertainties that gives.

    plain       one pass in evaluation mode: entropy.
    mc_dropout  `passes` passes with dropout of probability `p` before the head, the masks a pure function of (seed, view,
                sample, pass): entropy of the mean prediction (total uncertainty) and mutual information.
    ensemble    the mean of several teachers' probabilities: entropy of the mean (total) and mutual information.
    evidential  the mean of the Dirichlet of a teacher that was fitted with the evidential loss: its entropy, and vacuity.
    """

    kind: EstimatorKind = "plain"
    passes: int = 0
    p: float = 0.0
    seed: int = 0

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """Names of the uncertainties, as a cache stores them."""
        second = {"mc_dropout": ("mutual_information",), "ensemble": ("mutual_information",), "evidential": ("vacuity",)}
        return ("entropy", *second.get(self.kind, ()))

    @property
    def text(self) -> str:
        """As a cache key stores it: equal texts mean equal estimators."""
        if self.kind == "mc_dropout":
            return f"mc_dropout, {self.passes} passes, p {self.p}, seed {self.seed}"
        return self.kind

    @classmethod
    def parse(cls, text: str) -> "Estimator":
        """The inverse of `text`. Raises ValueError for anything else."""
        if text in ("plain", "ensemble", "evidential"):
            return cls(kind=text)  # type: ignore[arg-type]
        match = _MC_DROPOUT.fullmatch(text)
        if match is None:
            raise ValueError(f"estimator {text!r}; expected plain, ensemble, evidential or mc_dropout with its numbers")
        return cls(kind="mc_dropout", passes=int(match[1]), p=float(match[2]), seed=int(match[3]))
