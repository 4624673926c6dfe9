"""Check PREREGISTRATION.md against conf/, and give the registered verdicts on run records.

python scripts/check_preregistration.py                                  the page and conf/
python scripts/check_preregistration.py results/phase_b results/phase_a  and the verdicts
    --out results/phase_b/verdicts.md                                    also as a page
python scripts/check_preregistration.py --commands                       how to train it all

Exit code 1 if the page was edited or disagrees with conf/. Needs pip install 'phasegpt[report]'.
"""

import argparse
import shlex
import sys
from pathlib import Path

from phasegpt.analysis import statistics, verdicts
from phasegpt.analysis.statistics import Comparison
from phasegpt.analysis.study import read_records
from phasegpt.cli import guarded
from phasegpt.core.files import check_output, write_output
from phasegpt.training import preregistration
from phasegpt.training.preregistration import Cell, Registration


def check(registration: Registration) -> bool:
    """Print the hashes and every disagreement; True if there is none."""
    print(f"registered {registration.block['date']}, sha256 {registration.hash}")
    for amendment in registration.amendments:
        why = f"{amendment['date']}, {amendment['reason']}"
        print(f"amendment {amendment['amendment']}, {why}, {preregistration.digest(amendment)}")
    found = preregistration.problems(registration)
    for problem in found:
        print(f"MISMATCH  {problem}")
    if not found:
        print("hashes as stated; every condition equals conf/ field by field")
    return not found


def told(registration: Registration, folders: list[Path]) -> list[str]:
    """What counts, what does not and why, and the verdicts of every scale and analysis."""
    records = {f"{f.name}/{n}": r for f in folders for n, r in read_records(f).items()}
    ledger = verdicts.admit(registration, records)
    out = len(ledger.excluded)
    lines = [f"{len(records)} records: {len(records) - out} count, {out} are excluded"]
    for scale in registration.scales:
        for analysis in registration.block["analyses"]:
            if verdicts.begun(registration, ledger, scale, analysis):
                lines += ["", *analysed(registration, ledger, scale, analysis)]
            else:
                name = f"{scale} scale, {analysis} analysis"
                lines += ["", f"{name}: no runs of its own, no verdicts"]
    return [*lines, *grouped(ledger.excluded)]


def grouped(excluded: dict[str, str]) -> list[str]:
    """Why records do not count, once for each arm and reason; a name is ARM-seedN."""
    seeds: dict[tuple[str, str], list[str]] = {}
    for name, reason in excluded.items():
        arm, _, seed = name.partition("-seed")
        seeds.setdefault((arm, reason), []).append(seed)
    lines = []
    for (arm, reason), found in seeds.items():
        of = f" (seed {', '.join(found)})" if all(found) else ""
        lines.append(f"  {arm}{of} {reason}")
    return ["", "excluded:", *lines] if lines else []


def analysed(
    registration: Registration, ledger: verdicts.Ledger, scale: str, analysis: str
) -> list[str]:
    lines = [f"{scale} scale, {analysis} analysis"]
    for condition in registration.block["conditions"]:
        runs = list(ledger.runs.get(Cell(scale, analysis, condition), {}).values())
        lines.append(f"  {condition:<3} n={len(runs)}  " + "  ".join(verdicts.summary(runs)))
    for part in registration.block["described"]:
        try:
            found = verdicts.compare(registration, ledger, scale, analysis, part)
            lines.append(f"  {verdicts.describe(part)}: {line(found)}")
        except verdicts.Refusal as refusal:
            lines.append(f"  {verdicts.describe(part)}: {refusal}")
    lines.append(f"  {verdicts.rule(registration)}")
    for verdict in verdicts.judge(registration, ledger, scale, analysis):
        answer = verdict.verdict or f"no verdict ({verdict.refused})"
        p = (
            ""
            if verdict.p is None
            else f" (Holm: p {verdict.p:.3g}, against {verdict.against:.3g})"
        )
        lines.append(f"  {verdict.name} {answer}{p}: {verdict.claim}")
        lines += [f"      {words}: {line(part)}" for words, part in verdict.parts]
    return lines


def page(registration: Registration, lines: list[str]) -> str:
    head = f"""# Verdicts

On the hypotheses of PREREGISTRATION.md (sha256 `{registration.hash}`), computed by
`scripts/check_preregistration.py` from the run records alone; `make report` writes this page anew.

```text
"""
    return head + "\n".join(row.rstrip() for row in lines) + "\n```\n"


def line(found: Comparison) -> str:
    """Effect, intervals, size, p and n of a comparison."""
    words = [f"{found.effect:.4g}"]
    if found.low is not None and found.high is not None:
        words[0] += f" [{found.low:.4g}, {found.high:.4g}]"
    if found.bca is not None:
        words.append(f"BCa [{found.bca[0]:.4g}, {found.bca[1]:.4g}]")
    values = {"g": found.size, "p": found.p, "sign flip": found.exact}
    words += [f"{name} {value:.3g}" for name, value in values.items() if value is not None]
    return ", ".join([*words, f"n = {found.n}"])


def show_commands(registration: Registration) -> None:
    seeds = "seed=" + ",".join(map(str, registration.block["seeds"]))
    for cell in registration.cells():
        words = shlex.join([*preregistration.command(registration, cell), seeds])
        print(f"# {' '.join(cell)}\npython -m phasegpt.train -m {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", type=Path, help="folders that hold runs/*.json")
    parser.add_argument("--commands", action="store_true", help="print the training commands")
    parser.add_argument("--out", type=Path, help="write the verdicts as a Markdown page")
    parser.add_argument("--page", type=Path, default=preregistration.DOCUMENT)
    args = parser.parse_args()
    for folder in args.studies:
        if not (folder / "runs").is_dir():
            parser.error(f"{folder} holds no runs/*.json")
    if args.out:
        check_output(args.out, "--out")
    registration = preregistration.read(args.page)
    if args.commands:
        show_commands(registration)
        return
    agrees = check(registration)
    n = len(registration.block["seeds"])
    least = statistics.detectable(n, alpha=registration.block["alpha"])
    print(f"power: {n} pairs find d_z = {least:.2f} with 80%, one-sided, before correction")
    if args.studies:
        lines = told(registration, args.studies)
        print("\n" + "\n".join(lines))
        if args.out:
            write_output(args.out, page(registration, lines).encode())
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    guarded(main)
