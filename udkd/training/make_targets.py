"""A run's teacher and cache, made in the run folder where only a network or a teacher is named."""

from dataclasses import replace
from pathlib import Path

from udkd.data.dataset import DatasetFolder
from udkd.models.architectures import registered_name, require_known
from udkd.teacher.cache.build import build_cache
from udkd.teacher.folder import TeacherFolder
from udkd.training.import_teacher import import_teacher
from udkd.training.run_folder import RunFolder
from udkd.training.setup import TrainJob
from udkd.utils.errors import ConfigError
from udkd.utils.folder_kinds import require_no_other


def with_targets(job: TrainJob, teacher: str | Path | None) -> TrainJob:
    """The job with a teacher folder, and with a cache where its recipe needs one and none is named.

    teacher: a teacher folder; or a network with published weights, such as timm/resnet50.a1_in1k, which is imported into
    OUT/teacher. The cache is built in OUT/cache; both are kept, and are continued after an interruption.
    Raises ConfigError for a teacher that is neither, or another than that of OUT/teacher. RunError: no run to resume.
    """
    if teacher is None or not job.recipe.needs_teacher:
        return job if teacher is None else replace(job, teacher=_folder(teacher))
    require_no_other(job.out, "run")  # before anything is written
    # The main process knows: a shared disk may show the others an older state.
    resumed = bool(job.group.gather("resumed", job.resume and RunFolder.is_at(job.out))[0])
    if job.extend and not resumed:
        RunFolder.open(job.out)  # raises
    folder = _folder(teacher) or _imported(job, str(teacher))
    if job.group.is_main:
        job.group.set("teacher")
    job, cache = replace(job, teacher=folder), job.out / "cache"
    started = resumed and not cache.is_dir()  # with another cache, which a run names itself
    if job.recipe.teacher.source != "cache" or job.cache is not None or job.more_teachers or started:
        return job
    build_cache(
        cache,
        dataset=DatasetFolder.open(job.data),
        teacher=folder,
        recipe=job.recipe,
        device=job.device,
        observer=job.observer,
        group=job.group,
    )
    return replace(job, cache=cache)


def _folder(teacher: str | Path) -> Path | None:
    """The teacher folder of this name, if there is one."""
    return Path(teacher) if Path(teacher).is_dir() else None


def _imported(job: TrainJob, architecture: str) -> Path:
    """The folder OUT/teacher with a network's published weights, imported unless they are there."""
    try:
        require_known(architecture)
    except ConfigError as error:
        raise ConfigError(f"teacher {architecture} is not a folder, and no network: {error}") from None
    folder = job.out / "teacher"
    if not job.group.is_main:
        job.group.wait("teacher")  # the main process imports it
    if (folder / "teacher.json").exists():
        if (found := TeacherFolder.open(folder).info.architecture) not in (architecture, registered_name(architecture)):
            raise ConfigError(f"{folder} is a {found}; expected {architecture}; remove it, or name another run folder")
        return folder
    written = import_teacher(
        folder, data=job.data, model=architecture, recipe=job.recipe, device=job.device, observer=job.observer
    )
    job.observer.note(f"teacher {architecture}: validation top-1 {written.info.accuracy['top1']:.2f} %, in {folder}")
    return folder
