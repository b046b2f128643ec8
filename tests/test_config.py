"""Recipes: what is shipped, what a user may write, and the error for each mistake."""

import contextlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udkd.augment.views import ViewSpec, draw_views
from udkd.config.loading import load_recipe, recipe_toml, shipped_recipes
from udkd.config.old_keys import changes, current, original
from udkd.config.recipe import Recipe
from udkd.losses.settings import LossSettings
from udkd.training.lr import cosine
from udkd.utils.errors import ConfigError
from udkd.utils.toml_files import shipped_summaries

SHIPPED = {"kd", "kd-paper", "smoke", "quickstart", "tiny-imagenet-100", "imagenet100-paper", "imagenet100-fast"}
SHIPPED |= {"imagenet100-strong", "imagenet1k-fast", "deit-small-style", "funmatch"}


def test_every_shipped_recipe_loads_and_survives_json() -> None:
    assert set(shipped_recipes()) >= SHIPPED
    for name in shipped_recipes():
        recipe = load_recipe(name)
        stored = json.loads(json.dumps(recipe.to_dict()))
        assert Recipe.from_dict(stored, "stored") == recipe
        assert Recipe.from_dict(stored, "stored").to_dict() == stored
        teacher = recipe.for_teacher()
        assert [student.architecture for student in teacher.students] == [recipe.fit.architecture]
        assert teacher.train.epochs == recipe.fit.epochs
        assert teacher.students[0].lr == recipe.fit.lr
        assert (teacher.loss.alpha, teacher.loss.beta, teacher.loss.gamma) == (1, 0, 0)
        assert teacher.teacher.source == "none"
        assert teacher.views == recipe.views


def test_the_recipe_of_the_paper() -> None:
    """The settings that arXiv 2511.18826 states."""
    recipe = load_recipe("imagenet100-paper")
    assert recipe.loss.settings == LossSettings(
        alpha=0.4, beta=0.4, gamma=0.2, temperature=4.0, kl="reverse", label_smoothing=0.0
    )
    assert recipe.loss.sample_weight == "entropy"
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.train.precision) == (64, 50, "float32")
    assert [student.architecture for student in recipe.students] == ["resnet18", "mobilenet_v2"]
    for section in (*recipe.students, recipe.fit):
        assert (section.lr, section.momentum, section.weight_decay) == (0.1, 0.9, 1e-4)
        assert (section.nesterov, section.warmup_epochs) == (False, 0.0)
    assert (recipe.fit.architecture, recipe.fit.epochs) == ("resnet50", 50)
    assert recipe.views.spec == ViewSpec(
        scheme="random_resized",
        size_px=224,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
    )
    assert recipe.evaluation_spec == ViewSpec(scheme="centre_squash", size_px=224, resize_px=256, flip=0.0)
    assert (recipe.teacher.source, recipe.teacher.views, recipe.teacher.precision) == ("cache", "eval", "float32")
    assert recipe.teacher_spec == recipe.evaluation_spec
    literal = load_recipe("imagenet100-paper", ["views.scheme=random"])
    assert literal.views.spec.scheme == "random"


def test_overrides_reach_every_key() -> None:
    for name in ("smoke", "imagenet100-fast"):
        recipe = load_recipe(name)
        overrides = [f"{path}={json.dumps(value)}" for path, value in leaves(recipe.to_dict())]
        assert len(overrides) > 50
        assert load_recipe("imagenet100-paper", overrides) == recipe


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("train.epochs=3", lambda r: r.train.epochs, 3),
        (" train.epochs = 3 ", lambda r: r.train.epochs, 3),
        ("teacher.views=4", lambda r: r.teacher.views, 4),
        ("teacher.views=eval", lambda r: r.teacher.views, "eval"),
        ("teacher.views='eval'", lambda r: r.teacher.views, "eval"),
        ("students.1.lr=0.25", lambda r: r.students[1].lr, 0.25),
        ("students.1.lr=1", lambda r: r.students[1].lr, 1.0),
        ("fit.architecture=resnet34", lambda r: r.fit.architecture, "resnet34"),
        ("train.tensorboard=true", lambda r: r.train.tensorboard, True),
        ("views.scale=[0.5, 1]", lambda r: r.views.scale, (0.5, 1.0)),
        ('students=[{architecture="vgg11"}]', lambda r: [s.architecture for s in r.students], ["vgg11"]),
        ("data.backend=folder", lambda r: r.data.backend, "folder"),
    ],
)
def test_an_override(override: str, get: Any, value: object) -> None:
    assert get(load_recipe("smoke", [override])) == value


