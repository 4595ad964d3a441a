"""What came of the gains that were predicted before a training: their ratio, setting by setting, and how far it holds.

    python benchmarks/calibration.py OUT [--settings demo,skewed,fresh,confirm,nlp]

Of every OUT/NAME/run that `taskpgm compare --mixtures taskpgm,uniform` has measured: the gain over uniform by the
probes on held-out contexts (mixture.json), the gain in training on other rows (comparison.json, mean over seeds), and
their ratio. The interval for a further setting is mean ± t·sd·√(1 + 1/n) of the ratios, 90 %; leaving one setting
out after another says how often it would have held.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

LEVEL = 0.9


def gains(folder: Path) -> tuple[float, np.ndarray]:
    """(predicted gain, measured gains by seed) over uniform, in nats a token."""
    mixture = json.loads((folder / "mixture.json").read_text())
    comparison = json.loads((folder / "comparison.json").read_text())
    predicted = next(v["gain"] for v in mixture["verdicts"] if v["reference"] == "uniform")
    served = comparison["targets"] or comparison["tasks"]
    losses = {(m["mixture"], m["seed"]): m["loss"] for m in comparison["measurements"]}
    seeds = sorted(seed for name, seed in losses if name == "uniform" and ("taskpgm", seed) in losses)

    def loss(name: str, seed: int) -> float:
        return float(np.mean([losses[name, seed][one] for one in served]))

    return predicted, np.array([loss("uniform", seed) - loss("taskpgm", seed) for seed in seeds])


def further(ratios: np.ndarray) -> tuple[float, float]:
    """Interval for the ratio of a setting that is not among these."""
    n = len(ratios)
    width = stats.t.ppf((1 + LEVEL) / 2, n - 1) * ratios.std(ddof=1) * np.sqrt(1 + 1 / n)
    return float(ratios.mean() - width), float(ratios.mean() + width)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default="demo,skewed,fresh,confirm,nlp")
    given = parser.parse_args()
    names = [name for name in given.settings.split(",") if (given.out / name / "run" / "comparison.json").exists()]
    found = {name: gains(given.out / name / "run") for name in names}
    ratios = np.array([measured.mean() / predicted for predicted, measured in found.values()])
    print("setting   predicted  measured ± error (seeds)   ratio   interval from the others")
    held = 0
    for i, (name, (predicted, measured)) in enumerate(found.items()):
        low, high = further(np.delete(ratios, i))
        held += low <= ratios[i] <= high
        error = measured.std(ddof=1) / np.sqrt(len(measured))
        print(
            f"{name:9} {predicted:+9.4f} {measured.mean():+9.4f} ± {error:.4f} ({len(measured)}) {ratios[i]:10.2f}   "
            f"{low:+.2f} to {high:+.2f}"
        )
    low, high = further(ratios)
    print(f"held in {held} of {len(names)}; a further setting: {low:+.2f} to {high:+.2f} times what is predicted")


if __name__ == "__main__":
    main()
