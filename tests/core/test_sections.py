"""The texts of errors about names."""

from phasegpt.core.sections import unknown


def test_a_long_list_of_allowed_names_is_cut():
    text = unknown("tasks=zzz", [f"tasks=number{i:05}" for i in range(13_000)])
    assert len(text) < 3000 and text.endswith("tasks=number00099 and 12,900 more")
    assert unknown("color=zzz", ["red", "blue"]) == "color=zzz is unknown; choose from: blue, red"
