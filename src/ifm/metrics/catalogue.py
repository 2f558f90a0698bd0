"""Every number that stands in a table, a plot or a run: what it is called, which way is better, how it is written.

A new metric is one entry of `METRICS`, with the function that computes it from a `Comparison` (one set of samples and
the real data). The stages, the report, the sweeps, MLflow, `make compare` and the model card take it from here.
This module imports nothing heavy: titles and directions are needed where no figure is computed.
"""

from collections.abc import Iterable

from ifm.errors import UserError
from ifm.metrics.metric import (
    IMAGES,
    POINTS,
    TEXT,
    Aligned,
    Better,
    Count,
    Metric,
    Plot,
    Probability,
    Role,
    Sized,
)

BOTH = (IMAGES, POINTS)
ALL = (*BOTH, TEXT)
_ENTRIES = (
    Metric(
        "fid", "FID", Better.LOWER,
        tooltip="the Fréchet distance of Gaussians fitted to the features; biased upward at small sample sizes.",
        ideal=0, compute=lambda of: of.fid, format=Aligned(least=3), judges=True, studied=True, floor=True,
    ),
    Metric(
        "fid_pooled", "FID, all seeds’ samples", Better.LOWER, tooltip="FID of the samples of all seeds together.",
        ideal=0, role=Role.DETAIL, format=Aligned(least=3), spread=False,
    ),
    Metric(
        "fid_extrapolated", "FID, extrapolated", Better.LOWER,
        tooltip="FID extrapolated to infinitely many samples.", ideal=0, role=Role.SIDE,
        format=Aligned(least=3, most=3), spread=False,
    ),
    Metric(
        "ratio", "Over the teacher’s", Better.LOWER, kinds=ALL,
        tooltip="the figure over that of the teacher at its best NFE, from the same prior draws.",
        role=Role.SIDE, format=Aligned(least=2, most=2),
    ),
    Metric(
        "teacher_nfe", "Teacher’s best NFE", None, kinds=ALL,
        tooltip="the teacher’s number of evaluations that is best, which the ratio is taken against.",
        role=Role.SIDE, format=Count(), spread=False,
    ),
    Metric(
        "kid", "KID", Better.LOWER,
        tooltip="the kernel distance, unbiased at any number of samples. Zero is the real law.",
        ideal=0, compute=lambda of: of.kid, format=Aligned(least=4, most=6), plot=Plot(linear_within=0.1, real=True),
    ),
    Metric(
        "inception_score", "Inception score", Better.HIGHER,
        tooltip="high where each sample’s class is certain and all classes occur.",
        compute=lambda of: of.inception_score, where=lambda of: of.found.probabilities is not None,
        format=Aligned(least=2),
        plot=Plot(
            caption="Inception score on the extractor’s own classes: certain of each sample’s class, and all classes."
        ),
    ),
    Metric(
        "inception_score_parts", "Inception score, ten parts", Better.HIGHER,
        tooltip="the mean of the scores of ten equal parts, as published scores are.",
        compute=lambda of: of.inception_score_of_parts[0], where=lambda of: of.has_parts,
        role=Role.DETAIL, format=Aligned(least=2), spread=False,
    ),
    Metric(
        "inception_score_deviation", "Inception score, sd of parts", None,
        tooltip="the standard deviation of the scores of those ten parts.",
        compute=lambda of: of.inception_score_of_parts[1], where=lambda of: of.has_parts,
        role=Role.DETAIL, format=Aligned(least=2), spread=False,
    ),
    Metric(
        "precision", "Precision", Better.HIGHER, tooltip="the share of samples that lie among real images.",
        compute=lambda of: of.neighbours["precision"], format=Aligned(least=3, most=3), plot=Plot(real=True),
    ),
    Metric(
        "recall", "Recall", Better.HIGHER,
        tooltip="the share of real images that lie among samples. Low where samples lack variety.",
        compute=lambda of: of.neighbours["recall"], format=Aligned(least=3, most=3), headline=True,
    ),
    Metric(
        "density", "Density", Better.HIGHER,
        tooltip="how many real images’ neighbourhoods a sample lies in, 1 for the real law.",
        ideal=1, compute=lambda of: of.neighbours["density"], format=Aligned(least=3, most=3), plot=Plot(real=True),
    ),
    Metric(
        "coverage", "Coverage", Better.HIGHER,
        tooltip="the share of real images with a sample in their neighbourhood.",
        compute=lambda of: of.neighbours["coverage"], format=Aligned(least=3, most=3),
    ),
    Metric(
        "sliced_wasserstein", "Sliced 2-Wasserstein", Better.LOWER, kinds=(POINTS,),
        tooltip="the root mean square of the 2-Wasserstein distance along random directions.",
        ideal=0, compute=lambda of: of.sliced_wasserstein, judges=True, studied=True, floor=True, last=2,
    ),
    Metric(
        "energy_distance", "Energy distance", Better.LOWER, kinds=(POINTS,),
        tooltip="the root of 2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ over samples x and real points y.",
        ideal=0, compute=lambda of: of.energy_distance, studied=True, floor=True, last=2,
        plot=Plot(log=True, caption="Energy distance, both axes logarithmic."),
    ),
    Metric(
        "fourgram_tv", "4-gram total variation", Better.LOWER, kinds=(TEXT,),
        tooltip="half the sum of differences between the shares of runs of four symbols and those of real text. Real "
        "text itself is above 0: it depends on the number of samples.",
        compute=lambda of: of.texts.total_variation(4), judges=True, format=Aligned(least=3),
        plot=Plot(real=True),
    ),
    Metric(
        "bigram_tv", "2-gram total variation", Better.LOWER, kinds=(TEXT,),
        tooltip="the same of runs of two symbols.", compute=lambda of: of.texts.total_variation(2),
        format=Aligned(least=3), plot=Plot(real=True),
    ),
    Metric(
        "character_tv", "Character total variation", Better.LOWER, kinds=(TEXT,),
        tooltip="the same of single symbols.", compute=lambda of: of.texts.total_variation(1),
        format=Aligned(least=3), plot=Plot(real=True),
    ),
    Metric(
        "word_share", "Words of the corpus", Better.HIGHER, kinds=(TEXT,),
        tooltip="the share of words that the training text has too; words cut by a sample’s ends are left out.",
        compute=lambda of: of.texts.word_share, headline=True, format=Aligned(least=3, most=3),
        plot=Plot(real=True),
    ),
    Metric(
        "half_copies", "Copies of half a text", None, kinds=(TEXT,),
        tooltip="the share of samples of which half, in a row, stands in the training texts to the letter.",
        compute=lambda of: of.texts.half_copies, role=Role.SIDE, format=Aligned(least=3, most=3),
    ),
    Metric(
        "valid_codes", "Codes of a symbol", Better.HIGHER, kinds=(TEXT,),
        tooltip="the share of positions whose signs are a symbol’s code; others become the nearest symbol.",
        ideal=1, compute=lambda of: of.real.language.alphabet.valid(of.samples),
        where=lambda of: of.samples is not None, role=Role.SIDE, format=Aligned(least=3, most=3),
    ),
    Metric(
        "min_class_share", "Rarest class, %", Better.HIGHER, kinds=BOTH,
        tooltip="the share of the class that is rarest among the samples.",
        role=Role.DETAIL, format=Aligned(scale=100, least=1), spread=False, last=3,
    ),
    Metric(
        "missing_classes", "Missing classes", Better.LOWER, kinds=BOTH, tooltip="classes without a sample.",
        ideal=0, role=Role.DETAIL, format=Count(), spread=False,
    ),
    Metric(
        "class_chi2", "Class χ² / dof", None, kinds=BOTH,
        tooltip="chi-square of the class counts against the real shares, over its degrees of freedom.",
        ideal=1, role=Role.DETAIL, format=Aligned(), spread=False,
    ),
    Metric(
        "class_p", "Class p", None, kinds=BOTH, tooltip="the p-value of the chi-square test.",
        role=Role.DETAIL, format=Probability(), spread=False,
    ),
    Metric(
        "asked_class_share", "In the class asked for", Better.HIGHER, kinds=BOTH,
        tooltip="the share of samples that the classifier puts into the class that was asked for.",
        compute=lambda of: of.asked_class_share, where=lambda of: of.asked_class_share is not None,
        format=Aligned(least=3, most=4),
    ),
    Metric(
        "fid_within_classes", "FID within classes", Better.LOWER,
        tooltip="the mean over classes of the FID between a class’s samples of all seeds and its real images.",
        ideal=0, role=Role.SIDE, format=Aligned(least=3), spread=False,
    ),
    Metric(
        "train_distance_auc", "Farther from training data than unseen", None,
        tooltip="the probability that a sample is farther from training data than an unseen image is; 0 for copies.",
        ideal=0.5, compute=lambda of: of.copies["train_distance_auc"], where=lambda of: of.copies is not None,
        role=Role.SIDE, format=Aligned(least=3, most=3),
    ),
    Metric(
        "near_copies", "Near copies", Better.LOWER,
        tooltip="the share of samples nearer to the training data than all but 5 % of unseen images.",
        ideal=0.05, compute=lambda of: of.copies["near_copies"], where=lambda of: of.copies is not None,
        role=Role.SIDE, format=Aligned(least=3, most=3),
    ),
    Metric(
        "train_distance", "Nearest training image", None,
        tooltip="the median distance of a sample to the nearest training image, in feature space.",
        compute=lambda of: of.copies["train_distance"], where=lambda of: of.copies is not None,
        role=Role.SIDE, format=Aligned(least=2, most=3),
    ),
    Metric(
        "unseen_distance", "Nearest training image, of unseen", None,
        tooltip="the same distance of images that training has not seen; samples that are much nearer are copies.",
        compute=lambda of: of.copies["unseen_distance"], where=lambda of: of.copies is not None,
        role=Role.SIDE, format=Aligned(least=2, most=3), spread=False,
    ),
    Metric(
        "endpoint_rms", "End-point RMS", Better.LOWER, kinds=ALL,
        tooltip="the distance from the teacher’s sample at its largest NFE, from the same prior draw.",
        role=Role.SIDE, last=1,
    ),
    Metric(
        "seconds_per_image", "ms per {sample}", Better.LOWER, kinds=ALL, tooltip="time per sample in a full batch.",
        role=Role.COST, format=Sized(scale=1e3), spread=False,
    ),
    Metric(
        "seconds_batch_1", "ms, batch of 1", Better.LOWER, kinds=ALL, tooltip="time per sample, one at a time.",
        role=Role.COST, format=Sized(scale=1e3), spread=False,
    ),
    Metric(
        "peak_memory_mb", "Memory, MB", Better.LOWER, kinds=ALL, tooltip="the accelerator’s peak while sampling.",
        role=Role.COST, format=Sized(digits=2, least=0.1), spread=False,
    ),
    Metric(
        "parameters", "Parameters", None, kinds=ALL, tooltip="parameters of the network.",
        role=Role.COST, format=Count(), spread=False,
    ),
    Metric(
        "train_images", "Training {sample}s", None, kinds=ALL,
        tooltip="samples seen in training, repeats counted.", role=Role.COST, format=Count(), spread=False,
    ),
    Metric(
        "train_seconds", "Training time, s", Better.LOWER, kinds=ALL, tooltip="training, on this run’s hardware.",
        role=Role.COST, format=Sized(), spread=False,
    ),
)  # fmt: skip
METRICS: dict[str, Metric] = {entry.key: entry for entry in _ENTRIES}