MISTAKES = [
    ([".".join("a" * 100_000) + "=1"], "--set a.a.a."),
    (["loss.schedules.beta.to.a.a.a.a.a=1"], "the recipe has no such key"),
    (["train.epochs=" + "[" * 100_000], 'smoke: train.epochs is "[[['),
    (["train.epochs=" + "[" * 250 + "]" * 250], "smoke: "),
    (["train.epochs={" + ".".join("a" * 5_000) + "=1}"], "smoke: train.epochs is"),
    (["train.epochs=3\ntrain.batch=4"], 'smoke: train.epochs is "3\\ntrain.batch=4"; expected'),
    (["loss.temperature=1e300"], "smoke: loss.temperature is 1e+300; expected less than or equal to 1000"),
    (["students.0.warmup_epochs=1e300"], "expected less than or equal to 1000000"),
    (["students.1.lr=1e31"], "smoke: students.1.lr is 1e+31; expected less than or equal to 1000000"),
    (["views.ratio=[1e-300, 1e300]"], "smoke: views: ratio [1e-300, 1e+300]; expected width over height"),
    (["students.0.name=.."], "smoke: students.0 is named '..', and files are named after it; expected up to"),
    (["students.1.name=../../etc/x"], "smoke: students.1 is named '../../etc/x', and"),
    (['students.1.name="a\\u0000"'], "smoke: students.1 is named"),
    (['students.1.name="a\\nb"'], "smoke: students.1 is named 'a\\nb', and files"),
    (['students.1.name="\\u001b[31mred"'], "smoke: students.1 is named '\\x1b[31mred', and files"),
    (["students.1.name=" + "n" * 121], "smoke: students.1 is named 'nnn"),
    (["students.1.name=" + "n" * 10_000], "smoke: students.1.name is"),
    (["students.0.name=a/b", "students.1.name=a-b"], "smoke: students are named a/b, a-b; expected different names"),
    (["students.1.name=\udcff"], "smoke: "),
    (["train.epochs"], "--set 'train.epochs'; expected KEY=VALUE, such as train.epochs=3"),
    (["=3"], "--set '=3'; expected KEY=VALUE"),
    (["train..epochs=3"], "expected KEY=VALUE"),
    (["trian.epochs=3"], "smoke: trian is not a key of a recipe; expected data, views, "),
    (["train.epoch=3"], "smoke: train.epoch is not a key of a recipe; expected epochs, batch_size, "),
    (["train.keepbest=true"], ", keep_best and "),
    (["students.0.lrr=3"], "smoke: students.0.lrr is not a key of a recipe; expected architecture, name, lr, "),
    (["students.5.lr=3"], "--set students.5.lr: the recipe has no such key"),
    (["students.first.lr=3"], "--set students.first.lr: the recipe has no such key"),
    (["train.epochs.most=3"], "--set train.epochs.most: the recipe has no such key"),
    (["train.epochs=many"], 'smoke: train.epochs is "many"; expected a valid integer'),
    (["train.epochs=3.0"], "smoke: train.epochs is 3.0; expected a valid integer"),
    (["train.epochs=0"], "smoke: train.epochs is 0; expected greater than or equal to 1"),
    (["train.epochs="], 'smoke: train.epochs is ""; expected'),
    (["train.epochs=2026-01-01"], 'smoke: train.epochs is "2026-01-01"; expected'),
    (["train.epochs=true"], "smoke: train.epochs is true; expected"),
    (["train=3"], "smoke: train is 3; expected an object"),
    (["train.seed=-1"], "smoke: train.seed is -1; expected greater than or equal to 0"),
    (["train.seed=9223372036854775808"], "smoke: train.seed is 9223372036854775808; expected less than"),
    (["views.seed=99999999999999999999"], "expected less than"),
    (["train.seed=" + "9" * 5000], "expected a valid integer"),
    (["train.batch_size=1"], "smoke: train.batch_size is 1; expected greater than or equal to 2"),
    (["train.threads=1000000"], "smoke: train.threads is 1000000; expected less than or equal to 1024"),
    (["train.precision=float64"], "smoke: train.precision is \"float64\"; expected 'float32', 'bfloat16' or 'float16'"),
    (["train.epochs=x", "train.batch_size=y"], 'smoke: train.epochs is "x" (and 1 more); expected'),
    (["students.0.lr=nan"], "smoke: students.0.lr is NaN; expected a finite number"),
    (["loss.temperature=inf"], "smoke: loss.temperature is Infinity; expected a finite number"),
    (["loss.temperature=0"], "smoke: loss.temperature is 0; expected greater than or equal to 0.001"),
    (["students=[]"], "smoke: students has 0 entries; expected at least 1; add to it"),
    (["students.-1.lr=0.5"], "--set students.-1.lr: the recipe has no such key"),
    (["students.+0.lr=0.5"], "--set students.+0.lr: the recipe has no such key"),
    (["students=[{lr=0.1}]"], "smoke: students.0.architecture is missing"),
    (["students.0.name=a", "students.1.name=a", "students.2={architecture='vgg11',name='a-1'}"], "the recipe has no such key"),
    (
        ['students=[{architecture="a"},{architecture="a"},{architecture="b",name="a-1"}]'],
        "smoke: students are named a-1, a-2, a-1; expected different names",
    ),
    (["teacher.views=0"], "smoke: teacher: views is 0; expected 'eval' or a number of views from 1"),
    (["teacher.views=-1"], "smoke: teacher: views is -1; expected 'eval' or a number of views from 1"),
    (["teacher.views=evall"], "smoke: teacher.views is \"evall\"; expected 'eval' or a valid integer"),
    (["teacher.views=1.5"], "smoke: teacher.views is 1.5; expected 'eval' or a valid integer"),
    (["teacher.views=true"], "smoke: teacher.views is true; expected 'eval' or a valid integer"),
    (["teacher.source=none"], "smoke: teacher.source is none and loss.beta is above 0; expected a teacher"),
    (["loss.alpha=0", "loss.beta=0", "loss.gamma=0"], "leave nothing to learn from"),
    (["students=[{architecture='resnet18'}]", "loss.alpha=0", "loss.beta=0"], "leave nothing to learn from"),
    (["views.size_px=1000"], "smoke: evaluation.resize_px 36 is below views.size_px 1000; expected at least as much"),
    (["views.scheme=random", "views.resize_px=20"], "smoke: views: resize_px 20 below size_px 32; expected"),
    (["views.scale=[1.0, 0.1]"], "smoke: views: scale [1.0, 0.1]; expected a smaller and a larger number"),
    (["views.scale=[0.1, 2.0]"], "smoke: views: scale up to 2.0; expected a fraction of the image"),
    (["views.ratio=[0, 0]"], "smoke: views: ratio [0.0, 0.0]; expected"),
    (["views.scale=[0.1]"], "smoke: views.scale.1 is missing; expected"),
    (
        ["students.0.optimizer=adamw"],
        "smoke: students.0: optimizer is 'adamw'; expected Adadelta, Adafactor, Adagrad, Adam, AdamW",
    ),
    (
        ["students.0.optimizer=LBFGS"],
        "optimizer is 'LBFGS', which evaluates the loss several times in a step; expected Adadelta",
    ),
    (["students.1.optimizer=SparseAdam"], "students.1: optimizer is 'SparseAdam', which takes sparse gradients only; expected"),
    (["students.0.optimizer=Optimizer"], "optimizer is 'Optimizer'; expected Adadelta"),
    (
        ["students.0.optimizer=AdamW", "students.0.optimizer_options={beta=0.9}"],
        "smoke: students.0: optimizer_options.beta is not an option of AdamW; expected betas, eps, amsgrad; correct it",
    ),
    (["students.0.optimizer_options={dampening=0.5}"], "optimizer_options.dampening is not an option of SGD; expected none"),
    (
        ["students.0.optimizer_options={lr=0.5}"],
        "optimizer_options.lr is a key of the student; expected students.*.lr; set that",
    ),
    (
        ["students.0.optimizer=AdamW", "students.0.optimizer_options={betas=[0.9]}"],
        "optimizer_options.betas is [0.9]; expected a list of 2 numbers",
    ),
    (
        ["students.0.optimizer=AdamW", "students.0.optimizer_options={eps=true}"],
        "optimizer_options.eps is True; expected a number",
    ),
    (["students.0.optimizer=AdamW", "students.0.optimizer_options={amsgrad=1}"], "amsgrad is 1; expected true or false"),
    (
        ["students.0.optimizer=AdamW", "students.0.optimizer_options={betas=[0.9, 2.0]}"],
        "are refused by PyTorch (Invalid beta parameter at index 1: 2.0); expected",
    ),
    (["students.0.optimizer=AdamW", "students.0.momentum=0.8"], "students.0: momentum is 0.8 and AdamW takes none; expected"),
    (["fit.optimizer=AdamW", "fit.nesterov=true"], "smoke: fit: nesterov is true and AdamW does not take it; expected"),
    (["students.0.schedule=exp"], "students.0.schedule is \"exp\"; expected 'cosine', 'constant', 'linear', 'step' or 'wsd'"),
    (
        ["students.0.step_epochs=[3]"],
        "students.0: step_epochs is set and schedule = cosine does not use it; expected its default",
    ),
    (["students.0.schedule=constant", "students.0.lr_end=0.1"], "lr_end is set and schedule = constant does not use it"),
    (["students.0.schedule=step"], "step_epochs is [] and schedule is step; expected rising epochs"),
    (["students.0.schedule=step", "students.0.step_epochs=[6, 3]"], "step_epochs is [6.0, 3.0] and schedule is step; expected"),
    (["students.0.schedule=wsd"], "decay_epochs is 0 and schedule is wsd; expected the epochs of the final decay"),
    (
        ["students.1.schedule=wsd", "students.1.decay_epochs=200"],
        "students.1.warmup_epochs and decay_epochs are 200 epochs of",
    ),
    (["train.batch_size=8", "train.accumulate=3"], "train: accumulate is 3 and batch_size 8; expected a divisor"),
    (["train.batch_size=8", "train.accumulate=8"], "train: accumulate is 8 and batch_size 8; expected a divisor"),
    (
        ["train.batch_size=8", "train.accumulate=2", "loss.method=rkd"],
        "smoke: train.accumulate is 2 and loss.method rkd compares the samples of a batch; expected the whole batch at once",
    ),
    (["data.backend=fast"], "smoke: data.backend is \"fast\"; expected 'auto', 'dali', 'ffcv', 'folder' or 'resident'"),
]


