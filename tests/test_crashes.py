"""Stages are killed, lose power or their disk at any operation: nothing is lost, nothing half done trusted.

Here a sample of the operations, of few in the quick tier; `make soak` tries all of them.
"""

from pathlib import Path

import pytest
from crashes import Recording, check_failure, check_state, record, spread

FEW_OR_MANY = pytest.mark.parametrize("n_tried", [4, pytest.param(12, marks=pytest.mark.long)])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    root = tmp_path_factory.mktemp("recorded") / "logs"
    root.mkdir()
    return record(root)


def test_layer__sees_what_a_run_writes(recording: Recording) -> None:
    assert recording.n_operations > 1000
    assert len(recording.killed) > 500
    assert len(recording.lost) > 100
    assert len(recording.manifests) > 15


@FEW_OR_MANY
def test_kill__before_any_operation_ends_with_the_same_bits(
    recording: Recording, tmp_path: Path, n_tried: int
) -> None:
    for n in spread(list(recording.killed), n_tried):
        check_state(recording, recording.killed[n], tmp_path / str(n))


@FEW_OR_MANY
def test_power_loss__before_any_operation_ends_with_the_same_bits(
    recording: Recording, tmp_path: Path, n_tried: int
) -> None:
    for n in spread(list(recording.lost), n_tried):
        check_state(recording, recording.lost[n], tmp_path / str(n))


@pytest.mark.parametrize(
    ("forever", "n_tried"),
    [
        (False, 3),
        pytest.param(False, 6, marks=pytest.mark.long),
        pytest.param(True, 6, marks=pytest.mark.long),
    ],
    ids=["once", "once, more", "from then on"],
)
def test_bad_disk__at_any_operation_is_told_and_gone_on_from(
    recording: Recording, tmp_path: Path, forever: bool, n_tried: int
) -> None:
    failures = [
        check_failure(recording, n, tmp_path / str(n), forever=forever)
        for n in spread(list(range(recording.n_operations)), n_tried)
    ]
    assert any(failures)
