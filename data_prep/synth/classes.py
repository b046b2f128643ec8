"""The classes of the synthetic dataset: 2k and 2k+1 share shape, texture and colours, and differ in one subtle trait."""

from dataclasses import dataclass
from typing import Literal

SHAPE_NAMES = (
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
GOLDEN_RATIO = 0.618033988749895  # any number of its multiples modulo 1 are well spaced


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
    """The class with this label, the same for any seed and number of classes. Shape and texture repeat after 84 pairs."""
    pair = label // 2
    shape = SHAPE_NAMES[pair % len(SHAPE_NAMES)]
    texture = TEXTURES[(pair + pair // len(SHAPE_NAMES)) % len(TEXTURES)]
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