@pytest.mark.parametrize(("overrides", "text"), MISTAKES, ids=[" ".join(overrides)[:40] for overrides, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_key(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("smoke", overrides)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    if len(overrides[0]) < 1000:
        assert len(str(caught.value)) < 400, "readable: not the complete recipe"


def leaves(values: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(values, dict):
        return [leaf for name, value in values.items() for leaf in leaves(value, f"{path}.{name}" if path else name)]
    if isinstance(values, list) and path == "students":
        return [leaf for index, value in enumerate(values) for leaf in leaves(value, f"{path}.{index}")]
    return [(path, values)]


def works(recipe: Recipe) -> None:
    """All that commands do with a recipe before they look at data; no number overflows."""
    assert Recipe.from_dict(recipe.to_dict(), "stored") == recipe
    with contextlib.suppress(ConfigError):  # [fit] may set a start_epoch
        recipe.for_teacher().student_names()
    sizes = np.array([[3, 400, 3, 60], [2000, 1, 36, 1], [30, 40, 27, 36]])
    for spec in (recipe.views.spec, recipe.evaluation_spec, recipe.teacher_spec):
        views = draw_views(spec, recipe.views.seed, 0, np.arange(3), sizes)
        assert (views.window[:, 2:] > 0).all()
        assert (views.bounds[:, 2:] > views.bounds[:, :2]).all()
        assert np.isfinite(views.factor).all()
    for student in recipe.students:
        peak, warmup_steps = student.lr * recipe.lr_scale, int(student.warmup_epochs * 7)
        rates = [cosine(step, peak=peak, warmup_steps=warmup_steps, total_steps=7) for step in (0, 1, 6)]
        assert np.isfinite(np.float32(rates)).all()
    assert np.isfinite(np.float32([*recipe.loss.max_weights, recipe.loss.temperature**2, 1 / recipe.loss.temperature])).all()


ODD = [
    *(
        10**30,
        -(10**30),
        10**9,
        -1,
        0,
        1,
        1e300,
        -1e300,
        1e-300,
        5e-324,
        0.5,
        True,
        None,
        "",
        " ",
        "x",
        "\0",
        "..",
        "x" * 10_000,
    ),
    *([], {}, [[]], [0, 0], ["a"], [1e300, 1e300], [1e-300, 1e300], {"a": {"a": 1}}, math.nan, math.inf),
]


@pytest.mark.parametrize("key", [path for path, _ in leaves(Recipe().to_dict())])
def test_any_value_of_any_key_is_refused_in_one_line_or_works(key: str) -> None:
    *parents, last = key.split(".")
    refused = []
    for value in ODD:
        values = Recipe().to_dict()
        section: Any = values
        for part in parents:
            section = section[int(part)] if isinstance(section, list) else section[part]
        section[last] = value
        try:
            recipe = Recipe.from_dict(values, "mine")
        except ConfigError as error:
            refused.append(str(error))
        else:
            works(recipe)
    assert len(refused) >= 10
    for line in refused:
        assert last in line or f"{'.'.join(parents)} is named" in line, "it names the key"
        assert "\n" not in line
        assert len(line) < 700


def test_a_recipe_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        [views]
        size_px = 64
        resize_px = 72
        [evaluation]
        resize_px = 72
        [teacher]
        views = 3
        [[students]]
        architecture = "shufflenet_v2_x0_5"
        name = "tiny"
        [[students]]
        architecture = "squeezenet1_1"
        [[students]]
        architecture = "squeezenet1_1"
        """
    )
    recipe = load_recipe(str(file), ["students.2.lr=0.01", "train.epochs=7"])
    assert recipe.student_names() == ["tiny", "squeezenet1_1-1", "squeezenet1_1-2"]
    assert recipe.students[2].lr == 0.01
    assert recipe.train.epochs == 7
    assert recipe.teacher_spec == recipe.views.spec
    file.write_text("[train]\nepochs = 3\n")
    assert load_recipe(str(file), ["students.1.lr=0.01"]).students[1].lr == 0.01, "an index of a default list"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"[train\nepochs = 3", "is not TOML (Expected ']'"),
        (b"\xff\xfe[train]", "is not TOML ("),
        (b"train = 3", "train is 3; expected an object"),
        (b"[train]\nepochs = 3\nepochs = 4", "is not TOML ("),
        (b"seed = " + b"9" * 5000, "is not TOML ("),
        (b"[a]\nb = 1979-05-27T07:32:00Z", "a is not a key of a recipe"),
        (b"a = " + b"[" * 100_000, "is not TOML (it is nested too deeply)"),
        (b".".join([b"a"] * 100_000) + b" = 1", "is not TOML (it has a key of more than 40 parts)"),
        (b"#" * (1 << 20) + b"#", "has 1,048,577 bytes, more than 1,048,576"),
    ],
)
def test_a_file_that_is_not_a_recipe(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file))
    assert str(file) in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf[train]\nepochs = 3\n")
    assert load_recipe(str(file)).train.epochs == 3


def test_a_recipe_must_be_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "link.toml").symlink_to("nothing")
    for name in ("pipe.toml", "folder.toml", "link.toml", "n" * 300 + ".toml", "nul\0.toml"):
        with pytest.raises(ConfigError, match=r"expected a \.toml file"):
            load_recipe(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("smok", "did you mean smoke?"),
        ("Smoke", "did you mean smoke?"),
        ("smoke.toml", "did you mean smoke?"),
        ("", "correct it"),
        (".", "correct it"),
        ("nowhere/mine.toml", "correct it"),
    ],
)
def test_a_missing_recipe(name: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=r"not found; expected a \.toml file or one of .*smoke.*; " + re.escape(remedy) + "$"):
        load_recipe(name)


def test_a_missing_file_names_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "my-recipe.toml").touch()
    for name in ("my-recpe.toml", "my-recipe"):
        with pytest.raises(ConfigError, match=re.escape(f"did you mean {tmp_path}/my-recipe.toml?") + "$"):
            load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("train.epoch=3", "did you mean train.epochs?"),
        ("train.Epochs=3", "did you mean train.epochs?"),
        ("trian.epochs=3", "did you mean train?"),
        ("students.1.learning=3", "correct it"),
        ("students.1.lrr=3", "did you mean students.1.lr?"),
        ("train.alpha=1", "did you mean loss.alpha?"),
        ("lr=0.1", "did you mean students.N.lr or fit.lr?"),
        ("train.momentum=0.5", "did you mean students.N.momentum or fit.momentum?"),
        ("temprature=2", "did you mean loss.temperature?"),
        ("loss.schedule.alpha.to=3", "did you mean loss.schedules?"),
        ("views.size=64", "did you mean views.size_px?"),
        ("zzz=1", "correct it"),
    ],
)
def test_an_unknown_key_names_what_is_near(override: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("smoke", [override])
    assert str(error.value).endswith(f"; {remedy}")


def test_a_recipe_as_text_is_the_same_recipe(tmp_path: Path) -> None:
    odd = 'students.0.init_from="a\u200fb \U0001f388 \u0085\u007f \\\\ \\" ]"'
    settings = [
        odd,
        "students.0.optimizer=AdamW",
        "students.0.optimizer_options={eps=1e-9, betas=[0.8, 0.99]}",
        "data.workers=3",
    ]
    file = tmp_path / "text.toml"
    for name in shipped_recipes():
        recipe = load_recipe(name, settings)
        file.write_text(recipe_toml(recipe), "utf-8")
        assert load_recipe(file) == recipe
        assert all(line.isprintable() for line in file.read_text("utf-8").splitlines())


def test_each_recipe_begins_with_what_it_is_for() -> None:
    for name, line in shipped_summaries("recipe").items():
        assert re.fullmatch(r"[A-Z0-9].{20,118}\.", line), f"{name}: {line}"


OLD_KEYS = {
    "train.batch=8": "train.batch is now train.batch_size",
    "tune.combo_kernels=true": "tune is now perf",
    "students.1.join_epoch=1": "students.1.join_epoch is now students.1.start_epoch",
    "methods.crd.numbers=64": "methods.crd.numbers is now methods.crd.embed_dim",
    "loss.schedules.beta.shape=linear": "loss.schedules.beta.shape is now loss.schedules.beta.kind",
    "train.steps=captured": "train.steps is now train.input .stream or resident. and train.cuda_graph",
    "teacher.views=canonical": 'teacher.views = "canonical" is now "eval"',
    "loss.kl=student_teacher": 'loss.kl = "student_teacher" is now "reverse"',
}


@pytest.mark.parametrize(("override", "text"), OLD_KEYS.items(), ids=OLD_KEYS)
def test_an_old_key_is_an_error_with_the_new_name(override: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^smoke: {text}.*; change it$"):
        load_recipe("smoke", [override])


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_recipe_survives_its_old_keys(name: str) -> None:
    recipe = load_recipe(name)
    old = original(recipe.to_dict())
    assert changes(old)
    assert changes(recipe.to_dict()) == []
    assert current(recipe.to_dict()) == json.loads(json.dumps(recipe.to_dict()))
    assert Recipe.from_stored(old, "config.json") == recipe


def test_a_config_with_the_old_names() -> None:
    """A part of such a run folder's config: keys of every section that changed."""
    stored = {
        "evaluation": {"resize_px": 36, "flip": True},
        "teacher": {"views": "canonical", "batch": 32, "storage": "float32", "passes": 4, "folded": True},
        "students": [{"architecture": "resnet18", "weight": 2.0}, {"architecture": "mobilenet_v2", "join_epoch": 1}],
        "loss": {"direction": "teacher_student", "weight": "margin", "weight_control": "shuffled", "weight_seed": 3},
        "methods": {"crd": {"factor": 0.5, "numbers": 64}},
        "train": {"batch": 32, "steps": "captured", "loss": "eager", "lr_batch": 16},
        "tune": {"combo_kernels": True},
    }
    stored["loss"]["schedules"] = {"beta": {"shape": "linear", "to": 0.0}}  # type: ignore[index]
    stored["views"] = {"size_px": 32}
    recipe = Recipe.from_stored(stored, "config.json")
    assert recipe.evaluation.flip_tta
    assert (recipe.teacher.views, recipe.teacher.batch_size, recipe.teacher.logits_dtype) == ("eval", 32, "float32")
    assert (recipe.teacher.mc_samples, recipe.teacher.fold_bn) == (4, True)
    assert [(student.loss_weight, student.start_epoch) for student in recipe.students] == [(2.0, 0), (1.0, 1)]
    loss, train = recipe.loss, recipe.train
    assert (loss.kl, loss.sample_weight, loss.sample_weight_control, loss.sample_weight_seed) == (
        "forward",
        "margin",
        "shuffled",
        3,
    )
    assert loss.schedules.beta.kind == "linear"
    assert (recipe.methods.crd.weight, recipe.methods.crd.embed_dim) == (0.5, 64)
    assert (train.batch_size, train.input, train.cuda_graph) == (32, "resident", True)
    assert (train.loss_impl, train.lr_base_batch_size, recipe.perf.combo_kernels) == ("eager", 16, True)


def test_keys_that_were_removed() -> None:
    """Stored recipes open without them, a digest of before 0.1.0 still counts them, a recipe that sets one is refused."""
    perf = load_recipe("smoke").to_dict()["perf"]
    assert current({"tune": perf | {"streams": True, "realize_reads": 8, "autotune": False}}) == {"perf": perf}
    assert original({"perf": perf}) == {"tune": perf | {"streams": False, "realize_reads": 0, "autotune": False}}
    with pytest.raises(ConfigError, match=r"perf\.streams was removed: no measurement showed that it helps; change it"):
        load_recipe("smoke", ["perf.streams=true"])
