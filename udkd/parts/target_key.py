"""What a run's targets mean, by the names of CacheKey's fields: what a builder writes and a trainer asks for."""

from dataclasses import asdict

from udkd.formats.config import Recipe
from udkd.formats.dataset import DatasetFolder
from udkd.operations import augment
from udkd.parts.frozen_teacher import arithmetic
from udkd.words import views


def target_meaning(recipe: Recipe, dataset: DatasetFolder, pixel_class: str) -> dict[str, object]:
    """The fields of a cache's key that follow from recipe, data and backend; the teachers' own are Panel.describe()."""
    canonical = recipe.teacher.views == "canonical"
    return {
        "dataset_digest": dataset.digest,
        "split": "train",
        "pixel_class": pixel_class,
        "policy": "canonical" if canonical else "views",
        "views": asdict(recipe.teacher_spec),
        "views_version": views.VERSION,
        "seed": None if canonical else recipe.views.seed,
        "augment_version": augment.VERSION,
        "normalisation": {"mean": augment.MEAN, "std": augment.STD},
        "num_classes": len(dataset.classes),
        "estimator": recipe.teacher.estimation.text,
        "precision": arithmetic(recipe.teacher.precision, folded=recipe.teacher.folded, compiled=recipe.teacher.compile),
    }
