"""The classes: classes 2k and 2k+1 share a shape, a texture and colours, and differ in one subtle trait."""

from dataclasses import dataclass
from typing import Literal

SHAPES = (
    "disc",
    "triangle",
    "cross",
    "ring",
    "flower",
    "box",
    "crescent",
    "trefoil",
    "capsule",
    "hourglass",
    "gear",
    "chevron",
)
TEXTURES = ("striped", "spotted", "checked", "ringed", "netted", "marbled", "wavy")
TraitName = Literal["core", "rim", "tint", "accent", "tip", "grain"]
# trait, name of its low end, name of its high end
TRAITS: tuple[tuple[TraitName, str, str], ...] = (
    ("core", "dark-eyed", "bright-eyed"),
    ("accent", "dusky", "frosted"),
    ("rim", "dark-rimmed", "pale-rimmed"),
    ("tint", "cool", "warm"),
    ("tip", "dark-tipped", "pale-tipped"),
    ("grain", "coarse", "fine"),
)
GOLDEN_RATIO = 0.618033988749895  # its multiples modulo 1 stay well spaced, however many there are


@dataclass(frozen=True, kw_only=True)
class SynthClass:
    """A class of the synthetic dataset.

    hue, habitat: colour of the object and of its usual background, 0 to 1 around the colour wheel.
    sign: -1 or +1, the end of the trait that this class shows.
    """

    name: str
    shape: str
    texture: str
    hue: float
    habitat: float
    trait: TraitName
    sign: int


def synth_class(label: int) -> SynthClass:
    """The class of a label, for any seed and number of classes. Shape and texture repeat after 84 pairs."""
    pair = label // 2
    shape = SHAPES[pair % len(SHAPES)]
    texture = TEXTURES[(pair + pair // len(SHAPES)) % len(TEXTURES)]
    trait, low, high = TRAITS[pair % len(TRAITS)]
    return SynthClass(
        name=f"{label:03d}-{high if label % 2 else low}-{texture}-{shape}",
        shape=shape,
        texture=texture,
        hue=pair * GOLDEN_RATIO % 1.0,
        habitat=(pair * GOLDEN_RATIO + 0.3 + 0.4 * (pair % 3) / 2) % 1.0,
        trait=trait,
        sign=1 if label % 2 else -1,
    )
