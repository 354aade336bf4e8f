"""Parameters as people type them: every stage's, against the command line itself."""

from typing import Any

import pytest
from command_line import call

from satstore.cli.app import app
from satstore.errors import ConfigError
from satstore.registry import STAGES
from satstore.stages.forms import check_texts, describe_entries, flag_words, stage_model
from satstore.stages.pipeline import make_tasks

EXAMPLES: dict[str, str] = {
    "device": "cpu",
    "latents": "no",
    "pooling": "2, full pixelwise",
    "tokens": "cls, 5 grid",
    "latents_dir": "/tmp/some where",
    "memory_limit": "3GiB",
    "epoch": "1 4",
    "layers": r"features\.\d",
    "exclude": "fc",
    "splits": "eval",
    "mantissa_bits": "5",
    "delta": ".9,.999",
    "definition": "delve",
    "workers": "2",
    "scheduler": "tcp://host:8786",
    "C": "0.5",
    "tol": "1e-5",
    "max_iter": "20",
    "target": "animal",
    "labels": "/tmp/some where/a.csv:animal",
    "eval_labels": "b.npy",
    "prefix": "weak",
    "mode": "random",
    "seed": "7",
}


def parse(stage: str, words: list[str]) -> Any:
    _, bound, *_ = app.parse_args([stage, "--run", "r", *words], exit_on_error=False, print_error=False)
    return bound.arguments.get("parameters") or stage_model(stage)()


@pytest.mark.parametrize("stage", [*STAGES, "run"])
def test_flags__give_the_command_what_the_form_says(stage: str) -> None:
    model = stage_model(stage)
    entries = describe_entries(model)
    assert all(entry.description for entry in entries)
    texts = {e.name: True if e.is_switch else EXAMPLES[e.name] for e in entries}
    values, errors = check_texts(model, texts)
    assert not errors
    assert dict(parse(stage, flag_words(model, values))) == dict(model.model_validate(values))
    for entry in entries:  # and each alone
        other = False if entry.is_switch and model.model_fields[entry.name].default else texts[entry.name]
        values, errors = check_texts(model, {entry.name: other})
        assert not errors
        assert dict(parse(stage, flag_words(model, values))) == dict(model.model_validate(values)), entry


@pytest.mark.parametrize("stage", [*STAGES, "run"])
def test_flags__are_none_where_all_is_left_at_its_default(stage: str) -> None:
    model = stage_model(stage)
    texts = {
        e.name: model.model_fields[e.name].default if e.is_switch else e.default
        for e in describe_entries(model)
    }
    assert check_texts(model, texts) == ({}, {})
    assert check_texts(model, {}) == ({}, {})


@pytest.mark.parametrize(
    ("stage", "name", "text", "said"),
    [
        ("probe", "workers", "many", "--workers: input should be a valid integer"),
        ("probe", "pooling", "4, 0x2", "expected a number from 1 to 9999, full, or pixelwise, found '0x2'"),
        (
            "extract",
            "tokens",
            "cls, first",
            "expected cls, mean, last, all, grid, or a number from 0 to 99999",
        ),
        ("extract", "mantissa_bits", "99", "--mantissa-bits: input should be less than or equal to 10"),
        ("extract", "splits", "train,test", "--splits: input should be 'train' or 'eval', found 'test'"),
        ("extract", "epoch", "1 0", "--epoch: expected a whole number, the first epoch is 1, found '0'"),
        ("probe", "C", "-1", "-C: input should be greater than 0"),
        ("run", "epoch", "first", "--epoch: expected a whole number, the first epoch is 1, found 'first'"),
        ("saturation", "delta", "2", "--delta: input should be less than or equal to 1"),
        ("train", "memory_limit", "much", "--memory-limit: "),
        ("train", "device", "gpu", "--device: expected cpu or cuda:N, found 'gpu'"),
    ],
)
def test_check_texts__says_what_the_command_says(stage: str, name: str, text: str, said: str) -> None:
    values, errors = check_texts(stage_model(stage), {name: text})
    assert list(errors) == [name]
    assert said in errors[name]
    code, _, err = call(stage, "--run", "any", *flag_words(stage_model(stage), values))
    assert (code, err) == (2, f"satstore: {errors[name]}\n")


def test_epoch__is_typed_from_1_and_counted_from_0_in_python() -> None:
    assert parse("extract", ["--epoch", "1", "--epoch", "6"]).epoch == (0, 5)
    values, errors = check_texts(stage_model("extract"), {"epoch": "1 6"})
    assert (values, errors) == ({"epoch": ("1", "6")}, {})
    assert flag_words(stage_model("extract"), values) == ["--epoch", "1", "--epoch", "6"]
    assert make_tasks(["extract"], {"epoch": [0, 5]})["extract"].epoch == (0, 5)


def test_splits__are_separated_by_commas() -> None:
    for words in (["--splits", "eval,train"], ["--splits", "eval", "--splits", "train"]):
        assert parse("extract", words).splits == ("eval", "train")


@pytest.mark.parametrize(("name", "text"), [("workers", "2"), ("scheduler", "tcp://host:8786")])
def test_probe__refuses_a_gpu_and_processes_together(name: str, text: str) -> None:
    texts: dict[str, str | bool] = {"device": "cuda:0", name: text}
    _, errors = check_texts(stage_model("probe"), texts)
    assert "processes can't share a GPU: leave out --device cuda:0, or -mp and --scheduler" in errors[name]
    with pytest.raises(Exception, match="processes can't share a GPU"):
        parse("probe", ["--device", "cuda:0", f"--{name}", text])
    assert check_texts(stage_model("probe"), {**texts, "device": "cpu"})[1] == {}
    with pytest.raises(ConfigError, match="processes can't share a GPU"):
        make_tasks(["extract", "probe"], {"device": "cuda:0", name: text})


def test_run__takes_the_device_for_training_and_processes_for_probes() -> None:
    values, errors = check_texts(stage_model("run"), {"device": "cuda:0", "workers": "2"})
    assert errors == {}
    plan = make_tasks(["train", "extract", "probe"], values)
    assert [plan[stage].device for stage in plan] == ["cuda:0", "cuda:0", None]
    assert plan["probe"].workers == 2
    alone = make_tasks(["train", "probe"], {"device": "cuda:0"})
    assert [alone[stage].device for stage in alone] == ["cuda:0", "cuda:0"]
