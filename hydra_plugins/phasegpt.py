"""PhaseGPT's sweeper; Hydra takes plugins of the namespace package hydra_plugins alone."""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class PlannedSweeper(BasicSweeper):
    """Starts the jobs that phasegpt.training.sweeps.Plan has planned, stage by stage.

    What fails is in its run.json and in the report: nothing is raised for it here.
    """

    def sweep(self, arguments: list[str]) -> None:
        """See BasicSweeper; the plan has composed every job."""
        from phasegpt.training.sweeps import Plan

        assert self.launcher is not None
        number = 0
        for words in Plan.batches(self.max_batch_size):
            self.launcher.launch(words, initial_job_idx=number)
            number += len(words)
