"""CSV for people: what a spreadsheet would run, and what stays as it is."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from satstore.reports.spreadsheets import as_text_cell, format_csv, without_formulas


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "  =1+1",
        "-",
        "＝1",
        "-1-1",
        "+a",
    ],
)
def test_cell__that_begins_like_a_formula_is_text(text: str) -> None:
    assert as_text_cell(text) == f"'{text}"
    [[cell, other]] = csv.reader(io.StringIO(format_csv([[text, "x"]]), newline=""))
    assert (cell, other) == (f"'{text}", "x")


@pytest.mark.parametrize(
    "text",
    ["", "a=b", "features.0", "-0.5", "+3", "-1e-05", "-.5", "-3.5%", "-inf", "nan", "'=1", "1"],
)
def test_cell__that_is_a_number_or_a_name_stays(text: str) -> None:
    assert as_text_cell(text) == text


def test_rows__of_numbers_are_those_that_pandas_reads() -> None:
    values = [-0.1, 1 / 3, np.float64(2 / 3), -5, 0.0]
    found = pd.read_csv(io.StringIO(format_csv([["name", "value"], *(["x", value] for value in values)])))
    assert found["value"].tolist() == values


def test_rows__with_another_countrys_separator_begin_no_cell_there() -> None:
    text = format_csv([["layer", "n"], ["a;=1+1", 1]])
    [head, row] = csv.reader(io.StringIO(text, newline=""), delimiter=";")
    assert (len(head), len(row)) == (1, 1), "a spreadsheet that splits at semicolons finds one cell"
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["layer", "n"], ["a;=1+1", "1"]]


def test_file__without_formulas_is_the_same_bytes() -> None:
    content = b'layer,value\r\n"a,b",-0.5\r\n'
    assert without_formulas(content) is content
    changed = without_formulas(content + b"=1+1,-0.5\r\n").decode()
    assert list(csv.reader(io.StringIO(changed)))[1:] == [["a,b", "-0.5"], ["'=1+1", "-0.5"]]
