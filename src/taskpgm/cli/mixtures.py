"""A mixture for the terminal: what to do and how sure that is, the table, bounds that bind, relations, verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from taskpgm.cli.listing import Listing, some
from taskpgm.evaluation.form import Form, form_sentence
from taskpgm.mixture.affinity import Affinity
from taskpgm.mixture.balance import BalanceCurve
from taskpgm.mixture.doubts import few_contexts
from taskpgm.mixture.expected import expected_sentence
from taskpgm.mixture.explanation import REDUNDANT, Explanation, strongest_pairs
from taskpgm.mixture.limits import ALL
from taskpgm.mixture.path import KnobPath
from taskpgm.mixture.selection import Selection
from taskpgm.pool.plan import rows_again, tokens_apart
from taskpgm.progress import many

COLUMN = {"size-proportional": "size"}
MOST = 20  # rows of a table of tasks, as many as a terminal shows at once; with --all every one
NATS = ("likelihood", "gain")  # energies in nats a token
OTHER_SHARE = {"row_share": "row share", "token_share": "tokens"}  # the share that the weight is not
LEARNED = "expected: by the trainings of seven settings of one small model; "
LEAST_PRICE = 1e-6  # of a hundredth of the budget; below, a bound binds by rounding


def mixture_view(
    data: Mapping[str, Any], affinity: Affinity | None = None, everything: bool = False, doubts: Sequence[str] = ()
) -> RenderableType:
    """All of it.

    Args:
        data: mixture.json.
        affinity: for the relations between tasks.
        everything: all tasks, however many there are.
        doubts: why the errors may be too small.
    """
    relations = relation_lines(affinity) if affinity else []
    again = [said] if (said := rows_again(data)) else []
    bounds = (*left_out_lines(data), *bound_lines(data), *limit_lines(data), *again)
    lines = (*bounds, *drawn_lines(data), *token_lines(data), *knob_lines(data), *relations, *verdict_lines(data))
    return Group(
        Text(headline(data), style="bold"), mixture_table(data, everything), *map(Text, lines),
        *(Text(doubt, style="yellow") for doubt in doubts), *map(Text, certificate_lines(data)),
    )  # fmt: skip


def headline(data: Mapping[str, Any]) -> str:
    """What to train on, and how sure it is that it is better than uniform."""
    tasks = sorted(data["tasks"], key=lambda task: -task["weight"])
    used = [task for task in tasks if task["weight"] > 0.0005]
    size = many(data["budget"]["rows"], "row") if "budget" in data else "the budget"
    if len(used) > 1 and used[0]["weight"] < 1.5 * used[-1]["weight"]:
        least, most = used[-1]["weight"], used[0]["weight"]
        what = f"Spread {size} nearly evenly over {len(used)} tasks, {least:.0%} to {most:.0%} each"
    else:
        named = [f"{task['name']} ({task['weight']:.0%})" for task in used[:3]]
        what = f"Spend {size} {'' if len(used) <= 3 else 'mostly '}on {_joined(named)}"
    return f"{what}. {_how_sure(data)}."


def _how_sure(data: Mapping[str, Any]) -> str:
    verdict = next((v for v in data["verdicts"] if v["reference"] == "uniform"), None)
    if verdict is None:
        surrogate = data["energy"]["kind"] == "surrogate"
        return (
            "It is what the trials choose"
            if surrogate
            else "The energy asks for it; there are no contexts to judge it by"
        )
    size = f"{abs(verdict['gain']):.3f}{_error(verdict)}{_unit(data)}"
    if verdict["better"]:
        few = ", which are few (see below)" if few_contexts(verdict["groups"]) else ""
        return f"By the probes it is better than uniform, by {size} on held-out contexts{few}; not measured by training"
    side = "better" if verdict["gain"] > 0 else "worse"
    if rows_again(data):
        blind = "they do not see that it repeats rows less"
        return f"By the probes alone it is {side} than uniform, by {size} on held-out contexts; {blind}"
    return f"It is not shown to be better than uniform: by the probes {side} by {size} on held-out contexts"


def mixture_table(data: Mapping[str, Any], everything: bool = False) -> Listing:
    """Weights with their intervals, counts and reference shares, heaviest first; tasks that are left out are not there.

    Of more than `MOST` tasks the heaviest are shown and the others summed, unless `everything` is asked for.
    """
    references = list(data["tasks"][0]["references"])
    counted = "count" in data["tasks"][0]
    sampled = data["replicates"] is not None
    other = "row_share" if data.get("budget", {}).get("unit") == "tokens" else "token_share"
    both = counted and other in data["tasks"][0]
    counts_of = ["rows", "epochs"] * counted + [OTHER_SHARE[other]] * both
    measured = ["95% CI"] * sampled + counts_of
    header = ["task", "weight", "", *measured, *(COLUMN.get(name, name) for name in references)]
    tasks = sorted(_in_use(data), key=lambda task: (-task["weight"], task["name"]))
    shown, rest = _shortened(tasks, everything)
    rows = []
    for task in shown:
        bar = Text("█" * round(6 * task["weight"] / tasks[0]["weight"]), style="cyan")
        cells: list[str | Text] = [task["name"], f"{task['weight']:.1%}", bar]
        cells += [_interval(task, len(data["replicates"]))] if sampled else []
        cells += [str(task["count"]), f"{task['epochs']:.2f}"] if counted else []
        cells += [f"{task[other]:.1%}"] if both else []
        rows.append([*cells, *(f"{task['references'][r]:.1%}" for r in references)])
    if rest:
        sums = [f"{sum(task['references'][r] for task in rest):.1%}" for r in references]
        counts = [str(sum(task["count"] for task in rest)), ""] if counted else []
        counts += [f"{sum(task[other] for task in rest):.1%}"] if both else []
        weight = f"{sum(task['weight'] for task in rest):.1%}"
        rows.append([f"{len(rest)} more (--all)", weight, "", *[""] * sampled, *counts, *sums])
    return Listing(header, rows, frozenset({"", "95% CI"}))


def _in_use(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [task for task in data["tasks"] if task.get("max_share") != 0]


def _shortened(tasks: Sequence[Any], everything: bool) -> tuple[Sequence[Any], Sequence[Any]]:
    """Those to show, and the others; two more than `MOST` are shown too, a line of sums would save nothing."""
    most = len(tasks) if everything or len(tasks) <= MOST + 2 else MOST
    return tasks[:most], tasks[most:]


def _interval(task: Mapping[str, Any], groups: int) -> str:
    if task["at_bound"]:
        low = task["weight"] <= task["min_share"] + 1e-9
        floor = "min_share" if task["min_share"] > 0 else "zero"
        often, of = task["off_bound_frequency"], ""
        if often is not None and often > 0:
            of = f" in {round((1 - often) * groups)} of {groups}"
        cap = task.get("max_share_from", "max_share") if task["max_share"] < 1 else "the whole budget"
        return f"at {floor if low else cap}{of}"
    return "" if task["interval"] is None else f"{100 * task['interval'][0]:.1f}–{task['interval'][1]:.1%}"


def left_out_lines(data: Mapping[str, Any]) -> list[str]:
    """Tasks that may have no share, by a selection or by their max_share."""
    names = [task["name"] for task in data["tasks"] if task.get("max_share") == 0]
    return [f"left out: {some(names, 6)}"] if names else []


def drawn_lines(data: Mapping[str, Any]) -> list[str]:
    """How close the plan came to a budget of tokens, and rows that turned out not to fit when they were drawn."""
    budget, lines = data.get("budget", {}), []
    if "tokens" in budget:
        off = budget["tokens"] / budget["size"] - 1
        lines.append(f"{budget['tokens']:,} response tokens of the budget's {budget['size']:,} ({off:+.2%})")
    over = [f"{task['name']} {task['replaced']}" for task in data["tasks"] if task.get("replaced")]
    if over:
        lines.append(f"drawn rows that did not fit, replaced by the next: {some(over, 6)}")
    return lines


def token_lines(data: Mapping[str, Any]) -> list[str]:
    """The task whose shares of rows and of response tokens differ most, if twofold, and what to do about it."""
    shares = {task["name"]: (task.get("row_share", 0.0), task.get("token_share", 0.0)) for task in data["tasks"]}
    said = tokens_apart(shares, data["budget"]["unit"]) if "budget" in data else None
    return [said] if said else []


def bound_lines(data: Mapping[str, Any], most: int = 5) -> list[str]:
    """Bounds that hold a share up or down, and what a hundredth of the budget more or less there is worth."""
    unit = _unit(data)
    prices = []
    for task in _in_use(data):
        why = task.get("max_share_from", "max_share")
        held = {"supply": f"all that {task['name']} supplies", "max_share": f"the max_share of {task['name']}"}
        prices.append((task.get("multiplier_upper", 0.0), held.get(why, why), task["max_share"], "more"))
        if task["min_share"] > 0:
            least = f"the min_share of {task['name']}"
            prices.append((task.get("multiplier_lower", 0.0), least, task["min_share"], "less"))
    for group in data.get("groups", ()):
        side, share = (
            ("max_share", group["max_share"]) if group["multiplier"] > 0 else ("min_share", group["min_share"])
        )
        bound = f"the {side} of group {group['name']}"
        prices.append((abs(group["multiplier"]), bound, share, "more" if side == "max_share" else "less"))
    binding = sorted((one for one in prices if 0.01 * one[0] > LEAST_PRICE), key=lambda one: -one[0])
    lines = [
        f"binding: {what}, {share:.1%}; a hundredth of the budget {side} there would gain {0.01 * price:.2g}{unit}"
        for price, what, share, side in binding[:most]
    ]
    return lines + (
        [f"and {many(len(binding) - most, 'more bound')} (mixture.json: prices)"] if len(binding) > most else []
    )


def limit_lines(data: Mapping[str, Any]) -> list[str]:
    """The limits on the tasks' losses, and which of them hold the mixture back."""
    limits = data["energy"]["settings"].get("limits", [])
    held = [one for one in limits if one["price"] > 0]
    lines = [
        f"held back by energy.{'max_loss' if one['name'] == ALL else 'max_task_loss'}: {one['name']} "
        f"{one['loss'] / one['uniform'] - 1:+.1%} against uniform as predicted; 1 % more would lower the energy by "
        f"{data['prices'][one['name'] + '.max_loss']:.4f}"
        for one in held
    ]
    if limits and not held:
        lines.append("limits on the tasks' losses (energy.max_task_loss, max_loss): none holds the mixture back")
    return lines


