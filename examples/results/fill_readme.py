"""Fills the sections of examples/README.md, a study each, from the results.

The numbers are those of the JSON files beside this script, which the studies write:

    python examples/results/fill_readme.py          # rewrites the pages
    python examples/results/fill_readme.py --check  # fails if they are not up to date
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent
EXAMPLES = RESULTS.parent
WITH, WITHOUT = "with batch norm", "without"
KERAS_S = "before, Keras's layer"
PAPER = "[Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167)"


def percent(share: float) -> str:
    """An accuracy."""
    return f"{share:.1%}"


def seeds(result: dict[str, Any]) -> str:
    """The mean accuracy over the seeds, and their standard deviation in points."""
    return f"{percent(result['mean'])} ± {100 * result['deviation']:.1f}"


def verdict(reached: bool) -> str:
    """Whether an aim that was set beforehand was met."""
    return "reached" if reached else "**missed**"


def standardization(document: dict[str, Any]) -> str:
    """Steps to the target loss, or how far the arm got."""
    summary, settings = document["summary"], document["settings"]
    parts = []
    for arm in ("standardized", "as they come"):
        steps, loss = summary[arm]["steps"], summary[arm]["loss"]
        parts.append(
            f"inputs {arm}: {steps:,} step{'s' * (steps != 1)}"
            if steps is not None
            else f"inputs {arm}: not within {settings['most_steps']:,} steps, where "
            f"the loss is {loss:.3f}"
        )
    return (
        f"Full-batch gradient descent to a loss of {summary['target loss']:g}, each at "
        f"the best of {len(settings['rates'])} rates; {'; '.join(parts)}. Nothing is "
        "drawn at random, so there are no seeds."
    )


def internal_distribution(document: dict[str, Any]) -> str:
    """Accuracies, and how much the units' medians move."""
    summary = document["summary"]
    arms = "; ".join(
        f"{arm} {seeds(found['test accuracy'])}, {number(found['drift'])} and "
        f"{number(found['travel'])}"
        + ("" if "rate" in arm else f" (rate {found['rate']:g})")
        for arm, found in summary.items()
    )
    verdicts = " ".join(
        f"{arm[0].upper()}{arm[1:]}: less {what} than without "
        f"{_reproduced(found[what]['mean'] < summary[WITHOUT][what]['mean'])}."
        for arm, found in summary.items()
        if arm != WITHOUT
        for what in ("drift", "travel")
    )
    return (
        f"Test accuracy after {document['settings']['steps']:,} steps, drift of a "
        "unit's median input and its whole travel, in widths of its distribution: "
        f"{arms}. {verdicts}"
    )


def number(result: dict[str, Any]) -> str:
    """A mean over the seeds, and their standard deviation."""
    return f"{result['mean']:.2f} ± {result['deviation']:.2f}"


def depth(document: dict[str, Any]) -> str:
    """A line a family: the accuracy at each depth."""
    lines = []
    for family, name in (("mlp", "sigmoid layers"), ("plain_cnn", "ReLU convolutions")):
        found, settings = document["summary"][family], document["settings"][family]
        depths = settings["depths"]
        means = {
            arm: [found[arm][str(d)]["test"]["mean"] for d in depths]
            for arm in (WITH, WITHOUT)
        }
        cells = ", ".join(
            f"{d}: {seeds(found[WITH][str(d)]['test'])} with, "
            f"{seeds(found[WITHOUT][str(d)]['test'])} without"
            for d in depths
        )
        near_best = means[WITH][-1] >= max(means[WITH]) - 0.02
        at_chance = means[WITHOUT][-1] <= 0.15
        lines.append(
            f"Test accuracy of {name} after {settings['steps']:,} steps, at depth "
            f"{cells}. Aims at depth {depths[-1]}: with, within 2 points of the best "
            f"depth: {verdict(near_best)}; without, at most 15%: {verdict(at_chance)}."
        )
    return " ".join(lines)


def learning_rate(document: dict[str, Any]) -> str:
    """The spans of good rates, a sentence a schedule."""
    lines = [
        f"Rates within 2 points of the arm's best validation accuracy after "
        f"{document['settings']['steps']} steps."
    ]
    for schedule, found in document["summary"].items():
        normed, plain, ratio = found[WITH], found[WITHOUT], found["spans' ratio"]
        lines.append(
            f"{schedule.capitalize()} rates: {_span(normed)} with, {_span(plain)} "
            f"without, a span {ratio:g} times as wide (aim 10: {verdict(ratio >= 10)});"
            f" test accuracy at the best {seeds(normed['test accuracy'])} with (rate "
            f"{normed['best rate']:g}), {seeds(plain['test accuracy'])} without (rate "
            f"{plain['best rate']:g})."
        )
    return " ".join(lines)


