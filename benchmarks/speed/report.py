"""The tables of `run.py`."""

import math
from statistics import median
from typing import Any

NAMES = {
    "step": "training step, minibatch of 256",
    "step in float32": "the same, totalvi in float32",
    "epoch": "epoch with validation",
    "latent": "latent states",
    "denoised": "denoised expression, 25 samples",
    "foreground": "foreground probability, 25 samples",
    "two groups": "differential expression of 2 groups",
    "each cluster": "differential expression of each of {clusters} clusters against the rest",
    "import": "`import totalvi`; `import scvi`",
    "totalvi --help": "`totalvi --help`",
}
FLOORS = {"bf16-mixed": "bfloat16"}  # other precisions are float32 at the floor


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a result."""
    lines = [*_about(result), "", *_cases(result), "", *_floor(result)]
    if "growth" in result:
        lines += ["", *_growth(result["growth"])]
    return "\n".join(lines) + "\n"


def _about(result: dict[str, Any]) -> list[str]:
    ours, peer, where = *result["programs"].values(), result["machine"]
    device = "" if result["device"] == "cpu" else ", training on the GPU"
    return [
        f"totalvi {ours['version']}, commit {where['commit']} (torch {ours['torch']}) and "
        f"scvi-tools {peer['version']} (torch {peer['torch']}) on {result['data']}: "
        f"{ours['cells']} cells, {ours['genes']} genes, {ours['proteins']} proteins. "
        f"{where['processor']}, {where['cores']} cores, "
        f"{where['threads']} threads{device}. Medians of {len(result['seconds']['epoch']['ours'])}, "
        "and their range; the ratio is the median of scvi-tools divided by that of totalvi."
    ]


def _cases(result: dict[str, Any]) -> list[str]:
    lines = ["| case | totalvi | scvi-tools | ratio |", "|---|---|---|---|"]
    for case, name in NAMES.items():
        if case not in result["seconds"]:
            continue
        ours = result["seconds"][case]["ours"]
        peers = result["seconds"]["step" if case == "step in float32" else case].get("peer", [])
        lines.append(_row(name.format(clusters=result["clusters"]), ours, peers, _seconds))
    memory = result["peak_mb"]
    lines.append(_row("peak memory, training and queries", [memory["ours"]], [memory["peer"]], _mb))
    return lines + _time_to_quality(result)


def _time_to_quality(result: dict[str, Any]) -> list[str]:
    if "time_to_quality" not in result:
        return ["", "The time to quality is missing: no fit of scvi-tools to these data is stored."]
    found = result["time_to_quality"]
    what = f"time to a held-out loss of {found['target']:.1f}, with which scvi-tools ends"
    reached = [math.inf if fit["reached"] is None else fit["reached"] for fit in found["fits"]]
    whole_peer, source = found["peer"], "was measured"
    if found["peer_is_stored"]:
        epoch = median(result["seconds"]["epoch"]["peer"])
        whole_peer = found["peer_epochs"] * epoch
        source = (
            f"is calculated: {found['peer_epochs_there']} and {found['peer_epochs']} epochs of its "
            f"stored fit, which took {found['peer']:.0f} s, of {_seconds(epoch)} each as here"
        )
    peer = whole_peer * found["peer_epochs_there"] / found["peer_epochs"]
    whole = [fit["seconds"] for fit in found["fits"]]
    n_there = sum(math.isfinite(seconds) for seconds in reached)
    return [
        _row(what, reached if math.isfinite(median(reached)) else [], [peer], _seconds),
        _row("the whole fit", whole, [whole_peer], _seconds),
        "",
        f"Time to quality: {n_there} of {len(found['fits'])} fits of totalvi reached that loss, "
        f"and ended with {found['loss']:.1f} (median). The time of scvi-tools {source}.",
    ]


def _floor(result: dict[str, Any]) -> list[str]:
    precision = result["programs"]["ours"]["precision"]
    steps = {"step in float32": "float32", "step": FLOORS.get(precision, "float32")}
    lines = [
        "| training step | step | bare matrix products of its shapes | step over products |",
        "|---|---|---|---|",
    ]
    for case, floor in steps.items():
        step = median(result["seconds"][case]["ours"])
        products = median(result["seconds"][floor]["floor"])
        asked = "32-true" if case == "step in float32" else f"auto: {precision}"
        lines.append(
            f"| {asked} | {_seconds(step)} | {_seconds(products)} | {step / products:.2f} |"
        )
    return lines


def _growth(growth: dict[str, Any]) -> list[str]:
    lines = [
        "| cells | genes | epoch, by cell | latent states, by cell | denoised, 5 samples, to disk, by "
        "cell | counts | memory beyond the counts |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['cells']} | {row['genes']} | {row['epoch']:.0f} µs | {row['latent']:.1f} µs "
        f"| {row['denoised']:.0f} µs | {_mb(row['data_mb'])} | {_mb(row['beyond_data_mb'])} |"
        for row in (*growth["cells"], *growth["genes"])
    ]
    return lines


def _row(name: str, ours: list[float], peer: list[float], unit: Any) -> str:
    ratio = f"{median(peer) / median(ours):.1f}" if ours and peer else ""
    ours_text = unit(*_with_range(ours)) if ours else "not reached"
    return f"| {name} | {ours_text} | {unit(*_with_range(peer)) if peer else ''} | {ratio} |"


def _with_range(values: list[float]) -> list[float]:
    """Return the median, and the least and the largest value if there are several."""
    return [median(values), *((min(values), max(values)) if len(values) > 1 else ())]


def _seconds(value: float, *ends: float) -> str:
    unit, factor = ("ms", 1e3) if value < 0.9995 else ("s", 1.0)
    return f"{_three_digits(value * factor)} {unit}" + _range([factor * end for end in ends])


def _range(ends: list[float]) -> str:
    return f" ({_three_digits(ends[0])} to {_three_digits(ends[1])})" if ends else ""


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 3 - len(f'{max(value, 1):.0f}'))}f}"


def _mb(value: float) -> str:
    return f"{value:.0f} MB"
