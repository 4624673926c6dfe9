"""What a task's page says that a shortcut scores is counted anew, on the study's own rows."""

import numpy as np
import pytest
from boards import of, records
from helpers import composed

from phasegpt.analysis.leaderboard.first_page import CAVEATS
from phasegpt.analysis.leaderboard.task_page import task_page
from phasegpt.data.config import task_class


def test_the_page_of_a_task_says_what_a_shortcut_scores():
    """Counted anew: at every repeat the token that was there most often, but for the one before."""
    task = task_class("induction")(composed("data=induction_small").data)
    rows = task.scored("val", np.arange(256), task.config.loads[0])
    right = []
    for idx_T, targets_T in zip(*rows, strict=True):
        for place in np.flatnonzero(targets_T >= 0):
            counts = np.bincount(idx_T[: place + 1], minlength=64)
            counts[idx_T[place]] = 0
            best = np.flatnonzero(counts == counts.max())
            right.append((targets_T[place] in best) / len(best))
    said = f"**Only scores above {np.mean(right):.3f} show induction.**"
    assert said in task_page(of(records("induction", {"softmax": [0.7]})), "induction")
    assert "show" not in task_page(of(records("state_s2", {"softmax": [0.7]})), "state_s2")


def test_what_knows_places_alone_has_of_selective_copy_stands_on_its_page():
    """The token of the highest sum of P(place of the j-th token), over the row's tokens."""
    task = task_class("selective_copy")(composed("data=selective_copy_small").data)
    seen, judged = task.train(0, np.arange(2000)), task.scored("val", np.arange(256), 16)
    is_token = seen.idx < task.config.vocab_size - 2  # no blank, no mark
    P_JT = np.zeros((16, seen.idx.shape[1]))
    for token_T in is_token:
        P_JT[np.arange(16), np.flatnonzero(token_T)] += 1
    right = []
    for idx_T, targets_T in zip(*judged, strict=True):
        votes = np.zeros((16, task.config.vocab_size))
        for place in np.flatnonzero(idx_T < task.config.vocab_size - 2):
            votes[:, idx_T[place]] += P_JT[:, place]
        right.append(votes.argmax(axis=1) == targets_T[targets_T >= 0])
    page = task_page(of(records("selective_copy", {"softmax": [0.7]})), "selective_copy")
    assert np.mean(right) == pytest.approx(0.70, abs=0.01) and "above 0.70 show selection" in page


def test_what_looks_letters_up_has_of_copying_stands_on_its_page():
    """The next letter is what followed in the string where the last `known` letters stood first."""
    config, right = composed("data=copying_small").data, {1: [], 2: []}
    task = task_class("copying")(config)
    for load in (n for n in config.loads if n > config.trained):
        for idx_T, targets_T in zip(*task.scored("val", np.arange(64), load), strict=True):
            places = np.flatnonzero(targets_T >= 0)
            string = idx_T[places[0] - load : places[0]].tolist()
            for known in right:
                after = {}
                for i in range(known, load):
                    after.setdefault(tuple(string[i - known : i]), string[i])
                said = [after.get(tuple(idx_T[at + 1 - known : at + 1])) for at in places]
                right[known].append(np.mean(said == targets_T[places]))
    for known, share in ((1, 0.31), (2, 0.93)):
        assert np.mean(right[known]) == pytest.approx(share, abs=0.02)
        assert f"{share:.2f}" in CAVEATS["copying"]
