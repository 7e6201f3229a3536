"""The benchmarks are fair and do not break: turns, ratios, limits, and peers that are not there."""

import json
from dataclasses import replace

import pytest

from benchmarks import limits, report, run
from benchmarks.rows import ROWS, chosen
from benchmarks.sizes import Places
from tests.comparing import close

ROW = replace(ROWS["train-toy"], work=100.0, goal=1.2, share=0.5)


class Clock:
    """A side whose times are given, and which writes down when its turn was."""

    def __init__(self, name, seconds, turns):
        self.name, self.seconds, self.turns = name, iter(seconds), turns

    def measure(self):
        self.turns.append(self.name)
        return next(self.seconds)


def result(row=ROW, **times):
    return {"row": row.name, "text": row.text, "unit": row.unit, "missing": {}, "rounds": 3, "goal": row.goal,
            "share_goal": row.share, "machine": run.machine(1), **run.compared(row, times)}  # fmt: skip


def test_sides_take_turns_and_each_round_begins_with_another():
    turns = []
    sides = {name: Clock(name, [number + 0.0, number + 0.5, number + 0.25], turns) for number, name in enumerate("abc")}
    times = run.take_turns(sides, rounds=3, rest=0)
    assert "".join(turns) == "abcbcacab"
    assert times == {"a": [0, 0.5, 0.25], "b": [1, 1.5, 1.25], "c": [2, 2.5, 2.25]}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios_and_above_1_where_ours_is_faster():
    found = run.compared(ROW, {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 3.0, 4.0], "slow": [9.0, 9.0, 9.0]})
    assert found["ratios"]["theirs"] == {"median": 1.5, "low": 1.0, "high": 3.0}
    assert found["figures"] == {"ours": 50.0, "theirs": 100 / 3, "slow": 100 / 9}  # tokens/s: work / median
    assert found["against"] == "theirs"


def test_the_share_of_the_limit_is_its_time_over_ours():
    found = run.compared(ROW, {"ours": [2.0, 2.0, 4.0], "limit": [1.0, 1.5, 1.0]})
    close(found["share"], 0.5, 0)
    assert "limit" not in found["figures"]


def test_less_memory_is_better_and_the_best_peer_is_the_smallest():
    row = ROWS["memory-124M"]
    found = run.compared(replace(row, against=None), {"ours": [6e6], "theirs": [10e6], "other": [8e6]})
    assert found["figures"] == {"ours": 6.0, "theirs": 10.0, "other": 8.0}
    assert found["against"] == "other"
    close(found["ratios"]["theirs"]["median"], 0.6, 1e-15)


@pytest.mark.parametrize(("ours", "limit", "answer"), [(1.0, 0.6, "yes"), (2.0, 1.2, "**no**"), (1.0, 0.4, "**no**")])
def test_a_row_is_met_if_both_ratio_and_share_are(ours, limit, answer):
    found = result(ours=[ours] * 3, theirs=[1.5] * 3, limit=[limit] * 3)
    assert report.asked(found) == f"≥ 1.2, 50% of the limit: {answer}"


def test_results_become_a_table_in_the_note_and_what_falls_short_is_explained(tmp_path):
    stored = {
        "train-toy": result(ours=[1.0] * 3, theirs=[1.0, 1.1, 0.9], limit=[0.5] * 3) | {"profile": {"aten::mm": 0.5}},
        "gpu-train": {"text": "on a GPU", "missing": {"ours": "no GPU here"}, "machine": run.machine(1)},
    }
    note = tmp_path / "note.md"
    note.write_text(f"before {report.MARKS[0]} old {report.MARKS[1]} after")
    report.store(report.text(json.loads(json.dumps(stored)), {"read, GB/s": 34.56}), note)
    written = note.read_text()
    assert written.startswith(f"before {report.MARKS[0]}\n")
    assert written.endswith(f"{report.MARKS[1]} after")
    assert "old" not in written
    assert "| 100 tokens/s | theirs 100 | 1.00 (0.90–1.10) | 50% | ≥ 1.2, 50% of the limit: **no** |" in written
    assert "`aten::mm` 50%" in written
    assert "| on a GPU | not run: no GPU here |" in written
    assert "| read, GB/s | 34.6 |" in written
    assert report.plot(stored).axes


def test_a_note_without_the_marks_is_refused(tmp_path):
    (tmp_path / "note.md").write_text("nothing")
    with pytest.raises(ValueError, match=r"note\.md must hold"):
        report.store("text", tmp_path / "note.md")


def test_a_peer_that_is_not_there_is_named_and_the_row_goes_on(tmp_path):
    row = replace(run.smoke(ROWS["train-toy"]), sides=("ours", "nanoGPT"))
    found = run.measure(row, 1, Places(str(tmp_path), nanogpt=str(tmp_path / "nowhere")))
    assert found["missing"].keys() == {"nanoGPT"}
    assert "nowhere" in found["missing"]["nanoGPT"]
    assert found["figures"]["ours"] > 0
    assert "no part: nanoGPT is not there" in run.said(found)
    assert sum(found["profile"].values()) <= 1


def test_rows_are_chosen_by_name_or_group():
    assert [row.name for row in chosen(["load", "text"])] == ["load", "bpe-train", "bpe-encode", "prepare"]
    assert all(row.group != "gpu" for row in chosen([]))
    with pytest.raises(ValueError, match="got 'lod'"):
        chosen(["lod"])


def test_limits_are_positive_and_count_what_they_should(gpt):
    config = gpt.GPTConfig(16, 32, 2, 2, 8)
    assert limits.read_bandwidth(megabytes=1) > 0
    assert limits.step_seconds(config, 2, 16, limits.torch.float32) > 0
    assert limits.step_seconds(config, 2, 16, limits.torch.bfloat16, training=False) > 0
    positions = 16 * 8
    assert limits.bytes_per_token(config, "int8") == gpt.GPT(config).num_parameters() - positions
    assert limits.bytes_per_token(config) == 4 * limits.bytes_per_token(config, "int8")
