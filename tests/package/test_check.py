"""Does `python -m gpt check` name a learner's mistake, and never accuse who is right?"""

from __future__ import annotations

import itertools
import json
import re
import sys

import pytest

from docs.tools.guides import ROOT
from gpt.commands import check as commands_check
from gpt.lessons import diagnosis
from gpt.lessons.bugs import planted
from gpt.lessons.learner import Implementation, learners_module
from gpt.lessons.probes import PROBES, READABLE
from gpt.lessons.steps import STEPS

GUIDE = (ROOT / "HOW_TO_CODE_GUIDE.md").read_text()
SOLUTION = "\n\n".join(re.findall(r"```python\n(# my_gpt\.py.*?)```", GUIDE, re.DOTALL))

# step: {what the guide's solution says, and what a learner wrote instead: the bug that it is}
MISTAKES = {
    "attention": {
        (" / math.sqrt(query.shape[-1])", ""): "no scale",
        ("math.sqrt(query.shape[-1])", "query.shape[-1]"): "a scale of 1/d",
        ("math.sqrt(query.shape[-1])", "math.sqrt(key.shape[-2])"): "a scale by the number of keys",
        ("-math.inf", "-1e4"): "a finite mask, which large scores get around",
        ("masked_fill(~mask", "masked_fill(mask"): "a mask turned around",
        ("scores.softmax(dim=-1)", "scores.softmax(dim=-2)"): "a softmax over the queries",
        (
            "query @ key.transpose(-2, -1)",
            "(key @ query.transpose(-2, -1))",
        ): "queries and keys exchanged in the scores",
        (
            "        scores = scores.masked_fill(~mask, -math.inf)\n    weights = scores.softmax(dim=-1)",
            "        pass\n    weights = scores.softmax(dim=-1) * (1 if mask is None else mask)",
        ): "a mask applied after the softmax",
    },
    "mask": {
        (".tril(keys - queries)", ".tril(keys - queries + 1)"): "a mask that is off by one",
        (".tril(keys - queries)", ".tril(keys - queries - 1)"): "a mask that hides the token itself",
        (".tril(keys - queries)", ".tril()"): "a mask that does not know the past of a cache",
        (".tril(keys - queries)", ".triu(keys - queries)"): "a mask of the future in place of the past",
    },
    "heads": {
        (
            "heads.permute(2, 0, 3, 1, 4)",
            "(part.reshape(B, self.num_heads, T, -1) for part in self.qkv(x).chunk(3, dim=-1))",
        ): "heads cut from positions and not from features",
        (
            "view(B, T, 3, self.num_heads, d_model // self.num_heads)",
            "view(B, T, self.num_heads, 3, -1).transpose(2, 3)",
        ): "q, k and v interleaved head by head",
        ("q, k, v = heads", "k, q, v = heads"): "the order k, q, v in the fused layer",
        ("self.projection(output.transpose(1, 2)", "(output.transpose(1, 2)"): "no projection behind the heads",
        ("output.transpose(1, 2).reshape", "output.reshape"): "heads laid side by side without swapping axes back",
        (", causal_mask(T, k.shape[2]))", ")"): "a layer without a mask",
    },
    "norm": {
        (
            "centred.square().mean(dim=-1, keepdim=True)",
            "x.var(dim=-1, keepdim=True)",
        ): "unbiased variance in LayerNorm",
        ("torch.sqrt(variance + self.eps)", "(torch.sqrt(variance) + self.eps)"): "eps outside the root in LayerNorm",
        ("torch.sqrt(variance + self.eps)", "(variance + self.eps)"): (
            "a LayerNorm with the variance in place of the deviation"
        ),
        ("self.weight * centred", "self.weight * x"): "a LayerNorm that does not centre",
        ("self.weight * centred", "centred"): "a LayerNorm that forgets its gain",
        ("y if self.bias is None else y + self.bias", "y"): "a LayerNorm that forgets its shift",
        (
            "        y = self.weight * centred / torch.sqrt(variance + self.eps)",
            "        y = self.weight * centred / (x.std(dim=-1, keepdim=True) + self.eps)",
        ): "unbiased variance in LayerNorm and eps outside the root in LayerNorm",
    },
    "feed-forward": {
        ("x**3", "x**2"): "a GELU whose cube is a square",
        ("0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))", "F.gelu(x)"): (
            "erf GELU for weights that were trained with tanh"
        ),
        ("0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))", "x.relu()"): (
            "a GELU that is a ReLU"
        ),
        ("self.project(self.activation(self.expand(x)))", "self.project(self.expand(x))"): (
            "a feed-forward network without its bend"
        ),
    },
    "block": {
        ("x = x + self.attention(", "x = self.attention("): "no residual path around the attention",
        ("return x + self.feed_forward(", "return self.feed_forward("): (
            "no residual path around the feed-forward network"
        ),
        ("self.feed_forward(self.feed_forward_norm(x))", "self.feed_forward(self.attention_norm(x))"): (
            "one norm for both parts of a block"
        ),
        (
            "self.attention(self.attention_norm(x), cache)",
            "self.attention(x, cache)",
        ): "no norm in front of the attention",
    },
    "model": {
        ("return self.final_norm(x)", "return x"): "no norm before the head",
        (
            "self.position_embedding(self.token_embedding(tokens), start)",
            "self.token_embedding(tokens)",
        ): "no positions",
        (", start)\n        for i", ", start + 1)\n        for i"): "positions that begin at 1",
    },
    "loss": {
        ("targets.flatten())", 'targets.flatten(), reduction="sum")'): "a loss that is a sum",
        ("logits.flatten(0, 1), targets.flatten()", "logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()"): (
            "targets shifted a second time"
        ),
        ("targets.flatten()", "tokens.flatten()"): "targets that are the inputs",
        ("@ self.token_embedding.weight.T", "@ self.token_embedding.weight.detach().T"): (
            "a head that is a copy of the table"
        ),
    },
    "sampling": {
        ("before >= top_p", "before + ranked > top_p"): "top-p without the token that crosses the line",
        ("ranked[..., top_k:]", "ranked[..., top_k + 1 :]"): "top-k that keeps one more",
        ("/ temperature).softmax", "* temperature).softmax"): "a temperature that multiplies",
    },
    "schedule": {
        ("peak * (step + 1) / (warmup + 1)", "peak * step / warmup"): "a warm-up that begins at 0",
        ("(step - warmup) / max(1, total - warmup)", "step / total"): "a cosine that forgets the warm-up",
        ("floor + (peak - floor) * 0.5", "peak * 0.5"): "a rate that forgets its floor",
    },
    "optimizer": {
        ('"weight_decay": 0.0', '"weight_decay": weight_decay'): "weight decay on biases and gains",
    },
}


