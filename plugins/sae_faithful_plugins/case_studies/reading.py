"""Every case as a document, and as a text that can be followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sae_faithful import marked, name_of_sae
from sae_faithful_plugins.case_studies.unembedding import Unembedded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sae_faithful import Detokenizer
    from sae_faithful.metrics.intervals import Interval
    from sae_faithful_plugins.case_studies import CaseStudies
    from sae_faithful_plugins.case_studies.ablation import Ablation
    from sae_faithful_plugins.case_studies.histogram import Histogram, Share
    from sae_faithful_plugins.case_studies.observing import Study
    from sae_faithful_plugins.case_studies.results import Case

N_CONTEXTS = 5
CONTEXTS_IN_TEXT = 3
N_TOKENS = 10
TOKENS_IN_TEXT = 5
Document = dict[str, Any]


def document(options: CaseStudies, cases: Mapping[Study, Sequence[Case]]) -> Document:
    """All cases, in plain JSON."""
    return {
        "chosen": _rule(options),
        "similarity": options.similarity,
        "ablation": options.ablation,
        "effect": options.effect,
        "threshold": options.threshold,
        "saes": [
            {
                **study.handle.identity,
                "n_tokens": int(study.mask.sum()),
                "n_rows": len(study.ids),
                "features": [_with_tree(case) for case in found],
            }
            for study, found in cases.items()
        ],
    }


def _rule(options: CaseStudies) -> str:
    rare = f"not active on more than {options.max_rate:.0%} of tokens"
    if options.features:
        return "named in the config"
    if options.column is not None:
        return f"the {'largest' if options.largest else 'smallest'} {options.column} of each SAE"
    if options.probe is not None:
        return f"most active at the last token of {options.probe!r}, {rare}"
    return f"the largest share of activation on one token, {rare}"


def case_document(options: CaseStudies, case: Case, detokenizer: Detokenizer) -> Document:
    """One case, all but its tree, in plain JSON."""
    study = case.study
    codes = study.codes[case.i]
    found: Document = {
        "latent": case.latent,
        "why": study.why[case.latent],
        "n_active": int((codes > 0).sum()),
        "maximum": float(max(codes.max(initial=0), 0)),
        "top_token": _share(case.share, detokenizer),
        "histogram": _histogram(case.histogram, detokenizer),
        "contexts": _contexts(case, detokenizer),
        "neuron": None,
        "ablation": None if case.ablation is None else _ablation(options, case.ablation, detokenizer),
        "unembedding": _unembedding(case, detokenizer),
    }
    if case.neuron is not None:
        found["neuron"] = {
            "index": case.neuron.index,
            "side": "above 0" if case.neuron.sign > 0 else "below 0",
            "similarity": case.neuron.similarity,
            "n_active": int((study.neuron_values[case.i] > 0).sum()),
            "top_token": _share(case.neuron_share, detokenizer),
            "histogram": _histogram(case.neuron_histogram, detokenizer),
        }
    return found


def _with_tree(case: Case) -> Document:
    if case.tree is None:
        return {**case.document, "tree": None, "tree_text": []}
    return {**case.document, "tree": case.tree.document(), "tree_text": case.tree.lines()}


def _interval(interval: Interval) -> Document:
    return {"ci_low": interval.low, "ci_high": interval.high, "reason": interval.reason}


def _share(share: Share | None, detokenizer: Detokenizer) -> Document | None:
    if share is None:
        return None
    return {
        "token": detokenizer.token(share.token),
        "id": share.token,
        "share_of_activation": share.of_activation,
        **_interval(share.interval),
        "share_of_positions": share.of_positions,
    }


def _histogram(histogram: Histogram, detokenizer: Detokenizer) -> Document:
    return {
        "maximum": histogram.largest,
        "series": [
            {
                "token": detokenizer.token(histogram.tokens[i]) if i < len(histogram.tokens) else None,
                "id": histogram.tokens[i] if i < len(histogram.tokens) else None,
                "counts": counts.tolist(),
            }
            for i, counts in enumerate(histogram.counts)
        ],
    }


def _contexts(case: Case, detokenizer: Detokenizer) -> list[Document]:
    """The rows in which the feature is most active, each with its strongest token."""
    codes, ids = case.study.codes[case.i], case.study.ids
    strongest = codes.max(axis=1)
    found: list[Document] = []
    for row in np.argsort(-strongest, kind="stable")[:N_CONTEXTS]:
        if strongest[row] > 0:
            position = int(codes[row].argmax())
            found.append(
                {
                    "activation": float(strongest[row]),
                    **detokenizer.around(ids[row], position),
                    "row": case.study.start + int(row),
                    "position": position,
                }
            )
    return found


def _ablation(options: CaseStudies, ablation: Ablation, detokenizer: Detokenizer) -> Document:
    mean = ablation.mean
    order = np.argsort(mean, kind="stable")

    def effects(tokens: np.ndarray) -> list[Document]:
        return [
            {
                "token": detokenizer.token(int(token)),
                "id": int(token),
                "effect": float(mean[token]),
                **_interval(ablation.interval(int(token))),
            }
            for token in tokens
        ]

    following = ablation.next_token_change
    return {
        "n_contexts": len(ablation.effects),
        "n_positions": ablation.n_positions,
        "n_unresolved": ablation.n_unresolved,
        "own_code_left": ablation.own_code_left,
        "suppressed": effects(order[mean[order] < 0][:N_TOKENS]),
        "promoted": effects(order[mean[order] > 0][::-1][:N_TOKENS]),
        "n_down": int((mean < -options.threshold).sum()),
        "n_up": int((mean > options.threshold).sum()),
        "next_token": None if following is None else {"change": following[0], **_interval(following[1])},
    }


def _unembedding(case: Case, detokenizer: Detokenizer) -> Document:
    found = case.unembedded
    if not isinstance(found, Unembedded):
        return {"reason": found}
    kept = np.flatnonzero(found.kept)
    order = kept[np.argsort(-found.scores[kept], kind="stable")]

    def tokens(some: np.ndarray) -> list[Document]:
        return [
            {"token": detokenizer.token(int(each)), "id": int(each), "score": float(found.scores[each])}
            for each in some
        ]

    return {
        "raised": tokens(order[:N_TOKENS]),
        "lowered": tokens(order[::-1][:N_TOKENS]),
        "n_left_out": int((~found.kept).sum()),
        "pearson": None if case.agreement is None else case.agreement.pearson,
        "spearman": None if case.agreement is None else case.agreement.spearman,
    }


def text(content: Document) -> str:
    """The document to read."""
    lines: list[str] = []
    for sae in content["saes"]:
        lines += [
            f"Features of {name_of_sae(sae)}; {content['chosen']}; {sae['n_tokens']} held-out tokens.",
            "",
        ]
        if not sae["features"]:
            lines += ["None can be chosen.", ""]
        for feature in sae["features"]:
            lines += [*_feature(feature, sae["n_tokens"], content), ""]
    return "\n".join(lines) + "\n"


def _feature(feature: Document, n_tokens: int, content: Document) -> list[str]:
    lines = [f"**Latent {feature['latent']}** ({feature['why']})", ""]
    if not feature["n_active"]:
        lines.append("- is never active on this text")
    else:
        lines += [
            f"- is active on {feature['n_active'] / n_tokens:.2%} of tokens, {feature['maximum']:.3g} at most; "
            + _of_token(feature["top_token"])
        ]
        lines += [
            f"  - {one['activation']:.3g} at {_shown(one)}" for one in feature["contexts"][:CONTEXTS_IN_TEXT]
        ]
        lines += ["", *_table(feature["histogram"]), ""]
    if feature["neuron"] is not None:
        neuron = feature["neuron"]
        lines.append(
            f"- the neuron most like it is {neuron['index']}, {neuron['side']} ({content['similarity']} "
            f"{neuron['similarity']:.2f}): {_of_token(neuron['top_token'])}"
        )
        lines += ["", *_table(neuron["histogram"]), ""]
    if feature["ablation"] is not None:
        lines += _ablation_lines(feature["ablation"], content)
    lines += _unembedding_lines(feature["unembedding"])
    if feature["tree_text"]:
        lines += ["- it comes from", "", "```text", *feature["tree_text"], "```"]
    return lines


def _of_token(share: Document | None) -> str:
    if share is None:
        return "it is never active on that side"
    return (
        f"{share['share_of_activation']:.0%} of its activation{_bounds(share, '.0%')} and "
        f"{share['share_of_positions']:.0%} of its active tokens are {_quoted(share['token'])}"
    )


def _ablation_lines(ablation: Document, content: Document) -> list[str]:
    what = "logit" if content["effect"] == "logits" else "log-probability"
    head = (
        f"- ablated at {ablation['n_positions']} tokens of {ablation['n_contexts']} contexts "
        f"({ablation['own_code_left']:.0%} of its own code is left)"
    )
    if ablation["n_unresolved"]:
        head += f"; at {ablation['n_unresolved']} more tokens nothing silences it"
    lines = [f"{head}, mean change of each {what}:"]
    for name, verb in (("suppressed", "falls"), ("promoted", "rises")):
        tokens = ablation[name][:TOKENS_IN_TEXT]
        shown = ", ".join(
            f"{_quoted(one['token'])} {one['effect']:+.2f}{_bounds(one, '.2f')}" for one in tokens
        )
        lines.append(f"  - most {verb} {shown or 'none'}")
    lines.append(
        f"  - {ablation['n_down']} tokens fall by more than {content['threshold']:g}, {ablation['n_up']} rise by more"
    )
    following = ablation["next_token"]
    if following is not None:
        lines.append(
            f"  - the log-probability of the token that does come next changes by {following['change']:+.3f} "
            f"nats{_bounds(following, '.3f')}"
        )
    return lines


def _unembedding_lines(found: Document) -> list[str]:
    if "reason" in found:
        return [f"- no direct unembedding: {found['reason']}"]
    raised, lowered = (
        ", ".join(_quoted(one["token"]) for one in found[name][:TOKENS_IN_TEXT])
        for name in ("raised", "lowered")
    )
    lines = [f"- its direction, unembedded, raises most {raised}; lowers most {lowered}"]
    if found["pearson"] is not None:
        lines.append(
            f"  - over the vocabulary this agrees with the ablation: correlation {found['pearson']:.2f}, "
            f"of ranks {found['spearman']:.2f}"
        )
    return lines


def _bounds(row: Document, form: str) -> str:
    if row["ci_low"] is None:
        return ""
    return f" [{row['ci_low']:{form}}, {row['ci_high']:{form}}]"


def _quoted(token: str) -> str:
    """A token as code, its spaces and line breaks visible."""
    return "`" + token.replace("`", "'").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + "`"


def _shown(context: Document) -> str:
    return f"`{marked(context)}`"


def _table(histogram: Document) -> list[str]:
    """Counts by token (down) and strength (across, weakest first), in a fence."""
    maximum, series = histogram["maximum"], histogram["series"]
    names = [
        "others" if one["id"] is None else _quoted(one["token"]).strip("`").replace(" ", "␣")
        for one in series
    ]
    n_bins = len(series[0]["counts"])
    heads = [f"≤{maximum * (i + 1) / n_bins:.3g}" for i in range(n_bins)]
    cells = [
        ["token", *heads, "all"],
        *(
            [name, *map(str, one["counts"]), str(sum(one["counts"]))]
            for name, one in zip(names, series, strict=True)
        ),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(n_bins + 2)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return ["```text", *lines, "```"]
