"""The figures by which a model is judged, from labels (0 or 1) and scores; numpy only."""
import numpy as np

BLOCKS = 1024
# The AUC of fewer claims, or of fewer other rows, says nothing about a segment.
LEAST_IN_SEGMENT = 20


def checked(label, score):
    """Both as one-dimensional float64 arrays; ValueError where no figure can come of them."""
    label = np.asarray(label, dtype=np.float64).ravel()
    score = np.asarray(score, dtype=np.float64).ravel()
    if len(label) != len(score):
        raise ValueError(f'{len(label)} labels but {len(score)} scores')
    if not np.isfinite(score).all():
        raise ValueError(
            f'{(~np.isfinite(score)).sum()} of {len(score)} scores are not finite numbers')
    if not ((label == 0) | (label == 1)).all():
        raise ValueError('labels other than 0 and 1')
    return label, score


def levels(positive, score):
    """What is positive (0 to 1 a row) and what is not at each distinct score, lowest first."""
    if not 0 < positive.sum() < len(positive):
        raise ValueError('an AUC needs rows of both classes')
    level = np.unique(score, return_inverse=True)[1]
    return np.bincount(level, positive), np.bincount(level, 1 - positive)


def area(positive, negative):
    """Area under the ROC curve of so many at each score, ties counted half; 0.5 is chance."""
    above = np.dot(positive, np.cumsum(negative) - negative / 2)
    return float(above / positive.sum() / negative.sum())


def roc_curve(label, score):
    """False and true positive rate at each distinct score, highest first, from (0, 0) to (1, 1)."""
    positive, negative = levels(*checked(label, score))
    return [np.append(0, np.cumsum(part[::-1]) / part.sum()) for part in (negative, positive)]


def auc(label, score):
    """Area under the ROC curve; ValueError for a single class."""
    return area(*levels(*checked(label, score)))


def expected_auc(probability, score):
    """AUC to be expected over all labels that the known `probability` of each row can give."""
    return area(*levels(np.asarray(probability, dtype=np.float64), score))


def gini(label, score):
    """The competition's normalised gini coefficient: 2 AUC - 1."""
    return 2 * auc(label, score) - 1


def log_loss(label, probability):
    """Mean of -log(probability given to what happened), natural logarithm."""
    label, probability = checked(label, probability)
    happened = np.where(label == 1, probability, 1 - probability)
    return float(-np.log(np.clip(happened, 1e-15, 1)).mean())


def brier(label, probability):
    """Mean squared difference between probability and label."""
    label, probability = checked(label, probability)
    return float(((probability - label) ** 2).mean())


def deciles(label, score, groups=10):
    """Groups of equal size by score, highest first: rows, claim rate, mean score, lift of each."""
    label, score = checked(label, score)
    order = np.argsort(-score, kind='stable')
    groups = [group for group in np.array_split(order, groups) if len(group)]
    rate = label.mean()
    return [{'rows': len(group), 'claim_rate': float(label[group].mean()),
             'mean_score': float(score[group].mean()),
             'lift': float(label[group].mean() / rate) if rate else 0.0} for group in groups]


def top_decile_lift(label, score):
    """Claim rate of the tenth of rows with the highest scores, over the claim rate of all."""
    return deciles(label, score)[0]['lift']


def summary(label, probability):
    """All figures of a model that metrics.json reports, by name, without the interval."""
    return {'auc': auc(label, probability), 'gini': gini(label, probability),
            'log_loss': log_loss(label, probability), 'brier': brier(label, probability),
            'top_decile_lift': top_decile_lift(label, probability)}


def bootstrap_auc_interval(label, score, seed=0, draws=1000):
    """95 % interval [low, high] of the AUC: percentile bootstrap, each class drawn by itself.

    More than BLOCKS distinct scores are merged into that many blocks of neighbours, within which
    rows count as ties: far faster, and it moves the bounds less than the draws themselves do.
    """
    positive, negative = levels(*checked(label, score))
    if len(positive) > BLOCKS:
        block = np.arange(len(positive)) * BLOCKS // len(positive)
        positive, negative = np.bincount(block, positive), np.bincount(block, negative)
    random = np.random.RandomState(seed)
    figures = [area(*[random.multinomial(int(part.sum()), part / part.sum())
                      for part in (positive, negative)]) for _ in range(draws)]
    return [float(bound) for bound in np.percentile(figures, [2.5, 97.5])]


def paired_bootstrap(label, score_a, score_b, seed=0, draws=1000):
    """AUC(b) - AUC(a) in each of so many resamples, shape (draws,).

    Each class is drawn with replacement by itself, the same rows for both scores.
    """
    label, score_a = checked(label, score_a)
    _, score_b = checked(label, score_b)
    claims, others = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    orders = []
    for score in (score_a, score_b):
        ranked = np.argsort(score[others], kind='stable')
        below = np.searchsorted(score[others][ranked], score[claims], 'left')
        up_to = np.searchsorted(score[others][ranked], score[claims], 'right')
        orders.append((ranked, below, up_to))
    random = np.random.RandomState(seed)
    figures = np.empty(draws)
    for draw in range(draws):
        drawn = random.randint(0, len(claims), len(claims))
        times = np.bincount(random.randint(0, len(others), len(others)), minlength=len(others))
        wins = []
        for ranked, below, up_to in orders:
            passed = np.append(0, np.cumsum(times[ranked]))
            wins.append(int((passed[below[drawn]] + passed[up_to[drawn]]).sum()))
        figures[draw] = (wins[1] - wins[0]) / (2.0 * len(claims) * len(others))
    return figures


def auc_difference(label, score_a, score_b, z=1.96):
    """(AUC(a), AUC(b), 95 % interval of AUC(b) - AUC(a)) of scores of the same rows.

    By the variance of DeLong, DeLong, Clarke-Pearson (1988, doi 10.2307/2531595), in no time.
    """
    areas, places = [], []
    for score in (score_a, score_b):
        positive, negative = levels(*checked(label, score))
        level = np.unique(score, return_inverse=True)[1]
        below = (np.cumsum(negative) - negative / 2) / negative.sum()
        above = 1 - (np.cumsum(positive) - positive / 2) / positive.sum()
        areas.append(area(positive, negative))
        places.append(np.where(np.asarray(label) == 1, below[level], above[level]))
    apart = places[1] - places[0]
    error = np.sqrt(sum(apart[np.asarray(label) == side].var(ddof=1) / (label == side).sum()
                        for side in (0, 1)))
    difference = areas[1] - areas[0]
    return areas[0], areas[1], [float(difference - z * error), float(difference + z * error)]


def share_interval(rate, rows, z=1.96):
    """Wilson's 95 % interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    middle = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(
        rate * (1 - rate) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)
