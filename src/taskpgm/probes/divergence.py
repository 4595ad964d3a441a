"""Pure tensor functions: label log-probabilities and Jensen–Shannon divergences, in blocks.

Shapes: N probes, P positions, V vocabulary, R labels, d hidden size.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from taskpgm.lm.batching import logit_rows

TINY = 1e-38  # below what float32 softmax tells from zero
CACHED = 400_000  # floats of a distribution's block; a third as many or many more were slower on two cores


def label_logp(logits_RV: Tensor, labels_R: Tensor) -> Tensor:
    """(R,) log softmax(logits)[label] in nats, in float32 whatever the logits' precision."""
    logits_RV = logits_RV.float()
    picked_R = logits_RV.gather(1, labels_R[:, None])[:, 0]
    return picked_R - logits_RV.logsumexp(1)


def jsd_matrix(hidden_NPd: Tensor, head: Callable[[Tensor], Tensor], weight_PB: Tensor, vocabulary: int) -> Tensor:
    """(B, N, N) sums over positions of weight[p, b] · JSD(P_i, P_j) at position p, in nats; zero diagonal.

    JSD(P, Q) = ½ΣP ln P + ½ΣQ ln Q − ½Σ(P+Q) ln(P+Q) + ln 2, exact over the vocabulary. Entropies are computed once a
    probe and half the pairs are; no more than a memory budget of logits exists at a time.
    """
    n, positions, _ = hidden_NPd.shape
    total_BNN = torch.zeros(weight_PB.shape[1], n, n, dtype=torch.float64)
    device = head(hidden_NPd[:1, 0]).device
    for block in torch.arange(positions).split(logit_rows(vocabulary, device, each=n)):
        p_NPV = head(hidden_NPd[:, block].flatten(0, 1)).float().softmax(-1).unflatten(0, (n, len(block)))
        p_NPV.clamp_min_(TINY)  # 0 ln 0 = 0
        # On a CPU a few positions at a time, so that a pair's work stays in the cache.
        few = len(block) if p_NPV.device.type != "cpu" else max(1, CACHED // vocabulary)
        for at in torch.arange(len(block)).split(few):
            jsd_PNN = _jsd(p_NPV[:, at[0] : at[-1] + 1])
            total_BNN += torch.einsum("pb,pij->bij", weight_PB[block][at], jsd_PNN)
    return total_BNN + total_BNN.mT


def _jsd(p_NPV: Tensor) -> Tensor:
    """(P, N, N) Jensen–Shannon divergences, those below the diagonal."""
    n, positions, _ = p_NPV.shape
    both_NNP = p_NPV.new_zeros(n, n, positions)  # Σ(P+Q) ln(P+Q); on the diagonal ΣP ln P
    sum_PV, log_PV = torch.empty_like(p_NPV[0]), torch.empty_like(p_NPV[0])
    for i in range(n):
        torch.log(p_NPV[i], out=log_PV)
        both_NNP[i, i] = torch.linalg.vecdot(p_NPV[i], log_PV)
        for j in range(i):
            torch.add(p_NPV[i], p_NPV[j], out=sum_PV)
            torch.log(sum_PV, out=log_PV)
            both_NNP[i, j] = torch.linalg.vecdot(sum_PV, log_PV)
    both_PNN = both_NNP.permute(2, 0, 1).double().cpu()
    own_PN = both_PNN.diagonal(dim1=1, dim2=2)
    jsd_PNN = (own_PN[:, :, None] + own_PN[:, None, :] - both_PNN) / 2 + math.log(2)
    # Rounding can reach a few 1e-7 below zero for equal distributions.
    return jsd_PNN.clamp(0.0, math.log(2)).tril(-1)