def get(key: str) -> Metric:
    """The entry of a key. Raises UserError that names those there are."""
    if key not in METRICS:
        raise UserError(f"{key}: no such metric; there are {', '.join(METRICS)}")
    return METRICS[key]


def of(kind: str | None = None, *roles: Role) -> list[Metric]:
    """The entries of one kind of data (images, points, text; None: of all) with one of the roles (none given: all)."""
    return [m for m in METRICS.values() if (kind is None or kind in m.kinds) and (not roles or m.role in roles)]


def merits(kind: str | None = None) -> list[Metric]:
    """What judges samples and has a direction, the order of the table: what sweeps rank by and the card shows."""
    return [m for m in of(kind, Role.MERIT) if m.better is not None]


def ranking(kind: str | None = None) -> dict[str, bool]:
    """{key: whether higher is better} of what can be ranked by."""
    return {m.key: m.better is Better.HIGHER for m in merits(kind)}


def judges() -> list[Metric]:
    """What pages are judged by, one of each kind of data that has its own: FID first."""
    return [m for m in METRICS.values() if m.judges]


def judge(kind: str) -> Metric:
    """What samples of one kind of data are judged by. Raises UserError where no entry is."""
    found = next((m for m in judges() if kind in m.kinds), None)
    if found is None:
        raise UserError(f"no metric judges {kind}; give an entry of ifm.metrics.catalogue judges=True")
    return found


