"""What a run of a generated task scores when its synchronization is changed at test time.

    python scripts/intervene_on_task.py RUN --out FILE.json

K times 1 and the run's own S are controls: they change nothing. Examples are those of the test
split. Nothing is trained.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from phasegpt.cli import guarded
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import write_json
from phasegpt.data.config import DataSection, TaskConfig, task_class
from phasegpt.interpretation.interventions import task_interventions
from phasegpt.model.loading import load_run


def main() -> None:
    """Score one run under every intervention and write the scores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder of a generated task")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    loaded = load_run(args.run)
    data = loaded.config and DataSection.parse(loaded.config["data"])
    if not isinstance(data, TaskConfig):
        raise ConfigError(
            f"{args.run} is no run of a generated task; of a run of a text python -m "
            f"phasegpt.interpret shows what interventions do"
        )
    task = task_class(data.corpus)(data)
    found = {"effects": [asdict(e) for e in task_interventions(loaded.model, task)]}
    write_json(args.out, found)
    print(args.out)


if __name__ == "__main__":
    guarded(main)
