"""How a target is computed from one teacher or several, as named in recipes and cache keys."""

import re
from dataclasses import dataclass
from typing import Literal

EstimatorKind = Literal["plain", "mc_dropout", "ensemble", "evidential"]

_MC_DROPOUT = re.compile(r"mc_dropout, (\d+) passes, p (\S+), seed (\d+)")


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How the teacher predicts, and the uncertainties of the prediction.

    plain       One forward pass in evaluation mode. Uncertainty: entropy.
    mc_dropout  The mean of `mc_samples` forward passes with dropout of probability `p` before the head. The masks are a pure
                function of (seed, view, sample, pass). Uncertainties: entropy of the mean, and mutual information.
    ensemble    The mean of several teachers' probabilities. Uncertainties: entropy of the mean, and mutual information.
    evidential  The mean of the Dirichlet of a teacher fitted with the evidential loss. Uncertainties: entropy and vacuity.
    """

    kind: EstimatorKind = "plain"
    mc_samples: int = 0
    p: float = 0.0
    seed: int = 0

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """Names of the uncertainties, as stored in a cache."""
        second = {"mc_dropout": ("mutual_information",), "ensemble": ("mutual_information",), "evidential": ("vacuity",)}
        return ("entropy", *second.get(self.kind, ()))

    @property
    def text(self) -> str:
        """The estimator as stored in a cache key: equal texts mean equal estimators."""
        if self.kind == "mc_dropout":
            return f"mc_dropout, {self.mc_samples} passes, p {self.p}, seed {self.seed}"
        return self.kind

    @classmethod
    def parse(cls, text: str) -> "Estimator":
        """The inverse of `text`. Raises ValueError for anything else."""
        if text in ("plain", "ensemble", "evidential"):
            return cls(kind=text)  # type: ignore[arg-type]
        match = _MC_DROPOUT.fullmatch(text)
        if match is None:
            raise ValueError(f"estimator {text!r}; expected plain, ensemble, evidential or mc_dropout with its numbers")
        return cls(kind="mc_dropout", mc_samples=int(match[1]), p=float(match[2]), seed=int(match[3]))
