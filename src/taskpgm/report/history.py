"""How did it run? Learning curves of the probes, time and memory, versions, settings, the commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from plotly.graph_objects import Bar, Scatter

from taskpgm.probes.cache import read_training
from taskpgm.report.material import Material
from taskpgm.report.parts import Picture, Section, Table, joined
from taskpgm.report.style import COLOURS, blank, text

FLAT = 0.02  # part of its loss that a probe must have lost; a guess, well below what any useful probe learns
Curves = Mapping[str, Sequence[float]]


def section(material: Material) -> Section:
    """Curves, costs, and what it takes to do it again."""
    curves, manifest = read_curves(material.run.path), material.run.manifest
    lines, pictures = [_doubts(curves)], []
    if curves:
        table: dict[str, list[Any]] = {
            "probe": [name for name, curve in curves.items() for _ in curve],
            "step": [k + 1 for curve in curves.values() for k in range(len(curve))],
            "loss": [value for curve in curves.values() for value in curve],
        }
        pictures.append(Picture("curves", "Loss of every probe by step, in nats a token", figure(curves), table))
    stages = manifest.get("stages", {})
    pictures.append(_time(stages))
    lines.append(cost(stages))
    return Section(
        "history", "How did it run?", lines, pictures, [_stages(stages), _versions(manifest)], texts=_texts(material)
    )


def read_curves(folder: Path) -> dict[str, list[float]]:
    """Losses by step of the warm starts and of every probe that was trained here."""
    found = {}
    for file in [*sorted(folder.glob("warm*/training.json")), *sorted(folder.glob("adapters*/**/training.json"))]:
        name = str(file.parent.relative_to(folder)).removeprefix("adapters/")
        losses = read_training(file.parent).get("losses") or []
        if losses:
            found[name] = [float(value) for value in losses]
    return found


def flat(curve: Sequence[float]) -> bool:
    """Whether the last quarter of the steps is no better than the first, on average."""
    quarter = max(1, len(curve) // 4)
    return len(curve) >= 4 and float(np.mean(curve[-quarter:])) > (1 - FLAT) * float(np.mean(curve[:quarter]))


def exploding(curve: Sequence[float]) -> bool:
    """Whether a loss is not finite, or ends half above where it began."""
    quarter = max(1, len(curve) // 4)
    ends = float(np.mean(curve[-quarter:]))
    return not np.isfinite(curve).all() or ends > 1.5 * float(np.mean(curve[:quarter]))


def _doubts(curves: Curves) -> str:
    if not curves:
        return "No probe was trained here (adapters were brought), so there are no learning curves."
    bad = [name for name, curve in curves.items() if exploding(curve)]
    still = [name for name, curve in curves.items() if name not in bad and flat(curve)]
    said = [f"exploded: {joined(bad, 6)}"] * bool(bad) + [f"flat: {joined(still, 6)}"] * bool(still)
    found = "; ".join(said) if said else "every one learned, none exploded"
    return f"Learning curves of {len(curves)} adapters: {found}."


def figure(curves: Curves) -> Any:
    """One line a probe; flat ones dotted, exploding ones dashed, both above the rest."""
    made = blank(420, xaxis={"title": "step"}, yaxis={"title": "loss, nats a token"}, hovermode="closest")
    for k, (name, curve) in enumerate(curves.items()):
        dash = "dash" if exploding(curve) else "dot" if flat(curve) else "solid"
        made.add_trace(
            Scatter(
                x=list(range(1, len(curve) + 1)),
                y=[float(f"{v:.5g}") for v in curve],
                mode="lines",
                name=text(name),
                showlegend=len(curves) <= 16,
                line={"dash": dash, "width": 1.5 if dash == "solid" else 3, "color": COLOURS[k % 8]},
                hovertemplate=f"{text(name)}: %{{y:.3f}} at step %{{x}}<extra></extra>",
            )
        )
    return made


def _time(stages: Mapping[str, Any]) -> Picture:
    names, seconds = list(stages), [float(one["seconds"]) for one in stages.values()]
    made = blank(110 + 26 * len(names), xaxis={"title": "seconds"}, yaxis={"automargin": True, "autorange": "reversed"})
    made.add_trace(
        Bar(
            x=seconds,
            y=names,
            orientation="h",
            marker={"color": COLOURS[0]},
            hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
        )
    )
    return Picture("time", "Seconds of each stage", made, {"stage": names, "seconds": seconds})


def cost(stages: Mapping[str, Any]) -> str:
    """Time, memory and tokens of a run, in a sentence."""
    seconds = sum(float(one["seconds"]) for one in stages.values())
    memory = max((float(one.get("peak_memory") or 0) for one in stages.values()), default=0.0)
    trained = stages.get("probe", {}).get("trained_tokens", 0)
    scored = stages.get("score", {}).get("scored_tokens", 0)
    return (
        f"It took {seconds:,.0f} s and {memory / 2**30:.1f} GiB at most: {trained:,} tokens trained, {scored:,} scored."
    )


def _stages(stages: Mapping[str, Any]) -> Table:
    facts = [
        [
            name,
            f"{one['seconds']:.1f} s",
            f"{(one.get('peak_memory') or 0) / 2**20:,.0f} MiB",
            ", ".join(
                f"{k.replace('_', ' ')} {v}" for k, v in one.items() if k not in ("parts", "seconds", "peak_memory")
            ),
        ]
        for name, one in stages.items()
    ]
    return Table("Stages", ["stage", "time", "memory at most", "facts"], facts)


def _versions(manifest: Mapping[str, Any]) -> Table:
    rows = [["taskpgm", str(manifest.get("taskpgm"))], ["python", str(manifest.get("python"))]]
    rows += [[name, str(version)] for name, version in manifest.get("versions", {}).items()]
    rows += [[name, str(value)] for name, value in manifest.get("hardware", {}).items()]
    rows.append(["model", f"{manifest['model']['path']} ({manifest['model']['fingerprint']})"])
    return Table("Versions and machine", ["what", "which"], rows, folded=True)


def _texts(material: Material) -> dict[str, str]:
    settings = yaml.safe_dump(material.run.manifest["settings"], sort_keys=False, allow_unicode=True)
    commands = f"taskpgm run {material.command}\ntaskpgm report {material.run.path}"
    return {"Commands to do it again": commands, "Settings": settings}