def knob_lines(data: Mapping[str, Any]) -> list[str]:
    """What a knob was chosen by, if it was left open."""
    settings = data["energy"]["settings"]
    if "tried" not in settings:
        return []
    tried = ", ".join(f"{t}: {loss:.4f}" for t, loss in settings["tried"].items())
    return [f"t = {settings['t']:g} has the lowest predicted loss of the tasks, in nats a token ({tried})"]


def verdict_lines(data: Mapping[str, Any]) -> list[str]:
    """What a training is expected to change; then for each reference mixture: is its loss by the probes higher, on
    contexts that chose nothing?"""
    lines = [expected_sentence(data["expected"])] if data.get("expected") else []
    for v in data["verdicts"]:
        verdict = "better than" if v["better"] else "not shown to be better than"
        lines.append(f"held-out contexts: {verdict} {v['reference']} by {v['gain']:+.4f}{_error(v, 4)}{_unit(data)}")
    if data["verdicts"]:
        lines.append(
            f"({LEARNED if data.get('expected') else ''}held-out contexts: by the probes, cross-fitted, which ranks "
            "mixtures and promises no gain in training; `taskpgm run --trial` measures that. Errors and intervals "
            "cover the choice of contexts, and of probes if probes.seeds > 1)"
        )
    return lines


