"""Published numbers of other models, as reference rows of a table.

They were measured by others, on other subsets, with other attacks and samples: rows to read beside one's own, never to
test against. Numbers that were not read in a public text are left out; those that were only seen quoted are marked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jemstone.evaluation.compare import Cell, Comparison, Row

DATA = "cifar10"
FID = "FID by the paper's own protocol, which was not checked against ours"
LEGACY = "FID from 10,000 chains of the replay buffer, the most confident per class, against train and test images"
QUOTED_OOD = "SVHN and max p(y|x) as quoted by Yang et al. 2022, tables 3 and 11"


@dataclass(frozen=True)
class Published:
    """One published model on CIFAR-10. `values` by result name; those in `quoted` are second-hand."""

    model: str
    source: str
    values: Mapping[str, float]
    quoted: frozenset[str] = field(default_factory=frozenset)
    caveat: str = ""


def _aurocs(score: str, **sets: float) -> dict[str, float]:
    return {f"ood/{name}/{score}/auroc": value for name, value in sets.items()}


def _second_hand(*groups: Mapping[str, float]) -> frozenset[str]:
    return frozenset(name for group in groups for name in group)


_WRN = _aurocs("log_density", svhn=0.91, cifar100=0.87, celeba=0.78)
_WRN_MAX = _aurocs("max_probability", svhn=0.93, interpolated=0.77, cifar100=0.85, celeba=0.62)
_IGEBM_SVHN = _aurocs("log_density", svhn=0.63)
_IGEBM_MAX = _aurocs("max_probability", svhn=0.43, interpolated=0.69, cifar100=0.54, celeba=0.69)
_JEM_SVHN = _aurocs("log_density", svhn=0.67)
_JEM_MAX = _aurocs("max_probability", svhn=0.89, interpolated=0.75, cifar100=0.87, celeba=0.79)
_JEMPP_SVHN = _aurocs("log_density", svhn=0.85)
_JEMPP_MAX = _aurocs("max_probability", svhn=0.94, interpolated=0.77, cifar100=0.88, celeba=0.90)
_VERA_SVHN = _aurocs("log_density", svhn=0.83)

PUBLISHED = (
    Published(
        "WRN-28-10 classifier",
        "Liu et al., NeurIPS 2020; Yang et al. 2022",
        {"accuracy": 0.962} | _WRN | _WRN_MAX,
        _second_hand(_WRN),
        "log p(x) is the post-hoc energy score; max p(y|x) from Yang et al. 2022, table 11",
    ),
    Published(
        "IGEBM",
        "Du and Mordatch, NeurIPS 2019",
        {"accuracy": 0.491, "generation/inception_score": 8.30, "generation/fid": 37.9}
        | _aurocs("log_density", interpolated=0.70, cifar100=0.50, celeba=0.70)
        | _IGEBM_SVHN
        | _IGEBM_MAX,
        _second_hand(_IGEBM_SVHN, _IGEBM_MAX),
        f"{FID}; {QUOTED_OOD}",
    ),
    Published(
        "JEM, K = 20",
        "Grathwohl et al., ICLR 2020",
        {"accuracy": 0.929, "generation/inception_score": 8.76, "generation/fid": 38.4}
        | _aurocs("log_density", interpolated=0.65, cifar100=0.67, celeba=0.75)
        | _JEM_SVHN
        | _JEM_MAX,
        _second_hand(_JEM_SVHN, _JEM_MAX),
        f"{FID}; {QUOTED_OOD}",
    ),
    Published(
        "JEM++, M = 20",
        "Yang and Ji, ICCV 2021",
        {"accuracy": 0.941, "generation/inception_score": 8.11, "legacy/fid": 38.0}
        | _aurocs("log_density", interpolated=0.57, cifar100=0.68, celeba=0.80)
        | _JEMPP_SVHN
        | _JEMPP_MAX,
        _second_hand(_JEMPP_SVHN, _JEMPP_MAX),
        f"{LEGACY}; {QUOTED_OOD}",
    ),
    Published(
        "VERA",
        "Grathwohl et al., ICLR 2021",
        {"accuracy": 0.932, "generation/inception_score": 8.11, "generation/fid": 30.5}
        | _aurocs("log_density", interpolated=0.86, cifar100=0.73, celeba=0.33)
        | _VERA_SVHN,
        _second_hand(_VERA_SVHN),
        f"{FID}, samples of its generator; {QUOTED_OOD}",
    ),
    Published(
        "SADA-JEM, K = 5",
        "Yang et al., CVPR 2023",
        {"accuracy": 0.955, "generation/inception_score": 8.77, "legacy/fid": 9.4},
        frozenset({"generation/inception_score"}),
        f"{LEGACY}; a later paper measures 17.4 (second-hand)",
    ),
    Published("HDGE", "Liu and Abbeel 2020", {"accuracy": 0.967}),
    Published(
        "HybViT",
        "Yang et al. 2022",
        {"accuracy": 0.959, "generation/inception_score": 7.68, "generation/fid": 26.4}
        | _aurocs("log_density", svhn=0.93, interpolated=0.92, cifar100=0.84, celeba=0.76)
        | _aurocs("max_probability", svhn=0.91, interpolated=0.94, cifar100=0.85, celeba=0.67),
        caveat=FID,
    ),
    Published(
        "RATIO, WRN-34-10",
        "Augustin et al., ECCV 2020",
        {"accuracy": 0.922, "autoattack_l2/0.5": 0.763},
        caveat="trained against attacks; its protocol of attack was not checked against ours",
    ),
    Published(
        "DAT, T = 50, WRN-34-10",
        "dual adversarial training, 2025",
        {"accuracy": 0.907, "generation/inception_score": 9.86, "generation/fid": 7.57},
        frozenset({"accuracy", "generation/inception_score", "generation/fid"}),
        f"trained against attacks; {FID}",
    ),
    Published(
        "EGC",
        "Guo et al., ICCV 2023",
        {"accuracy": 0.959, "generation/inception_score": 9.43, "generation/fid": 3.30},
        frozenset({"accuracy", "generation/inception_score", "generation/fid"}),
        f"a diffusion U-Net; {FID}",
    ),
)
"""Every published model. Values of one's own memory, and scores that are not defined as ours, are left out."""

METRICS = tuple(dict.fromkeys(name for model in PUBLISHED for name in model.values))
"""Names of all results that some row has: patterns to ask `compare_runs` for in front of `add_published`."""


def add_published(comparison: Comparison, *, force: bool = False) -> Comparison:
    """`comparison` with the published rows that have a number in one of its columns, below its own, and never tested.

    Rows are added to a table of CIFAR-10 only, whatever its spelling, unless `force`d; else a note says why not.
    """
    if re.sub(r"[^a-z0-9]", "", comparison.data.lower()) != DATA and not force:
        why = f"Published rows are of CIFAR-10 and left out: {comparison.reference} was measured on {comparison.data}."
        return replace(comparison, notes=(*comparison.notes, why))
    names = [column.name for column in comparison.columns]
    rows = tuple(
        Row(
            model.model,
            tuple(
                Cell(model.values[name], quoted=name in model.quoted) if name in model.values else None
                for name in names
            ),
            source=model.source,
            caveat=model.caveat,
        )
        for model in PUBLISHED
        if any(name in model.values for name in names)
    )
    if not rows:
        note = "No published row has a number in these columns."
    else:
        note = (
            "Published rows are copied from papers and not tested. Their protocols differ from this one: FID and IS "
            "are in features of the Inception network, and interpolated images need not be of two classes."
        )
    return replace(comparison, rows=(*comparison.rows, *rows), notes=(*comparison.notes, note))
