"""Pure tensor functions: label log-probabilities and Jensen–Shannon divergences, in blocks.

Shapes: N probes, P positions, V vocabulary, R labels, d hidden size.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from taskpgm.lm import logit_rows


def label_logp(logits_RV: Tensor, labels_R: Tensor) -> Tensor:
    """(R,) log softmax(logits)[label] in nats, in float32 whatever the logits' precision."""
    logits_RV = logits_RV.float()
    picked_R = logits_RV.gather(1, labels_R[:, None])[:, 0]
    return picked_R - logits_RV.logsumexp(1)


def jsd_matrix(hidden_NPd: Tensor, head: Callable[[Tensor], Tensor], weight_PB: Tensor, vocabulary: int) -> Tensor:
    """(B, N, N) sums over positions of weight[p, b] · JSD(P_i, P_j) at position p, in nats; zero diagonal.

    JSD(P, Q) = H(½P + ½Q) − ½H(P) − ½H(Q), exact over the vocabulary. Entropies are computed once a probe and half the
    pairs are; no more than a memory budget of logits exists at a time.
    """
    n, positions, _ = hidden_NPd.shape
    total_BNN = torch.zeros(weight_PB.shape[1], n, n, dtype=torch.float64)
    for block in torch.arange(positions).split(logit_rows(vocabulary, copies=n + 2)):
        p_NPV = head(hidden_NPd[:, block].flatten(0, 1)).float().softmax(-1).unflatten(0, (n, len(block)))
        entropy_NP = torch.special.entr(p_NPV).sum(-1).double().cpu()
        for i in range(n):
            for j in range(i):
                middle_P = torch.special.entr((p_NPV[i] + p_NPV[j]) / 2).sum(-1).double().cpu()
                # Rounding can reach a few 1e-7 below zero for equal distributions.
                jsd_P = (middle_P - (entropy_NP[i] + entropy_NP[j]) / 2).clamp(0.0, math.log(2))
                total_BNN[:, i, j] += jsd_P @ weight_PB[block]
    return total_BNN + total_BNN.mT
