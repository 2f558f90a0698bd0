"""Figures from class probabilities and class counts."""

from collections.abc import Sequence

import numpy as np

PARTS = 10  # that a published inception score is the mean of


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence of p(y|x) from p(y) (Salimans et al. 2016), over all rows at once.

    probabilities: [n, K]. 1 at least, K at most.
    """
    from scipy.special import xlogy

    p = np.asarray(probabilities, np.float64)
    marginal = p.mean(axis=0)
    return float(np.exp((xlogy(p, p) - xlogy(p, marginal)).sum(axis=1).mean()))


def inception_score_of_parts(probabilities: np.ndarray, *, parts: int = PARTS) -> tuple[float, float]:
    """Mean and standard deviation (over the parts, denominator `parts`) of the scores of equal consecutive parts.

    The usual published form (Salimans et al. 2016, StyleGAN2-ADA): ten parts, usually of 5,000 samples each.
    probabilities: [n >= parts, K], in an order that has nothing to do with their classes.
    """
    n = len(probabilities)
    if n < parts:
        raise ValueError(f"{n} samples cannot be cut into {parts} parts")
    scores = [inception_score(probabilities[i * n // parts : (i + 1) * n // parts]) for i in range(parts)]
    return float(np.mean(scores)), float(np.std(scores))


def class_figures(counts: Sequence[int] | np.ndarray, real_shares: Sequence[float] | None) -> dict[str, object]:
    """class_shares, min_class_share, missing_classes, and the chi-square test of the counts against `real_shares`.

    class_chi2 is over its degrees of freedom: about 1 for samples with exactly the real shares; class_p is the test's
    p-value. Classes that the real data lack are left out of all but the shares.
    """
    from scipy.stats import chisquare

    counts = np.asarray(counts, np.int64)
    shares = counts / counts.sum()
    expected = None if real_shares is None else np.asarray(real_shares, np.float64)
    present = np.ones(len(counts), bool) if expected is None else expected > 0
    found: dict[str, object] = {
        "class_shares": shares.tolist(),
        "min_class_share": float(shares[present].min()),
        "missing_classes": int((counts[present] == 0).sum()),
    }
    if expected is None or present.sum() < 2 or not counts[present].sum():
        return found
    scaled = expected[present] / expected[present].sum() * counts[present].sum()
    test = chisquare(counts[present], scaled)
    return found | {"class_chi2": float(test.statistic) / (int(present.sum()) - 1), "class_p": float(test.pvalue)}
