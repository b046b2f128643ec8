"""The first sentence of the page of a study of networks."""

import pytest

from udkd.study.networks import NetworkMeasurement, fastest_text


def network(arm: str, low: float, median: float, high: float) -> NetworkMeasurement:
    return NetworkMeasurement(
        arm=arm, architecture=arm, parameters=1, parameters_1000=1, bytes=1, latency_ms=median, low_ms=low, high_ms=high
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((30.1, 31.0, 32.0), "B is the fastest, 28.0 ms per image."),
        ((29.9, 31.0, 32.0), "A and B are equally fast, 28.0 ms per image: their quartiles overlap."),
    ],
)
def test_no_network_is_fastest_while_quartiles_overlap(other: tuple[float, float, float], message: str) -> None:
    assert fastest_text([network("A", *other), network("B", 27.0, 28.0, 30.0), network("C", 99.0, 100.0, 101.0)]) == message