def certificate_lines(data: Mapping[str, Any]) -> list[str]:
    """How far the mixture can be from the optimum of its energy."""
    certificate = data["certificate"]
    return [f"certified: gap {certificate['gap']:.1e}, stationarity {certificate['stationarity']:.1e}"]


def relation_lines(affinity: Affinity, most: int = 3) -> list[str]:
    """The strongest redundancies and interferences of different tasks, in words."""
    pairs = strongest_pairs(affinity, most)
    alike = [pair for pair in pairs["redundancies"] if pair["correlation"] >= REDUNDANT]
    lines = [
        f"redundant: {first} and {second}, correlation {pair['correlation']:.2f}"
        for pair in alike
        for first, second in [pair["tasks"]]
    ]
    if not alike:
        lines.append(f"no two tasks are redundant: all correlations are below {REDUNDANT:g}")
    for pair in pairs["interferences"]:
        error = "" if pair["standard_error"] is None else f" ± {pair['standard_error']:.2f}"
        others = len(pair["others"])
        more = f", and {many(others, 'more set')}" if others else ""
        worse = f"{-pair['gain']:.2f}{error} nats a token worse"
        lines.append(f"interfering: {pair['task']} makes {pair['set']} {worse}{more}")
    if pairs["interferences"]:
        lines.append("(correlation of affinities, 1 for copies; worse than before the task was trained on)")
    if "G" in affinity.matrices and not pairs["interferences"]:
        lines.append("no interference: no probe predicts another set worse than where it started")
    return lines


def selection_view(selection: Selection, everything: bool = False) -> RenderableType:
    """Chosen tasks in order, what each added, and how far from the best set they can be."""
    steps = list(zip(selection.chosen, selection.values, selection.gains, strict=True))
    shown, rest = _shortened(steps, everything)
    rows = []
    for place, (task, value, gain) in enumerate(shown, 1):
        part = value / selection.full_value if selection.full_value > 0 else 1.0
        rows.append([task, str(place), f"{gain:.4g}", f"{part:.1%}"])
    if rest:
        rows.append([f"{len(rest)} more (--all)", "", f"{sum(gain for *_, gain in rest):.4g}", ""])
    found = (
        "the best set there is"
        if selection.exhaustive
        else f"at least {selection.certified:.1%} of the best set's value"
    )
    table = Listing(["task", "place", "gain", "of all tasks' value"], rows)
    return Group(table, Text(f"{many(len(selection.chosen), 'task')}: {found}"))


