"""Keys of latents and of tables of probes: text at the edges, values everywhere else."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from satstore.config.latent_keys import LatentsKey, ProbeKey
from satstore.runs.manifest import LatentsRecord, Manifest, ProbesRecord

LATENTS = {
    "pool4": LatentsKey("4"),
    "pool12": LatentsKey("12"),
    "full": LatentsKey("full"),
    "pixelwise": LatentsKey("pixelwise"),
    "epochs/0/pool4": LatentsKey("4", 0),
    "epochs/12/pixelwise": LatentsKey("pixelwise", 12),
}
PREFIXES = ["", "P", "a-b.c+d-", "epoch", "epoch05", "pool4"]


def make_manifest(**content: Any) -> Manifest:
    known = {"run_id": "r", "experiment": "e", "created": 0, "config": {}, "config_sha256": ""}
    return Manifest.model_validate_json(json.dumps(known | content))


@pytest.mark.parametrize("text", LATENTS)
def test_latents_key__parse_and_str_are_inverse(text: str) -> None:
    key = LATENTS[text]
    assert (LatentsKey.parse(text), str(key)) == (key, text)
    assert LatentsKey.above(f"{text}/train/fc/latent/c/0") == key
    assert key.groups[-1] == text
    assert key.at(3).at(key.epoch) == key


@pytest.mark.parametrize("latents", LATENTS.values(), ids=str)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_probe_key__parse_and_str_are_inverse(latents: LatentsKey, prefix: str) -> None:
    key = ProbeKey(latents, prefix)
    assert ProbeKey.parse(str(key)) == key


def test_keys__have_names_for_people_and_files() -> None:
    assert [LatentsKey("4").title, LatentsKey("full", 5).title] == ["pool4", "full of epoch 6"]
    key = ProbeKey(LatentsKey("4", 5), "P")
    assert (str(key), key.table, key.file) == (
        "P-epoch5-pool4",
        "probe-P-epoch5-pool4",
        "probe-P-epoch5-pool4.csv",
    )


def test_manifest__has_keys_as_values_in_memory_and_as_text_in_json() -> None:
    record = {"checkpoint_sha256": "", "digest": "", "size_bytes": 0, "n_train": 0, "n_eval": 0}
    probes = {"C": 1.0, "tol": 1e-4, "max_iter": 9}
    tables = [str(ProbeKey(key, prefix)) for key in LATENTS.values() for prefix in PREFIXES]
    content = {
        "latents": dict.fromkeys(LATENTS, record),
        "re_extractable": dict.fromkeys(LATENTS, record),
        "probes": dict.fromkeys(tables, probes),
        "summary": {"probe_accuracy": {table: {"fc": 0.5} for table in tables}},
    }
    manifest = make_manifest(**content)
    assert list(manifest.latents) == list(manifest.re_extractable) == list(LATENTS.values())
    assert manifest.probes[ProbeKey(LatentsKey("4", 0), "P")] == ProbesRecord(**probes)
    written = json.loads(manifest.model_dump_json())
    assert written == manifest.model_dump(mode="json")
    for name in ("latents", "re_extractable", "probes"):
        assert list(written[name]) == list(content[name])
    assert written["summary"]["probe_accuracy"] == content["summary"]["probe_accuracy"]
    again = manifest.model_copy(update={"latents": {LatentsKey("full"): LatentsRecord(**record)}})
    assert Manifest.model_validate(again.model_dump()).latents.keys() == {LatentsKey("full")}
    assert Manifest(**dict(again)).latents.keys() == {LatentsKey("full")}


@pytest.mark.parametrize("text", ["4", "epochs/5/4", "epochs/05/pool4", "epochs/x/pool4", "../x", "", "a b"])
def test_manifest__refuses_text_that_is_no_key_of_latents(text: str) -> None:
    record = {"checkpoint_sha256": "", "digest": "", "size_bytes": 0, "n_train": 0, "n_eval": 0}
    with pytest.raises(ValidationError, match=r"should match pattern|expected '"):
        make_manifest(latents={text: record})


@pytest.mark.parametrize("text", ["4", "P-4", "a-", "epoch5-", "-pool4", "a/b", "epochs/5/pool4", ""])
def test_manifest__refuses_text_that_is_no_key_of_probes(text: str) -> None:
    with pytest.raises(ValidationError, match=r"should match pattern|expected '"):
        make_manifest(probes={text: {"C": 1, "tol": 1, "max_iter": 1}})
