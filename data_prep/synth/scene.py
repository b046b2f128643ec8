"""Renders one image: a landscape of 1/f noise, clutter, the object of the class with light and shadow, and a foreground."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from udkd.data_prep.synth.classes import TEXTURES, TRAITS, SynthClass
from udkd.data_prep.synth.rng import Rng
from udkd.data_prep.synth.shapes import F32, SHAPES, f32, texture

SIDE_PX = (80, 320)
TRAIT_STRENGTH = (-0.1, 2.2)  # capped at 1, which about half the images reach; one in twenty shows the other class's trait
Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """An object to paint into a scene. x, y, radius: pixels. rotation: cosine and sine. aspect: width over height if unrotated.

    grain: periods of the texture per radius. first, second: colours of the texture. core, rim, tip: a light (+1) to dark (-1)
    centre, edge and end, 0 for none. relief: strength of the shading.
    """

    shape: str
    texture: str
    x: float
    y: float
    radius: float
    rotation: tuple[float, float]
    aspect: float
    grain: float
    first: Colour
    second: Colour
    core: float = 0.0
    rim: float = 0.0
    tip: float = 0.0
    opacity: float = 1.0
    relief: float = 0.35


def render_scene(synth_class: SynthClass, rng: Rng) -> tuple[NDArray[np.uint8], bool]:
    """An image of the class, uint8 [H, W, 3] with sides of 80 to 320 px, and whether to store it as grey."""
    height, width = _size(rng)
    short = min(height, width)
    light = _direction(rng)
    canvas = _landscape(synth_class, rng, height, width)
    for _ in range(rng.integer(0, 4)):
        _paint(canvas, _clutter(rng, height, width, short * rng.uniform(0.05, 0.15)), rng, light)
    item = _object(synth_class, rng, height, width)
    _shade(canvas, item, light)
    _paint(canvas, item, rng, light)
    for _ in range(rng.integer(0, 2)):
        _paint(canvas, _clutter(rng, height, width, short * rng.uniform(0.05, 0.12)), rng, light)
    if rng.chance(0.25):
        _stalks(canvas, rng)
    return _expose(canvas, rng, light), rng.chance(0.02)


def encode_jpeg(pixels: NDArray[np.uint8], grey: bool, rng: Rng) -> bytes:
    """The image as a JPEG with random common settings."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    quality, subsampling = rng.integer(72, 96), rng.choice(("4:2:0", "4:2:0", "4:2:2", "4:4:4"))
    if grey:
        image.convert("L").save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, progressive=rng.chance(0.1))
    return buffer.getvalue()


def _size(rng: Rng) -> tuple[int, int]:
    """Height and width. Aspect ratio up to 1.6, more often landscape than portrait."""
    short = rng.integer(SIDE_PX[0], 200)
    long = min(SIDE_PX[1], int(short * (1 + 0.6 * rng.uniform())))
    return (long, short) if rng.chance(0.35) else (short, long)


def _direction(rng: Rng) -> tuple[float, float]:
    """Cosine and sine of a random, nearly uniform angle, by the half-angle formulas, which need no trigonometry."""
    t = rng.uniform(-1, 1)
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return (cosine, sine) if rng.chance(0.5) else (-sine, cosine) if rng.chance(0.5) else (-cosine, -sine)


def _hue(hue: float, saturation: float, value: float) -> Colour:
    """A colour by its position on the colour wheel: red at 0, green at 1/3, blue at 2/3."""

    def channel(offset: float) -> float:
        full = min(1.0, max(0.0, abs((hue + offset) % 1.0 * 6 - 3) - 1))
        return value * (1 - saturation * (1 - full))

    return channel(0.0), channel(2 / 3), channel(1 / 3)


def _mix(a: Colour, b: Colour, fraction: float) -> Colour:
    return a[0] + fraction * (b[0] - a[0]), a[1] + fraction * (b[1] - a[1]), a[2] + fraction * (b[2] - a[2])


def _cloud(rng: Rng, height: int, width: int, coarsest: int = 2) -> F32:
    """1/f noise, 0 to 1, float32 [height, width]: octaves of random bytes, each half as strong as the coarser one.

    Pillow resizes bytes with integers, so the noise is identical on every machine.
    """
    total = np.zeros((height, width), np.int32)
    weight, weights, cells = 32, 0, coarsest
    while weight:
        rows, columns = cells + 1, max(2, cells * width // height + 1)
        grid = Image.fromarray(rng.bytes(rows, columns))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.int32)
        weights += weight
        weight //= 2
        cells *= 2
    contrast = (total.astype(np.float32) / (255 * weights) - 0.5) * 1.6 + 0.5
    return f32(np.clip(contrast, 0, 1))