def judge_of(keys: Iterable[str]) -> Metric:
    """What records with these keys are judged by: the first that they hold, else the last there is."""
    held = set(keys)
    return next((m for m in judges() if m.key in held), judges()[-1])


def studied() -> list[Metric]:
    """What the tables of the studies (ablation, objectives) have columns of."""
    return [m for m in METRICS.values() if m.studied]


def lower_is_better(key: str) -> bool | None:
    """Of a key; None where neither way is better, or the key is not known."""
    found = METRICS.get(key)
    return None if found is None or found.better is None else found.better is Better.LOWER


def title(key: str, *, sample: str = "image") -> str:
    """The title of a key, or the key itself where it is not in the table. sample: what one sample is called."""
    return METRICS[key].title.format(sample=sample) if key in METRICS else key


def computed(kind: str) -> list[Metric]:
    """What stage `evaluate` computes from each set of samples of a kind of data."""
    return [m for m in of(kind) if m.compute is not None]


def summary_columns() -> list[str]:
    """The columns of summary.csv with numbers: figures with their standard deviations, then costs."""
    entries = sorted(METRICS.values(), key=lambda m: m.role is Role.COST)  # stable: else the table's order
    return [column for m in entries for column in m.columns]


def whole_numbers() -> list[str]:
    """Keys whose values are counts."""
    return [m.key for m in METRICS.values() if isinstance(m.format, Count)]


def judging_columns(kind: str) -> list[str]:
    """The keys that stand first in a table of such data: what it is judged by, its ratio, what the studies add."""
    first, *others = sorted((m for m in studied() if kind in m.kinds), key=lambda m: not m.judges) or [judge(kind)]
    return [first.key, "ratio", *(m.key for m in others)]


def in_tables(kind: str) -> list[Metric]:
    """All entries in the order of a table of all numbers: `judging_columns`, figures, costs, the rest."""
    rest = sorted(METRICS.values(), key=lambda m: 1 + m.last if m.last else int(m.role is Role.COST))
    return [METRICS[key] for key in dict.fromkeys([*judging_columns(kind), *(m.key for m in rest)])]