def _span(found: dict[str, Any]) -> str:
    return f"{found['lowest good rate']:g} to {found['highest good rate']:g}"


def fewer_steps(document: dict[str, Any]) -> str:
    """The steps that both arms took to the same accuracy."""
    summary = document["summary"]
    normed, plain = (summary[arm] for arm in (WITH, WITHOUT))
    without = summary["steps without"]["values"]
    ratio = summary["times fewer"]
    missing = summary["seeds that did not reach it"]
    cap = document["settings"]["most_steps"]
    cut = summary["trained for"].count(cap)
    capped = f" ({cut} of {len(without)} ended by the cap of {cap:,})" * bool(cut)
    told = f"{missing} of {len(without)} seeds did not get there"
    if ratio:
        told = (
            f"{ratio['mean']:.1f} ± {ratio['deviation']:.1f} times fewer (aim 5: "
            f"{verdict(not missing and ratio['mean'] >= 5)}; the paper's figure is 14)"
        )
        told += f"; {missing} of {len(without)} seeds did not get there" * bool(missing)
    return (
        f"Best validation accuracy without: {seeds(summary['target'])}, at step "
        f"{_steps(without)}; with batch norm the same accuracy at step "
        f"{_steps(summary['steps with'])}: {told}. Rates: "
        f"{summary['rates'][WITHOUT]:g} without, {summary['rates'][WITH]:g} with. Test "
        f"accuracy after {_steps(summary['trained for'])} steps{capped}: "
        f"{seeds(plain['test accuracy'])} without, {seeds(normed['test accuracy'])} "
        "with."
    )


def _steps(values: list[int | None]) -> str:
    return ", ".join("-" if step is None else f"{step:,}" for step in values)


def placement(document: dict[str, Any]) -> str:
    """The arms' accuracies, and the two layers' difference."""
    summary = document["summary"]
    arms = ", ".join(
        f"{seeds(summary[arm]['test accuracy'])} {arm} (rate {summary[arm]['rate']:g})"
        for arm in ("before", "after", "none")
    )
    apart = summary["loss apart"]
    theirs, nudged = apart.values()
    return (
        f"Test accuracy after {document['settings']['steps']:,} steps: {arms}, "
        f"{seeds(summary[KERAS_S]['test accuracy'])} before with Keras's layer. From "
        f"equal weights the two layers' losses are {_apart(theirs['first'])} apart "
        f"over the first {document['settings']['compared_every']} steps and at most "
        f"{_apart(theirs['largest'])} within {document['settings']['compared_steps']}; "
        f"one layer with weights one rounding larger: {_apart(nudged['first'])} and "
        f"{_apart(nudged['largest'])}."
    )


def _apart(difference: float) -> str:
    # The losses are kept with six decimals.
    return f"{difference:.0e}" if difference >= 1e-6 else "less than 1e-06"


def small_batch(document: dict[str, Any]) -> str:
    """A line a norm: the accuracy at each batch size."""
    sizes = [str(size) for size in document["settings"]["batch_sizes"]]
    lines = "; ".join(
        f"{norm} {', '.join(seeds(found[size]['test']) for size in sizes)}"
        for norm, found in document["summary"].items()
    )
    batch, renorm, group = (
        [found[size]["test"]["mean"] for size in sizes]
        for found in document["summary"].values()
    )
    leads = ", ".join(
        f"{100 * (x - y):+.1f}" for x, y in zip(batch, group, strict=True)
    )
    return (
        f"Test accuracy after {document['settings']['images']:,} images, at batches of "
        f"{', '.join(sizes)}: {lines}. Batch norm's lead over group norm, in points: "
        f"{leads}. At batches of {sizes[0]}, group norm better than batch norm: "
        f"{_reproduced(group[0] > batch[0])}; batch renorm better than batch norm: "
        f"{_reproduced(renorm[0] > batch[0])}."
    )


def repair(document: dict[str, Any]) -> str:
    """A part a shift: the accuracy of each way, and what it changes."""
    summary, settings = document["summary"], document["settings"]
    prior, step_size = (
        summary["choices"][arm] for arm in ("new statistics", "entropy")
    )
    lines = "; ".join(
        f"{shift} {seeds(arms['as trained'])} as trained, "
        f"{seeds(arms['new statistics'])} new statistics, "
        f"{seeds(arms['entropy'])} entropy"
        for shift, arms in summary["accuracy"].items()
    )
    gains = {
        way: _gains(summary["accuracy"], way, than)
        for way, than in (
            ("new statistics", "as trained"),
            ("entropy", "new statistics"),
        )
    }
    told = {
        way: ", ".join(f"{gain:+.1f} ({shift})" for shift, gain in found.items())
        for way, found in gains.items()
    }
    helped = [shift for shift, gain in gains["new statistics"].items() if gain > 1]
    more = all(gains["entropy"][shift] > 0 for shift in helped)
    old = "no prior" if prior is None else f"a prior of {prior:g}"
    return (
        f"Digits. Test accuracy in batches of {settings['batch']} without labels, "
        f"answered once ({old}; Adam at {step_size:g}): {lines}. New statistics "
        f"against none, in points: {told['new statistics']}; entropy against new "
        f"statistics alone: {told['entropy']}. New statistics repair a shift: "
        f"{_reproduced(bool(helped))} ({', '.join(helped)}). Entropy repairs more of "
        f"it: {_reproduced(bool(helped) and more)}."
    )


