"""What may be said of classifiers sample by sample: pure functions over NumPy arrays, one file per noun."""

from udkd.operations.analysis.agreement import Pair, agreement, patterns
from udkd.operations.analysis.calibration import (
    BINS,
    Reliability,
    adaptive_calibration_error,
    calibration_error,
    calibration_error_by_chance,
    calibration_error_interval,
    reliability,
)
from udkd.operations.analysis.gain import Gain, gain
from udkd.operations.analysis.groups import by_class, tenths
from udkd.operations.analysis.intervals import LEVEL, bootstrap, paired, wilson
from udkd.operations.analysis.separation import separation

__all__ = [
    "BINS",
    "LEVEL",
    "Gain",
    "Pair",
    "Reliability",
    "adaptive_calibration_error",
    "agreement",
    "bootstrap",
    "by_class",
    "calibration_error",
    "calibration_error_by_chance",
    "calibration_error_interval",
    "gain",
    "paired",
    "patterns",
    "reliability",
    "separation",
    "tenths",
    "wilson",
]