def _ridge(rng: Rng, width: int) -> F32:
    """The height of a skyline of hills or grass, 0 to 1, float32 [width]."""
    peaks = rng.integer(3, 8) if rng.chance(0.4) else max(8, width // rng.integer(3, 8))
    line = Image.fromarray(rng.bytes(1, peaks)).resize((width, 1), Image.Resampling.BICUBIC)
    return f32(f32(line)[0] / 255)


def _blend(cloud: F32, a: Colour, b: Colour) -> F32:
    """Interpolate from a to b by the noise: float32 [H, W, 3]."""
    start, step = f32(a), f32(b) - f32(a)
    return f32(start + cloud[..., None] * step)


def _landscape(synth_class: SynthClass, rng: Rng, height: int, width: int) -> F32:
    """A background of one or two muted surfaces: float32 [H, W, 3], 0 to 1.

    Most images have the usual background of their class, like sharks in blue water. Both classes of a pair share it, so it only
    distinguishes the pairs.
    """
    usual = rng.chance(0.85)

    def surface() -> F32:
        hue = synth_class.habitat + rng.uniform(-0.06, 0.06) if usual else rng.uniform()
        saturation, value = rng.uniform(0.2, 0.45) if usual else rng.uniform(0.02, 0.3), rng.uniform(0.25, 0.85)
        other = _hue(hue + rng.uniform(-0.1, 0.1), saturation * rng.uniform(0.5, 1.3), value * rng.uniform(0.4, 1.0))
        return _blend(_cloud(rng, height, width, rng.integer(2, 6)), _hue(hue, saturation, value), other)

    canvas = surface()
    if rng.chance(0.6):
        level, slope = rng.uniform(0.3, 0.75) * height, rng.uniform(-0.3, 0.3)
        rough = _ridge(rng, width) * 0.15 * height
        edge = level + slope * (np.arange(width, dtype=np.float32) - width / 2) + rough
        softness = rng.uniform(1, 12)
        fraction = np.clip((np.arange(height, dtype=np.float32)[:, None] - edge) / softness, 0, 1)
        canvas += fraction[..., None] * (surface() - canvas)
    return canvas


def _object(synth_class: SynthClass, rng: Rng, height: int, width: int) -> SceneObject:
    """The object of the class. The strength of its trait varies from image to image, down to none."""
    short = min(height, width)
    radius = short * rng.uniform(0.32, 0.5)
    strength = synth_class.sign * min(1.0, rng.uniform(*TRAIT_STRENGTH))
    strengths = dict.fromkeys((name for name, _, _ in TRAITS), 0.0) | {synth_class.trait: strength}
    first = _hue(synth_class.hue + rng.uniform(-0.02, 0.02), rng.uniform(0.55, 0.85), rng.uniform(0.6, 0.95))
    tint = 0.45 * strengths["tint"]
    first = first[0] * (1 + tint), first[1], first[2] * (1 - tint)
    pale = strengths["accent"] if synth_class.trait == "accent" else (0.75 if synth_class.hue < 0.5 else -0.75)
    pale += rng.uniform(-0.15, 0.15)
    second = _mix(first, (0.97, 0.96, 0.93), pale) if pale > 0 else _mix(first, (0.06, 0.05, 0.08), -pale)
    margin = 0.55 * radius
    return SceneObject(
        shape=synth_class.shape,
        texture=synth_class.texture,
        x=rng.uniform(margin, width - margin),
        y=rng.uniform(margin, height - margin),
        radius=radius,
        rotation=_direction(rng),
        aspect=rng.uniform(0.9, 1.1),
        grain=2.2 * (1 + 0.45 * strengths["grain"]) * rng.uniform(0.9, 1.1),
        first=first,
        second=second,
        core=strengths["core"],
        rim=strengths["rim"],
        tip=strengths["tip"],
    )


def _clutter(rng: Rng, height: int, width: int, radius: float) -> SceneObject:
    first = _hue(rng.uniform(), rng.uniform(0.05, 0.35), rng.uniform(0.15, 0.9))
    return SceneObject(
        shape=rng.choice(tuple(SHAPES)),
        texture=rng.choice((*TEXTURES, "plain")),
        x=rng.uniform(0, width),
        y=rng.uniform(0, height),
        radius=radius,
        rotation=_direction(rng),
        aspect=rng.uniform(0.6, 1.6),
        grain=rng.uniform(1.0, 3.0),
        first=first,
        second=_mix(first, _hue(rng.uniform(), 0.3, rng.uniform()), 0.6),
        opacity=rng.uniform(0.7, 1.0),
    )


def _window(item: SceneObject, canvas: F32, reach: float) -> tuple[slice, slice]:
    """The part of the canvas within `reach` radii of an object, which saves time as most objects are small."""
    height, width, _ = canvas.shape
    span = reach * item.radius
    rows = slice(max(0, int(item.y - span)), min(height, int(item.y + span) + 2))
    return rows, slice(max(0, int(item.x - span)), min(width, int(item.x + span) + 2))


def _offsets(item: SceneObject, rows: slice, columns: slice) -> tuple[F32, F32]:
    """The position of each pixel relative to the centre of an object, in radii: [1, w] and [h, 1]."""
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) - item.x) / item.radius
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) - item.y) / item.radius
    return f32(x[None, :]), f32(y[:, None])


