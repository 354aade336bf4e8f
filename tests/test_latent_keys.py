"""Keys of latents and of tables of probes: text at the edges, values everywhere else."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from satstore.config.latent_keys import (
    LatentsKey,
    LatentsRequest,
    ProbeKey,
    explain_no_latents,
    has_latents,
    layers_with_latents,
)
from satstore.runs.manifest import LatentsRecord, Manifest, ProbesRecord

LATENTS = {
    "pool4": LatentsKey("4"),
    "pool12": LatentsKey("12"),
    "full": LatentsKey("full"),
    "pixelwise": LatentsKey("pixelwise"),
    "cls": LatentsKey("cls"),
    "token5": LatentsKey("token5"),
    "epochs/3/mean": LatentsKey("mean", 3),
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


def test_keys__of_tokens_and_of_maps_have_flags_of_their_own() -> None:
    modes = ["cls", "mean", "last", "all", "0", "5"]
    keys = [LatentsKey.of_tokens(mode) for mode in modes]
    assert list(map(str, keys)) == ["cls", "mean", "last", "all", "token0", "token5"]
    assert [key.flags for key in keys] == [f"--tokens {mode}" for mode in modes]
    assert all(key.is_of_tokens for key in keys)
    maps = [LatentsKey(pooling) for pooling in ("5", "full", "pixelwise", "token05", "tokens")]
    assert [key.flags for key in maps[:3]] == ["-d 5", "-d full", "-d pixelwise"]
    assert not any(key.is_of_tokens for key in maps)


@dataclass(frozen=True)
class Source:
    """A layer as far as its latents depend on it."""

    form: str
    n_axes: int = 0
    n_prefix: int = 0
    grid: tuple[int, ...] = ()


LAYERS = {
    "old": Source("", 2),
    "old_linear": Source(""),
    "vector": Source("vector"),
    "line": Source("map", 1),
    "map": Source("map", 2),
    "text": Source("tokens"),
    "patches": Source("tokens", 0, 0, (2, 3)),
    "vit": Source("tokens", 0, 1, (2, 3)),
    "steps": Source("steps"),
}


@pytest.mark.parametrize(
    ("key", "with_grid", "expected"),
    [
        ("4", False, "old old_linear vector line map steps"),
        ("full", False, "old old_linear vector line map steps"),
        ("4", True, "old old_linear vector line map patches vit steps"),
        ("pixelwise", False, "old map"),
        ("pixelwise", True, "old map patches vit"),
        ("cls", False, "vector text vit steps"),
        ("mean", False, "vector text patches vit steps"),
        ("token5", True, "vector text patches vit steps"),
    ],
)
def test_has_latents__by_how_outputs_are_arranged(key: str, with_grid: bool, expected: str) -> None:
    found = [n for n, layer in LAYERS.items() if has_latents(layer, LatentsKey(key), with_grid=with_grid)]
    assert found == expected.split()


@pytest.mark.parametrize(
    ("layers", "tokens", "expected"),
    [
        ("map vector", None, "pool4 full"),  # a CNN
        ("old old_linear", None, "pool4 full"),
        ("vector", ["cls"], "pool4 full"),
        ("map vit vector", None, "pool4 full mean"),  # a ViT with its convolution
        ("vit vector", None, "mean"),
        ("vit vector", ["cls", "5"], "cls token5"),
        ("vit vector", ["grid"], "pool4 full"),
        ("vit vector", ["grid", "all"], "pool4 full all"),
        ("text", ["grid"], ""),
        ("steps vector", None, "pool4 full"),
        ("steps vector", ["last"], "pool4 full last"),
    ],
)
def test_request__asks_for_latents_that_layers_have(
    layers: str, tokens: list[str] | None, expected: str
) -> None:
    request = LatentsRequest.of(["4", "full"], tokens)
    found = request.keys([LAYERS[name] for name in layers.split()])
    assert list(map(str, found)) == expected.split()


@pytest.mark.parametrize(
    ("layers", "key", "said"),
    [
        ("map vector", "cls", "--tokens cls: none of the layers map, vector of RES has tokens; take -d"),
        ("vit text vector", "4", "-d 4: none of the layers vit, text, vector of RES has maps; take --tokens"),
        ("vit", "pixelwise", "-d pixelwise: none of the layers vit of RES has positions; take convolutions"),
        (
            "patches",
            "cls",
            "cls: layer patches of RES has no class token, its 6 tokens are patches; take mean",
        ),
    ],
)
def test_layers_with_latents__are_none_where_only_vectors_would_be(layers: str, key: str, said: str) -> None:
    chosen = {name: LAYERS[name] for name in layers.split()}
    assert layers_with_latents(chosen, LatentsKey(key), with_grid=False) == []
    assert explain_no_latents(chosen, LatentsKey(key), "RES").startswith(said)


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
