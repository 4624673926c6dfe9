"""Show the runs under folders, collect them into a study, or write the files of studies anew.

python scripts/analyze_results.py runs/phase_a-small      a sweep: done, running, failed, missing
python scripts/analyze_results.py runs/first_light                      status of every run
python scripts/analyze_results.py runs/first_light --into results/first_light    copy records
python scripts/analyze_results.py runs/phase_b-small --into results/phase_b --test
python scripts/analyze_results.py results          tables, figures and pages from the records
python scripts/analyze_results.py results/phase_b  the same of one study; also of a leaderboard
"""

import argparse
from pathlib import Path

from phasegpt.analysis.leaderboard.view import is_leaderboard
from phasegpt.analysis.studies import write
from phasegpt.analysis.study import TEST_FILE, best_test_score, collect
from phasegpt.analysis.tables import cells, summary
from phasegpt.cli import guarded
from phasegpt.core.errors import ConfigError, UserError
from phasegpt.core.files import check_output, write_json
from phasegpt.evaluate import EvaluateConfig, evaluate, not_in_the_way
from phasegpt.model.run_checkpoints import best
from phasegpt.training.jobs import counted, jobs
from phasegpt.training.run_folder import FINISHED, read_record


def studies_of(folder: Path) -> set[Path]:
    """The folder, if it is a study, or those in it; folders inside a study are its own matter."""
    if any(folder.glob("runs/*.json")):
        return {folder}
    return {path.parent.parent for path in folder.glob("*/runs/*.json")}


def show_runs(folder: Path) -> None:
    """The jobs of every sweep in the folder, or else every folder of runs."""
    sweeps = sorted({path.parent for path in folder.rglob("sweep.json")})
    sweeps = sweeps or sorted({path.parent.parent for path in folder.rglob("run.json")})
    sweeps = [sweep for sweep in sweeps if "wandb" not in sweep.parts]  # a copy
    if not sweeps:
        raise ConfigError(f"{folder} holds no runs; give a folder of run folders or of studies")
    for sweep in sweeps:
        found = jobs(sweep)
        for job in found:
            ppl = "-" if job.best is None else f"{job.best:.3f}"
            line = f"{job.name}  {job.status}  step {job.step}  best val/ppl {ppl}"
            line += "  smoke run" * job.smoke
            print(f"{line}  {job.error or ''}".rstrip())
        print(f"{sweep}: {counted(found)}")


def evaluate_tests(folder: Path) -> None:
    """Score the best checkpoint of every finished run on the test split, once."""
    for run in sorted(path.parent for path in folder.glob("*/run.json")):
        record = read_record(run)
        if record.get("status") not in FINISHED or best_test_score(run, record):
            continue
        if "test" not in record["data"]["splits"]:
            print(f"{run.name}: {record['data']['corpus']} has no test split; validation stands")
            continue
        try:
            if best(run / "checkpoints") is None:
                print(f"{run.name}: not scored: it has no best checkpoint")
                continue
            check_output(run / TEST_FILE)
            score = evaluate(EvaluateConfig(checkpoint=str(run), split="test"))
            write_json(not_in_the_way(run / TEST_FILE, score), score)
        except UserError as error:
            print(f"{run.name}: not scored: {error}")


def show_study(study: Path, against: str | None) -> None:
    found = summary(study, against)
    for leaky in (False, True):
        if kept := [row for row in found.rows if row["leaky"] is leaky]:
            table = cells(kept, found.against)
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            print(f"{study.name}{': LEAKY arms, apart' * leaky}")
            for row in table:
                line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
                print(f"  {line.rstrip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, help="copy the records of finished runs to this study")
    parser.add_argument("--test", action="store_true", help="with --into: score the test splits")
    parser.add_argument("--against", help="print differences from this arm; files keep their own")
    args = parser.parse_args()
    for folder in args.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
    if args.into is not None:
        check_output(args.into / "runs" / "x.json", "--into")
    studies = set() if args.into is None else {args.into}
    for folder in args.folders:
        if args.into is not None:
            if not any(folder.glob("*/run.json")) and not (folder / "sweep.json").is_file():
                raise ConfigError(f"{folder} holds no runs; give a folder of run folders")
            if args.test:
                evaluate_tests(folder)
            print(f"{len(collect(folder, args.into))} records of {folder} in {args.into / 'runs'}")
        elif found := studies_of(folder):
            studies |= found
        else:
            show_runs(folder)
    for study in sorted(studies):
        written = write(study)
        if is_leaderboard(study):
            print("\n".join(map(str, written)))
        else:
            show_study(study, args.against)


if __name__ == "__main__":
    guarded(main)