def _gains(accuracies: dict[str, Any], way: str, than: str) -> dict[str, float]:
    """By how many points one way is better than another, for each shift."""
    return {
        shift: 100 * (arms[way]["mean"] - arms[than]["mean"])
        for shift, arms in accuracies.items()
    }


def _reproduced(held: bool) -> str:
    return "reproduced" if held else "**not reproduced**"


class Row(NamedTuple):
    """A study: what others claim, where, and what makes a sentence of our numbers."""

    claim: str
    source: str
    measured: Callable[[dict[str, Any]], str]


ROWS = {
    "standardization": Row(
        "Learning is faster on inputs of mean 0 and variance 1.",
        "LeCun et al., 1998, Efficient BackProp, section 4.3",
        standardization,
    ),
    "internal_distribution": Row(
        "A unit's inputs are more stable over training, and the network is faster and "
        "more accurate.",
        f"{PAPER}, section 4.1 and figure 1",
        internal_distribution,
    ),
    "depth": Row(
        "Deep networks train, of saturating units and without shortcuts too.",
        f"{PAPER}, section 4.2.1; [He et al., 2016](https://arxiv.org/abs/1512.03385), "
        "section 4.1",
        depth,
    ),
    "learning_rate": Row(
        "Much larger learning rates work.",
        f"{PAPER}, sections 3.3 and 4.2",
        learning_rate,
    ),
    "fewer_steps": Row(
        "The same accuracy in 14 times fewer steps.",
        f"{PAPER}, abstract and figure 3",
        fewer_steps,
    ),
    "placement": Row(
        "The norm belongs before the activation.",
        f"{PAPER}, section 3.2",
        placement,
    ),
    "small_batch": Row(
        "Small batches cost batch norm accuracy, batch renorm less, group norm none.",
        "[Ioffe, 2017](https://arxiv.org/abs/1702.03275); "
        "[Wu and He, 2018](https://arxiv.org/abs/1803.08494), figure 1",
        small_batch,
    ),
    "repair": Row(
        "Without labels, the statistics of test images repair a shift, and steps of "
        "gamma and beta that minimize the entropy repair more of it.",
        "[Schneider et al., 2020](https://arxiv.org/abs/2006.16971); "
        "[Wang et al., 2021](https://arxiv.org/abs/2006.10726)",
        repair,
    ),
}


def load(name: str) -> dict[str, Any]:
    """One study's results."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def studies() -> str:
    """A section a study, and what they were measured on."""
    parts = []
    machines: dict[str, list[str]] = {}
    for name, row in ROWS.items():
        document = load(name)
        number = len(document["settings"].get("seeds", ()))
        seeds_told = f" {number} seeds, ± their standard deviation." if number else ""
        parts += [
            f"## {name.replace('_', ' ').capitalize()}",
            f"*{row.claim}* {row.source}",
            f"{row.measured(document)}{seeds_told}",
            # A link to itself, for a phone to show it larger.
            f"[![{name.replace('_', ' ')}](results/{name}.png)](results/{name}.png)",
            f"[{name}.py]({name}.py), [all numbers](results/{name}.json)",
        ]
        about = ", ".join(f"{key} {x}" for key, x in document["machine"].items())
        machines.setdefault(about, []).append(name)
    told = [f"- {', '.join(names)}: {about}" for about, names in machines.items()]
    return "\n\n".join([*parts, "## What it was measured on", "\n".join(told)])


PAGES: dict[Path, Callable[[], str]] = {EXAMPLES / "README.md": studies}
START, END = (
    "<!-- studies: made by examples/results/fill_readme.py -->",
    "<!-- studies end -->",
)


def filled(page: Path) -> str:
    """The page's text with what is between its markers made anew."""
    head, rest = page.read_text().split(START)
    return f"{head}{START}\n\n{PAGES[page]()}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Rewrites the pages, or with --check says whether they would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [page for page in PAGES if filled(page) != page.read_text()]
    for page in stale:
        if check:
            print(f"{page} is not up to date: run python {Path(__file__).name}")
        else:
            page.write_text(filled(page))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