@pytest.fixture
def learner(tmp_path):
    """An implementation from the text of a file."""
    count = itertools.count()

    def of(text):
        path = tmp_path / f"file{next(count)}.py"
        path.write_text(text)
        return Implementation(learners_module(path))

    yield of
    for name in [name for name in sys.modules if name.startswith("learners_file")]:
        del sys.modules[name]


def planted_in_the_solution(old, new):
    assert SOLUTION.count(old) == 1, (old, SOLUTION.count(old))
    return SOLUTION.replace(old, new)


@pytest.mark.parametrize(
    ("step", "change", "bug"),
    [(step, change, bug) for step, changes in MISTAKES.items() for change, bug in changes.items()],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named(learner, step, change, bug):
    found = diagnosis.diagnose(step, learner(planted_in_the_solution(*change)))
    assert found is not None
    assert bug in [" and ".join(one.name for one in bugs) for bugs in found.causes]


@pytest.mark.parametrize("key", PROBES)
def test_the_solution_is_never_accused(learner, key):
    assert diagnosis.diagnose(key, learner(SOLUTION)) is None


HOME = {  # where the bugs are that a step is about; others are found in an earlier step
    "positions": "gpt.positions",
    "attention": "gpt.attention._attention",
    "mask": "gpt.attention.causal_mask",
    "heads": "gpt.attention.CausalSelfAttention",
    "norm": "gpt.block.layer_norm",
    "feed-forward": "gpt.block.",
    "block": "gpt.block.Block",
    "model": "gpt.model.GPT._hidden",
    "loss": "gpt.model.GPT.forward",
    "sampling": "gpt.generation",
    "schedule": "gpt.training.cosine_schedule",
    "optimizer": "gpt.training.adamw",
}


@pytest.mark.parametrize("key", PROBES)
def test_a_step_tells_its_own_bugs_apart(key):
    """Else its diagnosis would say "A, or B"."""
    for probe in PROBES[key]:
        felt = {}
        with planted(*READABLE):
            right = [diagnosis._answers(probe, diagnosis.package, case) for case in probe.cases]
            for bug in diagnosis.BUGS:
                answers = diagnosis._with_bugs(probe, bug) if bug.place.startswith(HOME[key]) else None
                if answers is not None and not diagnosis._same(answers, right):
                    felt[bug.name] = answers
        alike = [(a, b) for a, b in itertools.combinations(felt, 2) if diagnosis._same(felt[a], felt[b])]
        assert alike == []
        assert felt or key == "positions"


def test_every_probe_belongs_to_a_step():
    assert set(PROBES) <= {step.key for step in STEPS}


def test_every_bug_and_step_names_a_section_of_the_guide():
    sections = set(re.findall(r"^### (\d+\.\d+) ", (ROOT / "DEEP_THEORY_GUIDE.md").read_text(), re.MULTILINE))
    assert {bug.guide for bug in diagnosis.BUGS} | {step.guide for step in STEPS} <= sections


# The command.


@pytest.fixture
def checking(command, capsys):
    """As `command`, for one that ends by SystemExit."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            command("check", *arguments)
        return end.value.code, capsys.readouterr().out

    return run


@pytest.fixture
def file_with(tmp_path):
    """my_gpt.py: the solution up to this step of the guide, with a change."""

    def write(last, old="", new=""):
        blocks = re.split(r"(?=# my_gpt\.py, step)", SOLUTION)[1:]
        text = "".join(block for block in blocks if int(re.search(r"step (\d+)", block)[1]) <= last)
        assert text.count(old) == 1 or not old
        path = tmp_path / "my_gpt.py"
        path.write_text(text.replace(old, new) if old else text)
        return path

    yield write
    sys.modules.pop("learners_my_gpt", None)


def test_a_green_step_is_said_and_kept(command, file_with):
    path = file_with(5)
    code, out, _ = command("check", path, "--step", 4)
    assert (code, "the attention equation" in out, "green, 8 tests" in out) == (0, True, True)
    assert "checked from my_gpt.py: scaled_dot_product_attention" in out
    assert json.loads(path.with_suffix(".progress.json").read_text())["green"] == ["attention"]


def test_a_red_step_shows_the_numbers_the_cause_and_the_section(checking, file_with):
    path = file_with(5, " / math.sqrt(query.shape[-1])", "")
    code, out = checking(path, "--step", "attention")
    assert code == 1
    for said in ("Step 4, the attention equation, is red", "T=2, d=2", "your weights", "0.16294    0.83706",
                 "exactly what one gets with no scale.", "right: query / math.sqrt(query.shape[-1])",
                 "DEEP_THEORY_GUIDE.md, 3.4"):  # fmt: skip
        assert said in out
    assert not path.with_suffix(".progress.json").exists()


def test_a_grader_gets_every_step(checking, file_with):
    path = file_with(6, ".tril(keys - queries)", ".tril(keys - queries + 1)")
    code, out = checking(path, "--step", 6, "--json")
    found = json.loads(out)
    assert (code, found["green"]) == (1, False)
    assert [(s["step"], s["status"]) for s in found["steps"]] == [(4, "passed"), (5, "failed"), (6, "waiting")]
    assert found["steps"][1]["cause"] == [["a mask that is off by one"]]
    assert found["steps"][2]["waits_for"] == ["the causal mask"]


def test_two_hints_and_then_the_package(command, file_with):
    path = file_with(1)
    said = [command("check", path, "--step", 5, "--hint")[1] for _ in range(3)]
    assert "hint 1 of 2" in said[0]
    assert "hint 2 of 2" in said[1]
    assert "gpt/attention.py: causal_mask" in said[2]


@pytest.mark.parametrize(
    ("text", "arguments", "named"),
    [
        ("1 / 0", (), "my_gpt.py, line 1: ZeroDivisionError"),
        ("x = (", (), "my_gpt.py, line 1: SyntaxError"),
        ("", ("--step", 99), "--step must be 1..21, got 99"),
        ("", ("--step", "atention"), "step must be one of characters"),
    ],
)
def test_a_file_that_cannot_be_checked_is_one_line(command, file_with, text, arguments, named):
    path = file_with(0)
    path.write_text(text)
    code, _, error = command("check", path, *arguments)
    assert (code, named in error, error.count("\n")) == (2, True, 1)


def test_watching_ends_with_q_and_shows_the_list(command, file_with, monkeypatch):
    pressed = iter(["l", "h", "q"])
    monkeypatch.setattr(commands_check, "saved_or_pressed", lambda file: next(pressed))
    code, out, _ = command("check", file_with(5), "--step", 5, "--watch")
    assert code == 0
    assert out.count("the causal mask") == 3  # checked, listed, hinted
    assert "hint 1 of 2" in out
    assert re.search(r"the causal mask +green\n", out)


def test_what_is_only_imported_is_not_written(learner):
    own = learner(
        "from torch.nn import LayerNorm, GELU\n\ndef causal_mask(queries, keys):\n    raise NotImplementedError\n"
    )
    assert own.written == {}
