"""What the ablation asks, what the paper says to it, and which variants answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A place on a question's axis: a variant's flow in one step, or its teacher."""

    label: str
    variant: str
    prefix: str = ""  # "", "teacher_1_" or "teacher_": whose figure
    dynamics: str | None = None  # None: each in turn


@dataclass(frozen=True)
class Contrast:
    """Two settings by label. judged: the paper's claim is that the first is lower."""

    first: str
    second: str
    judged: bool = True


@dataclass(frozen=True)
class Question:
    """What is asked, what the paper says, and what of the table answers it."""

    title: str
    claim: str
    settings: tuple[Setting, ...]
    contrasts: tuple[Contrast, ...]


def _anchors(objective: str) -> tuple[Setting, ...]:
    return tuple(Setting(policy, f"{objective}-{policy}") for policy in ("none", "noise", "self", "bank"))


ANCHOR_CLAIM = (
    "The paper keeps the last estimate of every training sample (bank) as its anchor state, which is to guide the "
    "estimate: bank should be lower than none."
)
QUESTIONS = (
    Question(
        "Anchor policy, objective trajectory",
        ANCHOR_CLAIM,
        _anchors("trajectory"),
        (Contrast("bank", "none"), Contrast("self", "none", judged=False), Contrast("noise", "none", judged=False)),
    ),
    Question(
        "Anchor policy, objective data",
        ANCHOR_CLAIM,
        _anchors("data"),
        (Contrast("bank", "none"), Contrast("self", "none", judged=False), Contrast("noise", "none", judged=False)),
    ),
    Question(
        "Objective",
        "The paper trains on data points alone, with the bank, and reports one-step FIDs on CIFAR-10 of 2.86 (ve), "
        "3.36 (rf) and 2.91 (pfgmpp), beside 1.97 of EDM at 35 evaluations. If it needs no teacher, data should not be "
        "higher than the same flow on a teacher’s paths. “Printed” is its whole algorithm: loss to data, bank, scheme "
        "paper, from scratch, t by its training law.",
        (
            Setting("trajectory + self", "trajectory-self"),
            Setting("trajectory + bank", "trajectory-bank"),
            Setting("data + bank", "data-bank"),
            Setting("printed", "printed"),
        ),
        (Contrast("data + bank", "trajectory + bank"), Contrast("printed", "trajectory + self")),
    ),
    Question(
        "The integral against the instantaneous velocity",
        "The paper: the learned integral gives the end point in one evaluation, where one step along the instantaneous "
        "velocity (the teacher at 1 NFE) misses it. The flow should be lower.",
        (
            Setting("velocity (1 NFE)", "trajectory-self", "teacher_1_"),
            Setting("integral (trajectory)", "trajectory-self"),
            Setting("integral (data)", "data-bank"),
            Setting("integral (printed)", "printed"),
        ),
        tuple(Contrast(f"integral ({name})", "velocity (1 NFE)") for name in ("trajectory", "data", "printed")),
    ),
    Question(
        "Scheme of preconditioning",
        "The paper’s c_skip and c_out (t_min / t for ve and pfgmpp, the velocity form for rf) against EDM’s, which is "
        "this project’s default. The paper’s choice should be lower.",
        (Setting("paper", "scheme-paper"), Setting("edm", "trajectory-self")),
        (Contrast("paper", "edm"),),
    ),
    Question(
        "PFGM++’s D against VE",
        "The paper reports FIDs of 2.86 for ve and 2.91 for pfgmpp on CIFAR-10, nearly the same; D to infinity is ve. "
        "There is no claim of an order here, so none is judged.",
        (
            Setting("D = 8", "D-8", dynamics="pfgmpp"),
            Setting("D = 128", "trajectory-self", dynamics="pfgmpp"),
            Setting("D = 2048", "D-2048", dynamics="pfgmpp"),
            Setting("VE", "trajectory-self", dynamics="ve"),
        ),
        tuple(Contrast(f"D = {d}", "VE", judged=False) for d in (8, 128, 2048)),
    ),
    Question(
        "Distance of the loss",
        "The paper trains with the pseudo-Huber distance and leaves the rule of an adaptive c open (here: the batch’s "
        "mean error). Its choice should be lower than L2.",
        (
            Setting("pseudo-Huber", "trajectory-self"),
            Setting("adaptive c", "adaptive-huber"),
            Setting("L2", "l2"),
        ),
        (Contrast("pseudo-Huber", "L2"), Contrast("adaptive c", "pseudo-Huber", judged=False)),
    ),
)
