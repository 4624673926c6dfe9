"""Compare the attention of two runs on the same text: a baseline, and one with oscillators.

python scripts/compare_attention.py RUN_SOFTMAX RUN_KURAMOTO --into results/phase_a

Writes attention.json, from which attention.png and the page of the study are made again.
"""

import argparse
from pathlib import Path

from phasegpt.analysis.study_view import write_study
from phasegpt.cli import device, guarded
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_output, write_json
from phasegpt.interpret import InterpretConfig, token_windows
from phasegpt.interpretation.comparison import compare_attention
from phasegpt.model.checkpoint import run_folder
from phasegpt.model.loading import load_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("phase", type=Path)
    parser.add_argument("--into", type=Path, required=True, help="the study's folder")
    parser.add_argument("--split", default="val")
    parser.add_argument("--tokens", type=int, default=2048, help="of the split, spread evenly")
    args = parser.parse_args()
    check_output(args.into / "attention.json", "--into")
    loaded = {"baseline": load_run(args.baseline), "phase": load_run(args.phase)}
    settings = InterpretConfig(split=args.split, tokens=args.tokens)
    (ids_BT, source), (other_BT, _) = (token_windows(settings, one) for one in loaded.values())
    if ids_BT.shape != other_BT.shape or not bool((ids_BT == other_BT).all()):
        raise ConfigError("the two runs do not have the same text, tokens and context")
    chosen = device("auto")
    models = (one.model.to(chosen) for one in loaded.values())
    names = {
        which: {"name": run_folder(one.path).resolve().name, "sha256": one.sha256}
        for which, one in loaded.items()
    }
    found = {**names, "source": source, **compare_attention(*models, ids_BT)}
    write_json(args.into / "attention.json", found)
    for row in found["layers"]:
        told = f"layer {row['layer']:>2}{' *' * row['phase']:<3}"
        for name in found["units"]:
            values = [row[name][k]["mean"] for k in ("baseline", "phase")]
            told += "  {} {:.3f} and {:.3f}".format(name, *values)
        print(told)
    if (args.into / "runs").is_dir():
        write_study(args.into)
    print(f"* with oscillators; written to {args.into / 'attention.json'}")


if __name__ == "__main__":
    guarded(main)
