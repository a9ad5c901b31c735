"""Write the measurements of `sizes.py` as Markdown."""

from typing import Any

IN_MEMORY_TIMES, IN_MEMORY_MORE_MB, ON_DISK_MB = 2.5, 1_000, 1_500  # what memory is to stay below
Result = dict[str, Any]


def memory_bar(name: str, size: Result) -> float | None:
    """Return below how many MB the memory of a command is to stay."""
    if name == "run_on_disk":
        return ON_DISK_MB
    return IN_MEMORY_TIMES * size["counts_mb"] + IN_MEMORY_MORE_MB if name == "run" else None


def row(n_cells: int, name: str, found: Result, size: Result) -> str:
    """Return a row of the table: what a command did at one size."""
    if not found["passed"]:
        error = found["error"].replace("|", "/")
        return f"| {n_cells:,} | {name} | **no**: {error} | | | |"
    bar, note = memory_bar(name, size), []
    if bar is not None:
        word = "below" if found["peak_mb"] <= bar else "**above**"
        note.append(f"memory {word} the bar of {bar:,.0f} MB")
    if "after_the_fit_to_ten_epochs" in found:
        ratio = found["after_the_fit_to_ten_epochs"]
        note.append(f"after the fit {ratio:.2f} of ten epochs")
    if "gate_seconds" in found:
        note.append(
            f"start {found['start_seconds']:.1f} s, page {found['open_seconds']:.1f} s, gate of "
            f"{found['cells_in_gate']:,} cells {found['gate_seconds']:.2f} s, comparison "
            f"{found['comparison_seconds']:.1f} s"
        )
    elif "open_seconds" in found:
        note.append(f"{found['report_mb']:.1f} MB, opened in {found['open_seconds']:.1f} s")
    if "killed_after_seconds" in found:
        note.append(f"killed after {found['killed_after_seconds']:.1f} s")
    times = f"{found['peak_mb'] / size['counts_mb']:.1f}"
    numbers = f"{found['seconds']:,.1f} | {found['peak_mb']:,.0f} | {times}"
    return f"| {n_cells:,} | {name} | yes | {numbers} | {'; '.join(note)} |"


def table(results: Result, data: str, commands: list[str]) -> str:
    """Return all rows of the ``commands``, and the steps of the runs; ``data`` says what cells are."""
    machine = results["machine"]
    sizes = sorted(results["sizes"].items(), key=lambda item: int(item[0]))
    rows = [found for _, size in sizes for found in size["commands"].values()]
    epochs = map(str, sorted({found["epochs_asked"] for found in rows}))
    lines = [
        "# Every command at growing numbers of cells", "",
        f"`make bench-sizes`; {data}, {' or '.join(epochs)} epochs; {machine['processors']} processors "
        f"({machine['processor']}), Python {machine['python']}. Bars: a run in memory below "
        f"{IN_MEMORY_TIMES} times its counts and {IN_MEMORY_MORE_MB / 1000:.0f} GB, one on disk below "
        f"{ON_DISK_MB / 1000} GB.", "",
        "| cells | command | ended well | seconds | peak memory, MB | times the counts | |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        row(int(n_cells), name, size["commands"][name], size)
        for n_cells, size in sizes
        for name in commands
        if name in size["commands"]
    ]
    sparse = ", ".join(
        f"{int(n):,}: {size['counts_mb']:,.0f} MB, {100 * size['non_zero']:.1f} %"
        for n, size in sizes
    )
    counts = f"Counts, and share of those of RNA that is not zero: {sparse}."
    return "\n".join([*lines, "", counts, "", *_steps(sizes), ""])


def _steps(sizes: list[tuple[str, Result]]) -> list[str]:
    """Return a table of the seconds of each step of the runs."""
    runs = {
        f"{int(n_cells):,} {name}": size["commands"][name]
        for n_cells, size in sizes
        for name in ("run", "run_on_disk")
        if size["commands"].get(name, {}).get("passed")
    }
    names = list(dict.fromkeys(step for found in runs.values() for step in found["steps"]))
    lines = [
        "## Seconds of each step of a run", "",
        "| cells | " + " | ".join([*names, "start and report"]) + " |",
        "|---" * (len(names) + 2) + "|",
    ]  # fmt: skip
    for title, found in runs.items():
        steps = [f"{found['steps'][step]:,.1f}" if step in found["steps"] else "" for step in names]
        lines.append(f"| {title} | {' | '.join(steps)} | {found['start_and_report_seconds']:.1f} |")
    return lines
