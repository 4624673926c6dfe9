"""Save the W&B dashboard of a project: R by layer and head, perplexity, throughput, sweeps.

    python scripts/wandb_workspace.py --entity ME [--project phasegpt]
    python scripts/wandb_workspace.py --dry-run            # its specification as JSON, no account

Needs `pip install 'phasegpt[dashboard]'`.
"""

import argparse
import sys

from phasegpt.cli import guarded
from phasegpt.training.wandb_dashboard import specification, workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entity", help="your W&B user or team name")
    parser.add_argument("--project", default="phasegpt")
    parser.add_argument("--name", default="PhaseGPT", help="of the saved view")
    parser.add_argument("--dry-run", action="store_true", help="print the JSON and send nothing")
    args = parser.parse_args()
    if not args.entity and not args.dry_run:
        parser.error("--entity is missing; give your W&B user or team name, or --dry-run")
    view = workspace(args.entity or "entity", args.project, args.name)
    if args.dry_run:
        sys.stdout.write(specification(view))
        return
    view.save()
    print(view.url)


if __name__ == "__main__":
    guarded(main)
