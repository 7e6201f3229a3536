"""What is wrong with a learner's function? The smallest input on which it errs, and the mistake, if it is a known one.

The learner's function answers the questions of `gpt.lessons.probes`. Where its answer differs from the package's, it is
compared with the answers of the package with each famous bug in it, and with each pair of bugs. Equal to one of these,
on all questions, to nine digits: that is the mistake. Otherwise properties are tried in order (shape, type, sum of a
row, ...), and the word is "perhaps".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

import gpt as package
from gpt.lessons.bugs import BUGS, Bug, planted
from gpt.lessons.probes import PROBES, READABLE, Answers, Probe

TOLERANCE = 1e-9
Answered = Answers | str  # a probe's answers, or the error it raised, in a line


@dataclass(frozen=True)
class Diagnosis:
    """Why a step is red.

    name      the learner's function or class
    case      the smallest input on which it differs, in words: "T=2, d=1"
    answer    which of the answers differs: "weights"
    got       the learner's numbers, or its error
    expected  the package's
    causes    the bugs that explain every answer; of several, any one may be it
    guess     what the difference looks like, if no known bug explains it
    """

    name: str
    case: str
    answer: str
    got: Tensor | str
    expected: Tensor | str
    causes: tuple[tuple[Bug, ...], ...] = ()
    guess: str = ""


def diagnose(key: str, own: Any) -> Diagnosis | None:
    """The first probe of this step in which `own` and the package differ; None if there is none."""
    with planted(*READABLE):
        for probe in PROBES.get(key, []):
            got = [_answers(probe, own, case) for case in probe.cases]
            right = [_answers(probe, package, case) for case in probe.cases]
            for case, mine, theirs in zip(probe.cases, got, right, strict=True):
                answer = _differs(mine, theirs)
                if answer is not None:
                    found = Diagnosis(probe.name, _words(case), answer, _part(mine, answer), _part(theirs, answer))
                    causes = tuple(_explain(probe, got, right))
                    guess = "" if causes else _guess(found)
                    return Diagnosis(found.name, found.case, answer, found.got, found.expected, causes, guess)
    return None


def _answers(probe: Probe, implementation: Any, case: dict[str, Any]) -> Answered:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {name: value.detach() for name, value in probe.run(implementation, **case).items()}
    except Exception as error:  # whatever a learner's code raises
        return " ".join(f"{type(error).__name__}: {error}".split())


def _words(case: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in case.items()) or "any input"


def _part(answered: Answered, name: str) -> Tensor | str:
    return answered if isinstance(answered, str) else answered[name]


def _differs(mine: Answered, theirs: Answered) -> str | None:
    """The name of the first answer that differs, None if none does."""
    if isinstance(mine, str) or isinstance(theirs, str):
        known = theirs if isinstance(mine, str) else mine
        return None if mine == theirs else next(iter(known), "") if isinstance(known, dict) else "error"
    return next((name for name in theirs if not _equal(mine[name], theirs[name])), None)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (x.to_dense().double() for x in (a, b))
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _same(some: Sequence[Answered], others: Sequence[Answered]) -> bool:
    return all(_differs(a, b) is None for a, b in zip(some, others, strict=True))


def _explain(probe: Probe, got: list[Answered], right: list[Answered]) -> Iterator[tuple[Bug, ...]]:
    """Each bug with which the package gives the learner's answers; if there is none, each pair of bugs."""
    felt: list[Bug] = []
    found = False
    for bug in BUGS:
        answers = _with_bugs(probe, bug)
        if answers is None or _same(answers, right):
            continue
        felt.append(bug)
        if _same(answers, got):
            found = True
            yield (bug,)
    if not found:
        for pair in combinations(felt, 2):
            answers = _with_bugs(probe, *pair)
            if answers is not None and _same(answers, got):
                yield pair


_KNOWN: dict[tuple[str, ...], list[Answered] | None] = {}  # answers of the package with bugs: they never change


def _with_bugs(probe: Probe, *bugs: Bug) -> list[Answered] | None:
    """The package's answers with these bugs in it; None if they do not fit the source together."""
    key = (probe.run.__name__, probe.name, *(bug.name for bug in bugs))
    if key not in _KNOWN:
        try:
            with planted(*bugs):
                _KNOWN[key] = [_answers(probe, package, case) for case in probe.cases]
        except ValueError:
            _KNOWN[key] = None
    return _KNOWN[key]


def _guess(found: Diagnosis) -> str:
    """The first property that the learner's numbers lack, or that the difference has."""
    mine, theirs = found.got, found.expected
    if isinstance(mine, str) or isinstance(theirs, str):
        return ""
    return next((sentence for look in LOOKS if (sentence := look(mine, theirs, found.answer))), "")


def _shape(mine: Tensor, theirs: Tensor, _answer: str) -> str:
    if mine.shape == theirs.shape:
        return ""
    return f"the shape is {list(mine.shape)}, it should be {list(theirs.shape)}"


def _dtype(mine: Tensor, theirs: Tensor, _answer: str) -> str:
    return "" if mine.dtype == theirs.dtype else f"the type is {mine.dtype}, it should be {theirs.dtype}"


def _not_finite(mine: Tensor, theirs: Tensor, _answer: str) -> str:
    bad = int((~mine.double().isfinite()).sum())
    return f"{bad} of {mine.numel()} numbers are not finite" if bad and theirs.double().isfinite().all() else ""


def _rows(mine: Tensor, _theirs: Tensor, answer: str) -> str:
    if answer not in ("weights", "probabilities"):
        return ""
    sums = mine.sum(-1)
    if torch.allclose(sums, torch.ones_like(sums)):
        return ""
    columns = mine.sum(-2) if mine.dim() > 1 else sums
    if torch.allclose(columns, torch.ones_like(columns)):
        return "perhaps the softmax runs over the queries: the columns sum to 1, the rows do not"
    return f"a row sums to {sums.flatten()[(sums - 1).abs().argmax()]:.4g}, it should sum to 1"


def _ratio(mine: Tensor, theirs: Tensor, _answer: str) -> str:
    large = theirs.double().abs() > 1e-6
    if not large.any():
        return ""
    ratios = (mine.double() / theirs.double())[large]
    if ratios.std(correction=0) > 1e-6 or abs(ratios.mean() - 1) < 1e-9:
        return ""
    return f"perhaps a factor is missing: every number is {ratios.mean():.6g} times what it should be"


def _order(mine: Tensor, theirs: Tensor, _answer: str) -> str:
    a, b = (x.double().flatten().sort().values for x in (mine, theirs))
    return "perhaps axes are mixed up: the numbers are right, their places are not" if torch.allclose(a, b) else ""


LOOKS: tuple[Callable[[Tensor, Tensor, str], str], ...] = (_shape, _dtype, _not_finite, _rows, _ratio, _order)
