"""RUN/report: one page on a run, and its figures as PNG files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udkd.report import calibration, certainty, comparison, curves, disagreement, gallery, style, tables, weight_errors
from udkd.report.inputs import ReportInputs
from udkd.report.page import Facts, Note, Page, PageSection, render
from udkd.report.text import comma_list, count
from udkd.training.run_folder import flatten
from udkd.utils.files import FolderLock, write_bytes, write_text

FIGURE_FILES = (
    *(f"loss-{term}.png" for term in ("hard", "teacher", "peer", "method")),
    *("accuracy-val.png", "accuracy-train.png", "learning-rate.png"),
    *(f"{kind}{split}.png" for kind in ("weights", "entropies", "classes", "teacher-accuracy") for split in ("", "-val")),
    *("surest.png", "least-sure.png", "reliability-*.png", "agreement.png", "disagreement-?.png", "gain-by-weight.png"),
    *("classes-?-?.png", "gain-classes-?.png", "failures-?.png"),
)
"""Patterns of the files of all figures. Writing a report removes the old ones that it lacks, so that none is stale."""


def write_report(inputs: ReportInputs) -> Path:
    """Write OUT/index.html and its figures; equal inputs give equal bytes. Returns the page's path.

    Raises BusyError while another process writes there, so that page and figures are of one report.
    """
    possible = [
        tables.result_section(inputs),
        comparison.section(inputs),
        curves.section(inputs),
        certainty.section(inputs),
        weight_errors.section(inputs),
        calibration.section(inputs),
        disagreement.section(inputs),
        _no_predictions(inputs),
        gallery.section(inputs),
        tables.paper_section(inputs),
        _provenance(inputs),
    ]
    sections = [section for section in possible if section is not None]
    page = Page(title=inputs.name, subtitle=_subtitle(inputs), lead=_lead(inputs), sections=sections)
    inputs.out.mkdir(parents=True, exist_ok=True)
    figures = {name: data for section in sections for name, data in section.files().items()}
    path, text = inputs.out / "index.html", render(page, style.css())
    with FolderLock(inputs.out):
        for old in (old for pattern in FIGURE_FILES for old in inputs.out.glob(pattern)):
            if old.name not in figures:
                old.unlink()
        for name, data in figures.items():
            write_bytes(inputs.out / name, data)
        write_text(path, text)
    return path


def _subtitle(inputs: ReportInputs) -> str:
    facts, recipe = inputs.data, inputs.recipe
    parts = [comma_list(inputs.student_names)]
    if recipe.needs_teacher:
        architecture = (inputs.teacher or {}).get("architecture") or "unknown"
        parts[0] += f", teacher {architecture}"
    if facts is not None:
        parts.append(f"{facts.num_classes} classes, {facts.train_images:,} + {facts.val_images:,} images")
    done, planned = len(inputs.metrics), recipe.train.epochs
    epochs = count(planned, "epoch") if done == planned else f"{done} of {count(planned, 'epoch')}"
    return " · ".join([*parts, f"{recipe.views.size_px} px", epochs])


def _lead(inputs: ReportInputs) -> str:
    """The result in one sentence."""
    results, _ = tables.results_of(inputs)
    if not results:
        return "There are no results yet."
    students = [f"{result.name} {result.top1:.1f} %" for result in results if result.kind == "student"]
    text = f"Top-1: {comma_list(students)}"
    for result in results:
        if result.kind != "student":
            name = "averaged" if result.kind == "average" else "the teacher"
            text += f"; {name} {result.top1:.1f} %"
    classes = (inputs.evaluation or {}).get("num_classes") or (inputs.data.num_classes if inputs.data else None)
    text += f". Chance is {100 / classes:.3g} %." if classes else "."
    return f"{text} {comparison.lead(inputs)}".strip()


def _no_predictions(inputs: ReportInputs) -> PageSection | None:
    """The section in place of the analysis by image, where there are no predictions."""
    if inputs.predictions is not None:
        return None
    why = inputs.why_no_predictions or "udkd eval has not run"
    text = f"Calibration, disagreement and accuracy by weight are missing: {why}; then udkd report again."
    return PageSection(anchor="analysis", title="Image by image", blocks=[Note(text=text, missing=True)])


def _provenance(inputs: ReportInputs) -> PageSection:
    """Everything needed to repeat the run."""
    blocks: list[Any] = []
    if inputs.why_no_data:
        blocks.append(Note(text=inputs.why_no_data, missing=True))
    if inputs.provenance.get("command"):
        blocks.append(Facts(title="Command", text=str(inputs.provenance["command"]), open=True))
    blocks.append(
        Facts(title="Data, cache, teacher, versions, hardware", facts=_pairs(inputs.provenance, ("command", "format")))
    )
    if inputs.teacher is not None:
        blocks.append(Facts(title="Teacher", facts=_pairs(inputs.teacher, ())))
    blocks.append(Facts(title="Full recipe", text=json.dumps(inputs.recipe.to_dict(), indent=2, ensure_ascii=False)))
    return PageSection(anchor="provenance", title="How to reproduce it", blocks=blocks)


def _pairs(values: Mapping[str, Any], without: tuple[str, ...]) -> list[tuple[str, str]]:
    shown = {name: value for name, value in values.items() if name not in without}
    if "classes" in shown:
        shown["classes"] = len(shown["classes"])
    pairs = flatten(shown, lists=False).items()
    return [(name.replace("_", " ").replace(".", " · "), _text(value)) for name, value in pairs]


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value) or "none"
    return "none" if value is None or value == {} else str(value)
