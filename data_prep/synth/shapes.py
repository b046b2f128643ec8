"""Shapes and textures as functions of the plane, in units of the shape's radius.

They use only + - * /, square root, floor and comparisons. Unlike sines and powers, these are rounded identically on every
processor, by IEEE 754.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def f32(values: Any) -> F32:
    """Numbers as float32, without a copy if they are float32 already."""
    return np.asarray(values, np.float32)


def lobed(count: int, depth: float, size: float) -> Callable[[F32, F32], F32]:
    """The signed distance to a disc with `count` lobes."""

    def distance(u: F32, v: F32) -> F32:
        radius = np.sqrt(u * u + v * v) + np.float32(1e-6)
        cosine, sine = u / radius, v / radius
        real, imaginary = cosine, sine
        for _ in range(count - 1):  # the cosine of count times the angle, by multiplying complex numbers
            real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine
        return f32(radius - size * (1 + depth * real))

    return distance


def disc(u: F32, v: F32) -> F32:
    return f32(np.sqrt(u * u + v * v) - 0.95)


def ring(u: F32, v: F32) -> F32:
    return f32(np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.28)


def box(u: F32, v: F32) -> F32:
    return f32(np.maximum(np.abs(u), np.abs(v)) - 0.8)


def cross(u: F32, v: F32) -> F32:
    a, b = np.abs(u), np.abs(v)
    return f32(np.minimum(np.maximum(a - 1, b - 0.36), np.maximum(a - 0.36, b - 1)))


def triangle(u: F32, v: F32) -> F32:
    return f32(np.maximum(v - 0.62, 0.87 * np.abs(u) - 0.5 * v - 0.55))


def crescent(u: F32, v: F32) -> F32:
    bite = (u - 0.55) * (u - 0.55) + v * v
    return f32(np.maximum(np.sqrt(u * u + v * v) - 1, 0.75 - np.sqrt(bite)))


def capsule(u: F32, v: F32) -> F32:
    along = np.maximum(np.abs(u) - 0.6, 0)
    return f32(np.sqrt(along * along + v * v) - 0.42)


def hourglass(u: F32, v: F32) -> F32:
    return f32(np.maximum(np.abs(v) - 0.9, 0.8 * (np.abs(u) - 0.2 - 0.75 * np.abs(v))))


def chevron(u: F32, v: F32) -> F32:
    return f32(np.maximum(np.abs(u) - 0.95, 0.75 * (np.abs(v + 0.35 - 0.85 * np.abs(u)) - 0.5)))


# Signed distance to the edge, approximate away from it; negative inside. [h, w] and [h, w] -> [h, w].
SHAPES: dict[str, Callable[[F32, F32], F32]] = {
    "disc": disc,
    "ring": ring,
    "box": box,
    "cross": cross,
    "triangle": triangle,
    "flower": lobed(5, 0.25, 0.8),
    "trefoil": lobed(3, 0.4, 0.72),
    "gear": lobed(9, 0.12, 0.88),
    "crescent": crescent,
    "capsule": capsule,
    "hourglass": hourglass,
    "chevron": chevron,
}


def wave(x: F32) -> F32:
    """A smooth wave of period 1 between 0 and 1, from cubic arcs instead of a sine."""
    triangle_wave = 2 * np.abs(x - np.floor(x) - np.float32(0.5))
    return f32(triangle_wave * triangle_wave * (3 - 2 * triangle_wave))


def sharp(x: F32, softness: float) -> F32:
    """Turn a wave into bands with edges of width `softness`."""
    return f32(np.clip((x - 0.5) / softness + 0.5, 0, 1))


def texture(name: str, u: F32, v: F32, cloud: F32, grain: float) -> F32:
    """The fraction of the second colour at each point, 0 to 1.

    cloud: noise, 0 to 1, that distorts the pattern. grain: periods per radius.
    """
    bend = cloud - 0.5
    a, b = f32(grain * u + 0.6 * bend), f32(grain * v + 0.6 * bend)
    if name == "striped":
        return sharp(wave(a), 0.3)
    if name == "spotted":
        return sharp(f32(wave(a) * wave(b) + 0.22), 0.3)
    if name == "checked":
        return sharp(f32(0.5 + 2 * (wave(a) - 0.5) * (wave(b) - 0.5)), 0.2)
    if name == "ringed":
        return sharp(wave(f32(grain * np.sqrt(u * u + v * v) + 0.4 * bend)), 0.3)
    if name == "netted":
        return sharp(f32(np.maximum(wave(a), wave(b)) - 0.3), 0.25)
    if name == "wavy":
        return sharp(wave(f32(b + 0.5 * wave(f32(0.6 * a)))), 0.3)
    if name == "marbled":
        return wave(f32(3 * cloud + 0.4 * grain * u))
    assert name == "plain"
    return f32(0.3 * cloud)