def explanation_view(explanation: Explanation, kind: str, everything: bool = False) -> RenderableType:
    """Interchangeable tasks; then what is lost without each task and who takes over its share, dearest first.

    Args:
        kind: of the energy, which says its unit.
        everything: all tasks, or the ten dearest.
    """
    dropped = sorted(
        explanation.dropped, key=lambda one: (-(np.inf if one.loss is None else round(one.loss, 6)), -one.share)
    )
    shown = dropped if everything or len(dropped) <= 12 else dropped[:10]
    rows = []
    for one in shown:
        takers = sorted(one.takers.items(), key=lambda item: -item[1])[:3]
        loss = "cannot" if one.loss is None else f"{one.loss:.4f}" if kind in NATS else f"{one.loss:.4g}"
        rows.append(
            [
                one.task,
                f"{one.share:.1%}",
                loss,
                "\n".join(f"{name} {change:+.1%}" for name, change in takers if change > 0),
            ]
        )
    unit = "nats a\ntoken lost" if kind in NATS else "energy\nlost"
    table = Listing(["without", "weight", unit, "who takes over"], rows, frozenset({"who takes over"}))
    groups = [Text(f"interchangeable: {some(group, 12)}") for group in explanation.clusters]
    more = [Text(f"{len(dropped) - len(shown)} more tasks lose less (--all)")] if len(shown) < len(dropped) else []
    same = "energy without the task less energy with it, prior and price of repetition included"
    if len(groups) > 10 and not everything:
        groups = [*groups[:10], Text(f"and {many(len(groups) - 10, 'more group')} of interchangeable tasks (--all)")]
    return Group(*groups, table, *more, Text(same, style="dim"))


def balance_view(curve: BalanceCurve) -> RenderableType:
    """What the targets gain and the tasks lose at every balance, against uniform, and the heaviest tasks."""
    rows = []
    for point in curve.points:
        heaviest = sorted(point.weights, key=lambda task: -point.weights[task])[:1]
        shares = " ".join(f"{task} {point.weights[task]:.0%}" for task in heaviest)
        changes = [f"{100 * x:+.1f} %" for x in (point.targets, point.tasks, point.worst)]
        rows.append([f"{point.balance:g}", *changes, point.worst_task, shares])
    header = ["balance", "targets", "tasks", "worst", "task", "heaviest"]
    note = "losses against uniform's, as the probes' ensemble predicts them, not as trained"
    return Group(Listing(header, rows, frozenset({"task", "heaviest"})), Text(note))


def form_view(form: Form) -> RenderableType:
    """Predicted gains by target, in nats a question, and what that says."""
    rows = []
    for one in sorted(form.targets, key=lambda one: one.right):
        error = "" if one.error is None else f" ± {one.error:.4f}"
        gains = f"{-one.right:+.4f}", f"{-one.form:+.4f}", f"{-one.choice:+.4f}{error}"
        rows.append([one.name, str(one.questions), *gains])
    header = ["target", "questions", "gain", "form", "choice"]
    return Group(Listing(header, rows), Text(form_sentence(form.to_dict())))


def path_view(path: KnobPath, everything: bool = False) -> RenderableType:
    """Weights at every value of the knob, those first that are heaviest anywhere."""
    at = np.unique(np.linspace(0, len(path.values) - 1, min(8, len(path.values))).round().astype(int))
    order = sorted(range(len(path.tasks)), key=lambda i: (-path.weights[:, i].max(), path.tasks[i]))
    shown, rest = _shortened(order, everything)
    rows = [[path.tasks[i], *(f"{path.weights[k, i]:.1%}" for k in at)] for i in shown]
    if rest:
        rows.append([f"{len(rest)} more (--all)", *(f"{path.weights[k, list(rest)].sum():.1%}" for k in at)])
    header = [f"{path.knob} =", *(f"{path.values[k]:g}" for k in at)]
    few = [Text(f"{len(at)} of {len(path.values)} values")] if len(at) < len(path.values) else []
    return Group(Listing(header, rows), *few)


def _unit(data: Mapping[str, Any]) -> str:
    return " nats a token" if data["energy"]["kind"] in NATS else ""


def _error(verdict: Mapping[str, Any], digits: int = 3) -> str:
    error = verdict["standard_error"]
    return "" if error is None else f" ± {error:.{digits}f}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
