"""Random predictions of classifiers, with realistic statistics."""

import numpy as np

from udkd.training.predictions import TOP, Predictions, TeacherPredictions, TopPredictions


def predictions_of(logits_NC: np.ndarray, labels_N: np.ndarray) -> TopPredictions:
    """The top predictions of these logits, in NumPy float64 and independent of the prediction collector."""
    z = logits_NC.astype(np.float64)
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    top = np.argsort(-z, axis=1, kind="stable")[:, :TOP]
    return TopPredictions(
        top=top.astype(np.int32),
        top_log_p=np.take_along_axis(log_p, top, 1).astype(np.float32),
        label_log_p=log_p[np.arange(len(z)), labels_N].astype(np.float32),
        entropy=(-(np.exp(log_p) * log_p).sum(1)).astype(np.float32),
    )


def mean_logits(logits: list[np.ndarray]) -> np.ndarray:
    """Logits whose softmax is the mean of the softmaxes."""
    p = [np.exp(z - z.max(1, keepdims=True)) for z in logits]
    return np.log(np.mean([one / one.sum(1, keepdims=True) for one in p], axis=0))


def fake_predictions(
    num_classes: int,
    names: tuple[str, ...],
    *,
    samples: int = 300,
    teacher: bool = True,
    targets: TeacherPredictions | None = None,
    skill: float = 0.0,
    seed: int = 0,
) -> Predictions:
    """Students that err on the same samples as their teacher, and on others; ids and labels are the same for every seed.

    skill: added to the label's logit of every student.
    """
    rng = np.random.default_rng(77)
    labels = np.sort(rng.integers(0, num_classes, samples)).astype(np.int64)
    ease = rng.gamma(3.0, 1.0, samples) + np.sin(labels)
    rows, rival = np.arange(samples), (labels ^ 1) % num_classes

    def logits(number: int, strength: float) -> np.ndarray:
        rng = np.random.default_rng((seed, number))
        z = rng.normal(0, 1.1, (samples, num_classes))
        z[rows, rival] += rng.gamma(2.0, 0.9, samples)
        z[rows, labels] += strength + 0.9 * ease + 0.35 * np.cos(3 * labels + number)
        return z

    students = [logits(number, skill + 0.3 - 0.25 * number) for number in range(len(names))]
    return Predictions(
        dataset_digest="5f" * 32,
        step=300,
        num_classes=num_classes,
        ids=np.arange(samples, dtype=np.int64) + np.arange(samples) // 50,
        labels=labels,
        names=names,
        students=tuple(predictions_of(z, labels) for z in students),
        average=predictions_of(mean_logits(students), labels),
        teacher_name="resnet50" if teacher else None,
        teacher=predictions_of(1.5 * logits(99, 1.0), labels) if teacher else None,
        targets=targets,
    )
