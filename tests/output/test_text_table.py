from template.output.text_table import text_table


def test_numbers_stand_to_the_right_and_words_to_the_left():
    table = text_table([{"name": "adam", "loss": 0.5}, {"name": "sgd", "loss": 12.25}])
    assert table.splitlines() == ["name   loss", "adam    0.5", "sgd   12.25"]


def test_what_a_row_lacks_stays_empty():
    table = text_table([{"fold": 1}, {"fold": 2, "acc": 0.93125}])
    assert table.splitlines() == ["fold     acc", "   1", "   2  0.9313"]


def test_no_rows_are_no_lines():
    assert text_table([]) == ""
