"""`Prediction`: what mixtures would reach, without training.

    ensemble    F(p) + 0.2 KL(p‖u), the loss of the probes' ensemble and what trainings lose by leaving uniform; and
                the price of rows that are seen again, if the mixture's energy has one
    gain        the loss that probes start from − Σ p_i Σ_j w_j G_ij + κ KL(p‖u), with the prior of the gain energy
    merged      the loss under the probes merged with weights p: Σ p_i B_i A_i

The first two need only the scores. All read the contexts of the targets (of the tasks if there are none), and no
row that `compare` evaluates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import rel_entr
from scipy.stats import spearmanr

from taskpgm.config import Config, EnergyConfig
from taskpgm.errors import UserError
from taskpgm.evaluation.compare import SCALED, bent_mixtures, mixture_weights
from taskpgm.evaluation.result import FinishedRun
from taskpgm.files import digest, loaded, read_json, write_json
from taskpgm.mixture.affinity import mean_logp
from taskpgm.mixture.energies import build_energy, usual_prior
from taskpgm.mixture.energy import Energy, repeated
from taskpgm.mixture.expected import DIVERGENCE
from taskpgm.types import Brief, Floats

if TYPE_CHECKING:
    from taskpgm.probes.probe import Probe


@dataclass(frozen=True, repr=False)
class Prediction(Brief):
    """What the predictions say of one mixture; losses in nats a token on the target contexts."""

    mixture: str
    weights: Mapping[str, float]
    ensemble: float  # −E log Σ p_i P_i + κ KL(p‖u)
    gain: float  # −E Σ p_i log P_i + κ KL(p‖u)
    merged: float | None  # loss under Σ p_i B_i A_i
    measured: float | None = None  # mean over seeds of the macro loss on the evaluation rows, if compared


def run_prediction(
    finished: FinishedRun, mixtures: Sequence[str], merged: bool = True
) -> tuple[list[Prediction], dict[str, Any]]:
    """Predictions for mixtures without training, written to `prediction.json`.

    Mixtures that were trained in the setting of the last `compare` are predicted too, every draw of `random` apart.
    Their measured losses stand beside the predictions, with the rank correlation (Spearman's) of either with them.

    Raises:
        UserError: a mixture that is none, or a stage before that is missing.
    """
    result = finished.result
    weights = mixture_weights(finished.config, result, mixtures, seed=0)
    for sentence in bent_mixtures(finished.config, result, mixtures):
        finished.engine.progress.say(sentence)
    measured = _trained_mixtures(finished, _shares(finished.config), weights)
    weights |= {name: shares for name, (shares, _) in measured.items()}
    found = [
        replace(one, measured=measured[one.mixture][1] if one.mixture in measured else None)
        for one in predict_losses(finished, weights, merged)
    ]
    ranks = rank_correlations(found)
    write_json(
        finished.folder / "prediction.json", {"predictions": [asdict(one) for one in found], "rank correlation": ranks}
    )
    return found, ranks


def predict_losses(
    finished: FinishedRun, weights: Mapping[str, Mapping[str, float]], merged: bool = True
) -> list[Prediction]:
    """Predictions for these weights, on the contexts of the targets, or of the tasks if there are none."""
    result = finished.result
    pool = result.pool
    wanted = finished.config.target_weights

    def energy(kind: str) -> Energy:
        plain = EnergyConfig(kind=kind, prior=0.0)
        return build_energy(result.scores, result.affinity, plain, wanted)

    ensemble, gain = energy("likelihood"), energy("gain")
    start = -float(result.scores.target_weights(wanted) @ mean_logp(result.scores)[0])
    found = []
    vectors = {name: np.array([shares.get(task, 0.0) for task in pool.names]) for name, shares in weights.items()}
    losses = merged_losses(finished, vectors) if merged else {}
    for name, p in vectors.items():
        divergence = _kl_from_uniform(p)
        of_ensemble = ensemble.loss(p) + DIVERGENCE * divergence
        if result.energy.repetition:
            of_ensemble += result.energy.repetition * repeated(p, result.energy.once)
        of_gain = start + gain.loss(p) + usual_prior("gain", result.scores) * divergence
        found.append(Prediction(name, dict(weights[name]), of_ensemble, of_gain, losses.get(name)))
    return found


def rank_correlations(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Spearman's correlation of either prediction with the measured losses; {} for fewer than three of these."""
    known = [prediction for prediction in predictions if prediction.measured is not None]
    if len(known) < 3:
        return {}
    measured = [prediction.measured for prediction in known]
    ranks: dict[str, Any] = {"mixtures": len(known)}
    for name in ("ensemble", "gain"):
        ranks[name] = _spearman([getattr(prediction, name) for prediction in known], measured)
    if all(prediction.merged is not None for prediction in known):
        ranks["merged"] = _spearman([prediction.merged for prediction in known], measured)
    return ranks


def merged_probe(probes: Sequence["Probe"], weights: Sequence[float], name: str = "merged") -> "Probe":
    """One adapter whose update is Σ_i p_i B_i A_i: A stacked, B side by side and scaled by p_i (arXiv 2602.00747).

    The rank is the sum of the ranks of probes with a weight; alpha grows with it, so that alpha/r stays.

    Raises:
        UserError: probes of different layers or scales, or that are no plain LoRA.
    """
    import torch

    from taskpgm.lm.lora import LEFT, is_plain, scale
    from taskpgm.probes.probe import Probe

    used = [(p, float(w)) for p, w in zip(probes, weights, strict=True) if w > 0]
    first = used[0][0]
    scales = {scale(p.settings) for p, _ in used}
    alike = len(scales) == 1 and all(p.weights.keys() == first.weights.keys() for p, _ in used)
    if not alike or not all(is_plain(p.settings, p.weights) for p, _ in used):
        raise UserError(
            "Probes of different layers or scales, or that are no plain LoRA, cannot be merged; predict with "
            "--no-merged, by the ensemble only."
        )
    merged = {
        key: torch.cat([p.weights[key] for p, _ in used])
        if key.endswith(LEFT)
        else torch.cat([p.weights[key] * w for p, w in used], 1)
        for key in first.weights
    }
    rank = next(iter(merged.values())).shape[0]
    settings = type(first.settings)(
        r=rank, lora_alpha=scales.pop() * rank, target_modules=first.settings.target_modules,
        layers_to_transform=first.settings.layers_to_transform, task_type="CAUSAL_LM",
        fan_in_fan_out=first.settings.fan_in_fan_out,
    )  # fmt: skip
    return Probe(name, first.seed, settings, merged)


def merged_losses(finished: FinishedRun, weights: Mapping[str, Floats]) -> dict[str, float]:
    """Losses under the probes merged with each of these weights, on the contexts of the targets or else of the tasks:
    means over sets, then contexts, then positions (options: one each), of −log P_merged."""
    from taskpgm.chat.encoder import ChatEncoder
    from taskpgm.probes.options import encode_options
    from taskpgm.probes.scoring import encode_contexts, score_sets

    engine, shares, probes = finished.engine, _shares(finished.config), finished.probes()
    encoder, pool = ChatEncoder(engine.tokenizer, finished.config.probes.max_length), finished.result.pool
    options = {n: one for n, one in encode_options(encoder, pool, finished.config).items() if n in shares}
    rows = encode_contexts(encoder, pool, finished.config.contexts.positions)
    rows |= {name: one.rows for name, one in options.items()}
    contexts = {name: of_set for name, of_set in rows.items() if name in shares}
    merged = {name: merged_probe(probes, p.tolist(), name) for name, p in weights.items()}
    of = {probe.name: name for name, probe in merged.items()}
    losses = dict.fromkeys(weights, 0.0)
    every = {name: list(of) for name in contexts}
    for one, blocks in score_sets(engine, contexts, list(merged.values()), every, progress=engine.progress):
        ends = np.cumsum([row.response_tokens for row in contexts[one]])[:-1]
        for (probe, _), block in blocks.items():
            parts = [options[one].logp(block.logp)] if one in options else np.split(block.logp, ends)
            losses[of[probe]] -= shares[one] * float(np.mean([part.mean() for part in parts]))
    return losses


def _kl_from_uniform(p: Floats) -> float:
    """KL(p‖u) in nats, u uniform."""
    return float(rel_entr(p, 1 / len(p)).sum())


def _shares(config: Config) -> dict[str, float]:
    """What a macro loss weighs: the targets by their weights, or the tasks alike."""
    weights = config.target_weights or {task.name: 1.0 for task in config.tasks}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _measured_loss(of_set: Mapping[str, Any], by_options: bool) -> Any:
    """What a set's predictions are predictions of; None if it was not measured."""
    return of_set.get("option_loss" if by_options else "token_loss")


def _trained_mixtures(
    finished: FinishedRun, shares: Mapping[str, float], now: Mapping[str, Mapping[str, float]]
) -> dict[str, tuple[dict[str, float], float]]:
    """Weights, and mean macro loss over seeds, of what was trained in the setting of the last comparison.

    A mixture has the name under which it was trained, unless that name stands for other weights `now`.
    """
    last = finished.folder / "comparison.json"
    setting = loaded(read_json, last, by="compare").get("setting") if last.exists() else None
    if setting is None:
        return {}
    options = finished.config.option_targets
    taken = {name: digest(dict(weights)) for name, weights in now.items()}
    losses: dict[tuple[str, str], list[float]] = {}
    weights: dict[tuple[str, str], dict[str, float]] = {}
    for path in sorted((finished.folder / "compare").glob("*.json")):
        record = loaded(read_json, path, by="compare")
        if record.get("setting") != setting or record["rows"] != finished.config.budget.size:
            continue
        name = f"random, seed {record['seed']}" if record["mixture"] == "random" else record["mixture"]
        name = "uniform" if name.startswith(SCALED) else name
        key = (name, digest(record["weights"]))
        measured = {one: _measured_loss(record["sets"][one], one in options) for one in shares}
        if None in measured.values():
            continue
        losses.setdefault(key, []).append(sum(share * measured[one] for one, share in shares.items()))
        weights[key] = record["weights"]
    found: dict[str, tuple[dict[str, float], float]] = {}
    for (name, of_weights), values in losses.items():
        label = name if taken.setdefault(name, of_weights) == of_weights else f"{name} ({of_weights[:6]})"
        found[label] = (weights[name, of_weights], float(np.mean(values)))
    return found


def _spearman(a: Sequence[Any], b: Sequence[Any]) -> float:
    return float(spearmanr(a, b).statistic)