def _paint(canvas: F32, item: SceneObject, rng: Rng, light: tuple[float, float]) -> None:
    rows, columns = _window(item, canvas, 1.6)
    part = canvas[rows, columns]
    x, y = _offsets(item, rows, columns)
    cosine, sine = item.rotation
    u = f32((cosine * x + sine * y) / item.aspect)
    v = f32((cosine * y - sine * x) * item.aspect)
    distance = SHAPES[item.shape](u, v)
    cover = np.clip(0.5 - distance * item.radius, 0, 1) * item.opacity
    cloud = _cloud(rng, len(distance), distance.shape[1])
    colour = _blend(texture(item.texture, u, v, cloud, item.grain), item.first, item.second)
    if item.rim:
        _tone(colour, np.clip(1 - np.abs(distance + 0.1) / 0.14, 0, 1), item.rim)
    if item.core:
        _tone(colour, np.clip((0.45 - np.sqrt(u * u + v * v)) * 12, 0, 1), item.core)
    if item.tip:
        _tone(colour, np.clip((u + 0.05) * 8, 0, 0.85), item.tip)
    modelling = 1 + item.relief * (x * light[0] + y * light[1])
    modelling = modelling * (0.75 + 0.25 * np.clip(-4 * distance, 0, 1))
    colour *= (modelling * (0.9 + 0.2 * cloud))[..., None]
    part += cover[..., None] * (colour - part)


def _tone(colour: F32, where: F32, amount: float) -> None:
    """Blend towards near white (amount > 0) or near black, by |amount| times the mask `where`."""
    target = 0.96 if amount > 0 else 0.05
    colour += (where * min(1.0, abs(amount)))[..., None] * (target - colour)


def _shade(canvas: F32, item: SceneObject, light: tuple[float, float]) -> None:
    """Paint the soft shadow of an object, away from the light."""
    rows, columns = _window(item, canvas, 2.0)
    x, y = _offsets(item, rows, columns)
    x, y = x + 0.3 * light[0], y + 0.3 * light[1]
    darkness = np.clip(1.35 - np.sqrt(x * x + y * y), 0, 1) * 0.6
    canvas[rows, columns] *= (1 - np.minimum(darkness, 0.45))[..., None]


def _stalks(canvas: F32, rng: Rng) -> None:
    """Paint grass or bars in the foreground."""
    height, width = canvas.shape[:2]
    y = np.arange(height, dtype=np.float32)[:, None] / height
    x = np.arange(width, dtype=np.float32)[None, :]
    colour = f32(_hue(rng.uniform(0.05, 0.45), rng.uniform(0.2, 0.6), rng.uniform(0.15, 0.7)))
    for _ in range(rng.integer(1, 4)):
        root, lean = rng.uniform(0, width), rng.uniform(-0.25, 0.25) * width
        thickness, top = rng.uniform(0.008, 0.025) * width, rng.uniform(0.0, 0.6)
        middle = root + lean * (1 - y) * (1 - y)
        cover = np.clip(thickness - np.abs(x - middle), 0, 1) * np.clip((y - top) * 20, 0, 1)
        canvas += cover[..., None] * (colour - canvas)


def _expose(canvas: F32, rng: Rng, light: tuple[float, float]) -> NDArray[np.uint8]:
    """Simulate a camera: uneven light, white balance, exposure, sometimes blur, and sensor noise. Returns uint8 [H, W, 3]."""
    height, width = canvas.shape[:2]
    x = np.arange(width, dtype=np.float32)[None, :] / width - 0.5
    y = np.arange(height, dtype=np.float32)[:, None] / height - 0.5
    slope = rng.uniform(0, 0.4)
    lit = 1 + slope * (x * light[0] + y * light[1]) - rng.uniform(0, 0.5) * (x * x + y * y)
    tint = f32([rng.uniform(0.93, 1.07), 1.0, rng.uniform(0.93, 1.07)])
    exposed = canvas * lit[..., None] * (tint * (rng.uniform(0.85, 1.2) * 255))
    noise = rng.bytes(height, width).astype(np.float32) + rng.bytes(height, width).astype(np.float32) - 255
    exposed += noise[..., None] * rng.uniform(0.005, 0.06)
    pixels: NDArray[np.uint8] = np.clip(exposed + 0.5, 0, 255).astype(np.uint8)
    if rng.chance(0.3):
        blurred = Image.fromarray(pixels).filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.5)))
        pixels = np.asarray(blurred)
    return pixels
