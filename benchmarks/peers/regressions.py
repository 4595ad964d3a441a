"""Peers that know trained mixtures alone: RegMix, the log-linear law of olmix, a Gaussian process."""

import warnings

import lightgbm
import numpy as np
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel


def regmix(mixtures, losses, candidates, seed=0):
    """RegMix (Liu et al., arXiv 2407.01492): LightGBM on weights. Its 512 runs are far more than are replayed here, so
    leaves may hold a single run (LightGBM's own 20 would give one constant for so few), and trees are stumps of two.
    """
    model = lightgbm.LGBMRegressor(
        n_estimators=200, learning_rate=0.05, num_leaves=3, min_child_samples=1, min_data_in_bin=1, random_state=seed,
        n_jobs=1, verbose=-1,
    )  # fmt: skip
    return model.fit(mixtures, losses).predict(candidates)


def olmix(mixtures, losses, candidates, seed=0, divergence=0.01):
    """olmix (allenai/olmix, and the laws of Ye et al., arXiv 2403.16952): L(p) = c + exp(tᵀp), with a penalty on the
    divergence of the mixture from the natural one, here uniform. The repetition cap is kept by all candidates.

    Fitted by least squares from several starts, with a little ridge on t; the penalty is in parts of the losses' mean.
    """
    losses, n = np.asarray(losses), mixtures.shape[1]
    unit = losses.std() or 1.0

    def rest(z):
        return np.r_[(z[0] + np.exp(np.clip(mixtures @ z[1:], -20, 20)) * unit - losses) / unit, 0.03 * z[1:]]

    random = np.random.default_rng(seed)
    starts = [np.r_[losses.min() - unit, random.normal(0, 0.5, n)] for _ in range(4)]
    best = min((optimize.least_squares(rest, start) for start in starts), key=lambda found: found.cost).x
    predicted = best[0] + np.exp(np.clip(candidates @ best[1:], -20, 20)) * unit
    kl = (candidates * np.log(np.maximum(candidates * n, 1e-12))).sum(axis=1)
    return predicted + divergence * losses.mean() * kl


def gaussian_process(mixtures, losses, candidates, seed=0):
    """A Gaussian process on √p, whose distances are Hellinger's; scikit-learn's, hyperparameters by likelihood."""
    kernel = ConstantKernel(1.0, (0.1, 30)) * Matern(0.5, (0.1, 5), nu=2.5) + WhiteKernel(0.1, (1e-3, 1))
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.sqrt(mixtures), losses)
    return model.predict(np.sqrt(candidates))
