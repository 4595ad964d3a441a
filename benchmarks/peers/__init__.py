"""Other ways to choose a mixture, each on a well-kept library and with its source, for `benchmarks/replay.py`.

A peer is a function of trained mixtures, their losses and candidates, and gives a predicted loss for every candidate:

    peer(mixtures (m, n), losses (m,), candidates (k, n), seed) -> (k,)
"""
