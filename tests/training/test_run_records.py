"""run.json: what is written of a cache's key is read back."""

import json

from udkd.augment.policies import ViewOp
from udkd.augment.views import ViewSpec
from udkd.training.run_records import Provenance

EVERY_KIND = ViewSpec(
    size_px=32,
    policy="rand_augment",
    warp="bilinear",
    fill=(1, 2, 3),
    jitter="uint8",
    hue=0.1,
    ops=(ViewOp(op="rotate", low=-15, high=15), ViewOp(op="invert", prob=0.5)),
    erase_prob=0.5,
    erase_area=(0.1, 0.2),
    erase_ratio=(0.5, 2.0),
    erase_fill="noise",
    mixup=0.2,
    cutmix=1.0,
)


def test_a_cache_key_with_any_views_is_read() -> None:
    """A list of operations in it made a finished run unreadable for report, eval, --resume and studies."""
    key = json.loads(json.dumps({"teacher_sha256": "0" * 64, "views": EVERY_KIND.key_values}))
    assert key["views"]["ops"][1]["op"] == "invert"
    record = {"format": 1, "dataset": "data", "dataset_digest": "0" * 64, "cache": "cache", "cache_key": key}
    assert Provenance.model_validate(record).cache_key == key
