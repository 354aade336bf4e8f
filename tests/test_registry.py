"""Registries, on rows and modules of their own; what every registered name has to do is tested elsewhere."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from satstore import registry
from satstore.errors import ConfigError, SatstoreError, UnknownNameError, reason_of
from satstore.registry import DATASETS, METRICS, MODELS, OPTIMIZERS, STAGES, Registry, load_plugins, suggest

ROWS = """
from satstore.registry import Entry

ROWS = [
    Entry("resnet18", "shapes_lazy:build", {"depth": 18}, "resnet"),
    Entry("resnet34", "shapes_lazy:build", {"depth": 34}, "resnet"),
    Entry("vgg16", "shapes_lazy:build", {"depth": 16}, "vgg"),
    Entry("plain", "shapes_lazy:build"),
    Entry("folder", "shapes_lazy:folder", {"depth": 1}, argument="path"),
    Entry("gone", "shapes_lazy:no_such_function"),
]
"""

LAZY = """
def build(depth=0, **options):
    return ("built", depth, options)

def folder(path, depth):
    return (path, depth)
"""

Write = Callable[[str, str], None]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules that can be imported, and are forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def shapes(write_module: Write) -> Registry:
    """A registry of six rows."""
    write_module("shapes_rows", ROWS)
    write_module("shapes_lazy", LAZY)
    return Registry("model", "shapes_rows:ROWS", "satstore.test_shapes")


def offer(monkeypatch: pytest.MonkeyPatch, points: Sequence[tuple[str, str]]) -> None:
    """Pretend that installed packages declare entry points."""

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_registry__lists_names_without_importing_what_they_name(shapes: Registry) -> None:
    assert list(shapes) == ["resnet18", "resnet34", "vgg16", "plain", "folder", "gone"]
    assert len(shapes) == 6
    assert [entry.family for entry in shapes.entries()][:3] == ["resnet", "resnet", "vgg"]
    assert "vgg16" in shapes
    assert shapes.entry("vgg16").target == "shapes_lazy:build"
    assert "shapes_lazy" not in sys.modules
    assert shapes["resnet34"](width=2) == ("built", 34, {"width": 2})
    assert "shapes_lazy" in sys.modules


def test_registry__an_entry_without_arguments_is_the_object_itself(shapes: Registry) -> None:
    build = shapes["plain"]
    assert build is sys.modules["shapes_lazy"].build


def test_registry__rows_are_read_at_the_first_look_and_again_if_that_failed(write_module: Write) -> None:
    late = Registry("model", "late_rows:ROWS", "satstore.test_shapes")
    with pytest.raises(ModuleNotFoundError):
        list(late)
    write_module("late_rows", ROWS)
    importlib.invalidate_caches()
    assert "resnet18" in late


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "no model named 'resnet81'; did you mean 'resnet18'?"),
        ("VGG16", "no model named 'VGG16'; did you mean 'vgg16'?"),
        ("resnet18:5", "no model named 'resnet18:5'; did you mean 'resnet18'?"),
        (
            "foldr:/a/long/path/to/images",
            "no model named 'foldr:/a/long/path/to/images'; did you mean 'folder'?",
        ),
        ("folder", "model 'folder' needs a value: folder:PATH"),
        ("folder:", "model 'folder:' needs a value: folder:PATH"),
        (
            "zzz",
            "no model named 'zzz'; known are resnet18, resnet34, vgg16, plain, folder, gone",
        ),
    ],
)
def test_registry__unknown_names_are_refused_with_the_nearest(
    shapes: Registry, name: str, message: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes[name]
    assert str(caught.value) == message
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, ValueError)
    assert name not in shapes


def test_registry__binds_what_follows_a_colon(shapes: Registry) -> None:
    assert "folder:/data" in shapes
    assert shapes["folder:/data/a:b"]() == ("/data/a:b", 1)
    assert "folder:/data" not in list(shapes)


def test_registry__a_target_that_is_gone_is_one_line(shapes: Registry) -> None:
    with pytest.raises(
        ConfigError, match=r"^model 'gone' can't be loaded from 'shapes_lazy:no_such_function'"
    ):
        shapes["gone"]


def test_register__adds_the_decorated_object(shapes: Registry) -> None:
    @shapes.register("mine", family="own", depth=7)
    def build_mine(depth: int) -> int:
        """Say how deep it is.

        And more.
        """
        return depth

    assert build_mine(3) == 3
    assert shapes["mine"]() == 7
    assert list(shapes)[-1] == "mine"
    assert shapes.entry("mine").family == "own"
    assert shapes.entry("mine").description == "Say how deep it is."


def test_register__takes_objects_without_docstring(shapes: Registry) -> None:
    shapes.register("bare")(lambda: 5)
    assert shapes["bare"]() == 5
    assert shapes.entry("bare").description == ""
    assert shapes.entry("bare").family == __name__


def test_register__refuses_a_name_that_is_taken(shapes: Registry) -> None:
    shapes.register("mine")(len)
    for name in ("vgg16", "mine"):
        with pytest.raises(ConfigError, match=f"a model named '{name}' is registered already"):
            shapes.register(name)(max)
    assert shapes["mine"] is len
    assert shapes["vgg16"]()[0] == "built"


def test_register__the_same_object_may_come_twice(shapes: Registry) -> None:
    shapes.register("size")(len)
    shapes.register("size")(len)
    assert shapes["size"] is len


def test_entry_points__add_to_the_rows_and_are_loaded_when_used(
    shapes: Registry, write_module: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, [("theirs", "their_package:build"), ("extra", "their_package:build [fast]")])
    write_module("their_package", "def build():\n    return 'theirs'\n")
    assert list(shapes)[-2:] == ["theirs", "extra"]
    assert "their_package" not in sys.modules
    assert shapes["theirs"]() == "theirs"
    assert shapes["extra"]() == "theirs"


def test_entry_points__never_change_what_a_known_name_means(
    shapes: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, [("vgg16", "their_package:build")])
    assert shapes["vgg16"]() == ("built", 16, {})
    assert list(shapes).count("vgg16") == 1


def test_entry_points__of_a_broken_package_hinder_no_other_name(
    shapes: Registry, write_module: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, [("broken", "broken_package:build"), ("absent", "no_such_package:build")])
    write_module("broken_package", "raise RuntimeError('first line\\nsecond line')\n")
    assert shapes["vgg16"]()[0] == "built"
    with pytest.raises(ConfigError) as caught:
        shapes["broken"]
    assert str(caught.value) == (
        "model 'broken' can't be loaded from 'broken_package:build': RuntimeError: first line second line"
    )
    with pytest.raises(ConfigError, match="No module named 'no_such_package'"):
        shapes["absent"]


def test_load_plugins__imports_what_registers_itself(shapes: Registry, write_module: Write) -> None:
    write_module(
        "plugin_models",
        "from satstore.registry import METRICS\n"
        "@METRICS.register('TestOnlyMetric')\n"
        "def metric():\n"
        "    return 1\n",
    )
    try:
        load_plugins(["plugin_models"])
        load_plugins(["plugin_models"])
        assert METRICS["TestOnlyMetric"]() == 1
    finally:
        METRICS._entries.pop("TestOnlyMetric", None)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (None, "ModuleNotFoundError: No module named 'plugin_broken'"),
        ("def f(:\n", "SyntaxError: "),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one two"),
        (
            "from satstore.registry import METRICS\nMETRICS.register('Accuracy')(len)\n",
            "ConfigError: a metric named 'Accuracy' is registered already; choose another name",
        ),
    ],
)
def test_load_plugins__that_fail_are_named_in_one_line(
    write_module: Write, source: str | None, found: str
) -> None:
    if source is not None:
        write_module("plugin_broken", source)
    with pytest.raises(ConfigError) as caught:
        load_plugins(["plugin_broken"])
    assert str(caught.value).startswith(f"plugin 'plugin_broken' can't be imported: {found}")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, SatstoreError)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("registry", "name", "message"),
    [
        (MODELS, "resnet18_pretrained", "no model named 'resnet18_pretrained': satstore trains from random"),
        (MODELS, "vgg19_g3", "no model named 'vgg19_g3': its own source can't build it"),
        (MODELS, "msnet22fpn", "no model named 'msnet22fpn': satstore has no such network"),
        (DATASETS, "Cifar10A", 'no dataset named \'Cifar10A\': "dataset": "Cifar10" with "augment": false'),
        (DATASETS, "AgeFaceV2", "no dataset named 'AgeFaceV2': satstore doesn't know where its images lie"),
        (METRICS, "BalancedAccuracy", "no metric named 'BalancedAccuracy': satstore has Accuracy"),
    ],
)
def test_registry__says_what_it_has_in_the_place_of_a_phd_lab_name(
    registry: Registry, name: str, message: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"^{re.escape(message)}"):
        registry[name]


@pytest.mark.parametrize("registry", [MODELS, DATASETS, METRICS])
def test_registry__has_nothing_that_it_says_it_lacks(registry: Registry) -> None:
    folder = "training." if registry is METRICS else ""
    module = importlib.import_module(f"satstore.{folder}{registry.kind}s")
    for pattern, reason in module.ABSENT.items():
        assert not [name for name in registry if re.fullmatch(pattern, name)]
        named = re.findall(r"[a-z]+net\w*\d\w*(?<!_pretrained)", reason)
        assert all(name in registry for name in named)


def test_suggest__falls_back_to_what_is_known() -> None:
    assert suggest("x", []) == ""
    assert suggest("x", ["one", "two"]) == "; known are one, two"
    assert suggest("x", map(str, range(100, 120))).endswith("106, 107, …")
    assert suggest("adm", ["adam", "sgd"]) == "; did you mean 'adam'?"


@pytest.mark.parametrize("names", [MODELS, DATASETS, OPTIMIZERS, METRICS, STAGES], ids=lambda r: r.kind)
def test_registries__every_row_is_described_once(names: Registry) -> None:
    rows = names.entries()
    assert rows
    assert [row.name for row in rows] == list(names)
    assert len({row.name.casefold() for row in rows}) == len(rows), "suggestions fold case"
    for row in rows:
        assert row.name == row.name.strip()
        assert ":" not in row.name, "a colon begins an argument"


def test_registries__names_are_known_without_torch() -> None:
    code = (
        "import sys; from satstore.registry import MODELS, DATASETS, OPTIMIZERS, METRICS, STAGES\n"
        "for names in (MODELS, DATASETS, OPTIMIZERS, METRICS, STAGES): assert list(names)\n"
        "print([m for m in ('torch', 'zarr', 'pandas', 'dask', 'sklearn') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_reason_of__is_one_line_and_never_empty() -> None:
    assert reason_of(ValueError("a\n  b")) == "a b"
    assert reason_of(ValueError("a"), with_type=True) == "ValueError: a"
    assert reason_of(KeyError()) == reason_of(KeyError(), with_type=True) == "KeyError"
