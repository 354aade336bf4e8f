"""A run folder under whatever is done to it, in any order; see run_folder.py."""

import pytest
from hypothesis import settings
from run_folder import FEW, RunFolder

TestOneOrder = type("OneOrder", (RunFolder,), {}).TestCase
TestOneOrder.settings = settings(FEW, max_examples=2)  # of which the first is always the simplest

TestRunFolder = pytest.mark.long(RunFolder.TestCase)
TestRunFolder.settings = FEW
