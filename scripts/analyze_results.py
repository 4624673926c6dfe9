"""Show the runs under a folder, or regenerate the table and picture of committed studies.

python scripts/analyze_results.py runs/phase_a-small      a sweep: done, running, failed, missing
python scripts/analyze_results.py runs/first_light                      status of every run
python scripts/analyze_results.py runs/first_light --into results/first_light    copy records
python scripts/analyze_results.py results                   the tables and pictures, anew
"""

import argparse
from pathlib import Path

from phasegpt.analysis import collect, draw, draw_phases, summarise, write_table
from phasegpt.analysis.jobs import counted, jobs


def show_runs(folder: Path) -> None:
    """The jobs of every sweep in the folder, or else every folder of runs."""
    sweeps = sorted({path.parent for path in folder.rglob("sweep.json")})
    for sweep in sweeps or sorted({path.parent.parent for path in folder.rglob("run.json")}):
        if "wandb" in sweep.parts:  # a copy
            continue
        found = jobs(sweep)
        for job in found:
            ppl = "-" if job.best is None else f"{job.best:.3f}"
            line = f"{job.name}  {job.status}  step {job.step}  best val/ppl {ppl}"
            print(f"{line}  {job.error or ''}".rstrip())
        print(f"{sweep}: {counted(found)}")


def show_study(study: Path, baseline: str) -> None:
    print(f"{study.name}: best validation perplexity, mean over seeds")
    for row in summarise(study, baseline):
        spread = "" if row["sd"] is None else (
            f" sd {row['sd']:.3f}, 95% interval [{row['low']:.3f}, {row['high']:.3f}]"
        )  # fmt: skip
        if row["difference_low"] is not None:
            spread += f"; minus {baseline} {row['difference']:+.3f}"
            spread += f" [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
        order = "" if row["R"] is None else f", R {row['R']:.3f}"
        print(f"  {row['arm']:<16} {row['mean']:.3f} (n={row['n']}{spread}){order}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, help="copy the records of finished runs to this study")
    parser.add_argument("--against", default="softmax", help="the arm that differences are from")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    if args.into:
        print(f"{len(collect(args.folder, args.into))} records in {args.into / 'runs'}")
    studies = sorted({p.parent.parent for p in args.folder.rglob("runs/*.json")})
    for study in [args.into] if args.into else studies:
        write_table(study)
        draw(study)
        draw_phases(study)
        show_study(study, args.against)
    if not studies and not args.into:
        show_runs(args.folder)


if __name__ == "__main__":
    main()
