"""The figures of ``superlink eval scenes`` and ``superlink bench latency`` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from rich.table import Table

from services.evaluation.latency import LatencyReport
from services.evaluation.scenes_report import ScenesReport


def scenes_table(report: ScenesReport) -> Table:
    """All figures of an evaluation, over everything and by language."""
    languages = list(report.by_language)
    table = Table("figure", "all", *languages, title=f"{report.prompts} prompts on {report.scenes} scenes")
    of_languages = report.by_language
    rows: list[tuple[str, float | None, str | None]] = [
        ("routing accuracy", report.routing.accuracy, "routing"),
        ("routing accuracy, several phrases", report.routing.accuracy_several, None),
        ("routing accuracy, several tools", report.routing.accuracy_multi, "routing_multi"),
        ("detection AP", report.detection.ap, "ap"),
        ("detection AP50", report.detection.ap50, "ap50"),
        ("detection AP, teacher-forced", report.detection.ap_teacher_forced, None),
        ("detection AP50, teacher-forced", report.detection.ap50_teacher_forced, None),
        ("detector's presence accuracy", report.detection.presence_accuracy, None),
        ("presence", report.presence.accuracy, "presence"),
        ("presence without tools", report.presence.without_tools, None),
        ("counting", report.counting.accuracy, "counting"),
        ("counting without tools", report.counting.without_tools, None),
        ("referring, IoU 0.5", report.refer.accuracy, "refer"),
        ("comparing", report.compare.accuracy, "compare"),
        ("open requests, F1", report.open.f1, "open_f1"),
        ("open requests, exact", report.open.exact, None),
        ("masks AP50", report.segmentation.instance_ap50, "segmentation.instance_ap50"),
        ("semantic mIoU", report.segmentation.semantic_miou, "segmentation.semantic_miou"),
        ("referring mIoU", report.segmentation.referring_miou, "segmentation.referring_miou"),
        ("interactive mIoU, points", report.segmentation.interactive_miou, "segmentation.interactive_miou"),
        ("poses AP50 by OKS", report.pose.oks_ap50, "pose.oks_ap50"),
        *((f"poses AP50 by OKS, {kind}", value, None) for kind, value in report.pose.by_kind.items()),
        ("drawings with what was asked", report.generation.detector_agreement, "generation.detector_agreement"),
        ("drawings with something else", report.generation.baseline, "generation.baseline"),
        ("edits verified", report.editing.change_verified, "editing.change_verified"),
        ("untouched pixels, PSNR in dB", report.editing.untouched_psnr, "editing.untouched_psnr"),
    ]
    for label, value, key in rows:
        values = [attrgetter(key)(of_languages[language]) if key else None for language in languages]
        table.add_row(label, _number(value), *(_number(entry) for entry in values))
    table.add_section()
    table.add_row("failed prompts", str(report.failed_prompts))
    table.add_row("seconds", f"{report.seconds:g}")
    for note in report.notes:
        table.add_row(note)
    return table


def latency_tables(report: LatencyReport) -> Iterator[Table]:
    """What a user waits, then where the time goes, both in milliseconds."""
    waits = Table("request", "count", "p50 ms", "p90 ms", "p99 ms", "mean ms", title="What a user waits")
    parts = Table("part", *report.endpoints, title="Where the time goes: median ms")
    for kind, figures in report.endpoints.items():
        times = (figures.p50_ms, figures.p90_ms, figures.p99_ms, figures.mean_ms)
        waits.add_row(kind, str(figures.requests), *(f"{value:.1f}" for value in times))
    for name in sorted({name for figures in report.endpoints.values() for name in figures.parts}):
        medians = [figures.parts.get(name) for figures in report.endpoints.values()]
        parts.add_row(name, *(f"{part.p50_ms:.1f}" if part else "" for part in medians))
    yield waits
    yield parts


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
