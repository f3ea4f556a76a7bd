"""Strict JSON and the rules for members, where a whole message does not show them well."""

from __future__ import annotations

import time

import pytest

from delivery.errors import ProtocolViolation
from delivery.protocol import rules


def parse(text, max_bytes=65_536):
    return rules.parse_object(text, max_bytes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":"\ud800"}', "lone surrogate"),
        ('{"a":"\\ud800"}', "lone surrogate"),
        ('{"a":"\\u0000"}', "NUL in a string"),
        ('{"a":[1,{"b":["\\u0000"]}]}', "NUL in a string"),
        ('{"a":1,"a":1}', "duplicate member"),
        ("[]", "control message is not an object"),
        ("{", "control message is not JSON"),
        ('{"a":1e999}', "number is not finite"),
        ('{"a":-1e999}', "number is not finite"),
        ('{"a":NaN}', "number is not finite"),
        ('{"a":-1}', "integer out of range"),
        ('{"a":[[[[[[[[]]]]]]]]}', "control message too deep"),
    ],
)
def test_the_reason_says_which_rule_was_broken(text, reason):
    with pytest.raises(ProtocolViolation) as caught:
        parse(text)
    assert caught.value.reason == reason


def test_escapes_that_are_no_fault_are_let_pass():
    assert parse('{"\\u00e9":[1,null,{"a":"\\ud83c\\udf89"}]}') == {"é": [1, None, {"a": "🎉"}]}


def test_length_is_counted_in_bytes():
    assert parse('{"a":"é"}', 10) == {"a": "é"}
    with pytest.raises(ProtocolViolation, match="too long"):
        parse('{"a":"é"}', 9)


def test_brackets_in_strings_do_not_count_as_depth():
    text = '{"a":"' + "[" * 100 + '\\"{","b":[]}'
    assert parse(text)["b"] == []


@pytest.mark.parametrize("unit", ['"', '\\"', "[", '["', '{"', "\\", '"\\', '[""]', "{}", "}{"])
def test_hostile_text_costs_linear_time(unit):
    text = unit * (65_000 // len(unit))
    started = time.process_time()
    with pytest.raises(ProtocolViolation):
        parse(text)
    assert time.process_time() - started < 1.0  # it takes some 10 ms


def test_numbers_with_a_fraction_stay_floats():
    assert parse('{"a":0.5,"b":-0.5,"c":1e3}') == {"a": 0.5, "b": -0.5, "c": 1000.0}


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (rules.integer(1, 3), 2),
        (rules.handle, 2**32 - 1),
        (rules.seq, 0),
        (rules.boolean, False),
        (rules.text(0, 3), "abc"),
        (rules.nullable(rules.boolean), None),
        (rules.nullable(rules.boolean), True),
        (rules.identifier, "0F8FAD5B-d9cb-469f-a165-70867728950e"),
        (rules.digest, "0" * 64),
        (rules.chunk_size, 4096),
        (rules.nack_code, "lost"),
        (rules.meta, {"k": "v"}),
        (rules.log_text, "why"),
    ],
)
def test_a_rule_returns_what_it_lets_pass(rule, value):
    assert rule(value) == value


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (rules.integer(1, 3), [0, 4, True, 2.0, "2", None]),
        (rules.boolean, [0, 1, None, "true"]),
        (rules.seconds, [-1, True, "1", None]),
        (rules.positive_seconds, [0, 0.0, -1, None]),
        (rules.text(1, 3), ["", "abcd", None, 3]),
        (rules.texts, ["ab", [1], None, {}]),
        (rules.log_text, [None, 3]),
        (rules.identifier, ["", "x" * 36, None, "0f8fad5b-d9cb-469f-a165-70867728950e\n"]),
        (rules.digest, ["A" * 64, "0" * 63, "0" * 64 + "\n", None]),
        (rules.chunk_size, [4095, 4097, 2048, 8_388_608, True, "4096", 4096.0]),
        (rules.nack_code, ["gone", None, 1]),
        (rules.meta, [[], None, {"k": 1}, {str(i): "" for i in range(33)}, {"k": "x" * 8192}]),
        (rules.retry, [None, [], {"initial": 1}, {"initial": 1, "max": "2"}]),
    ],
)
def test_a_rule_refuses_with_a_phrase_that_repeats_no_value(rule, values):
    for value in values:
        with pytest.raises(ValueError, match=r"^(expected [a-zA-Z0-9,\- ]+|out of range)$"):
            rule(value)


def test_times_become_floats_and_lists_tuples():
    assert isinstance(rules.seconds(3), float)
    assert isinstance(rules.positive_seconds(3), float)
    assert rules.retry({"initial": 1, "max": 2, "more": 3}) == {"initial": 1.0, "max": 2.0}
    assert rules.texts(["a", "b"]) == ("a", "b")


def test_text_for_logs_is_cut_rather_than_refused():
    assert rules.log_text("x" * 60_000) == "x" * rules.MAX_LOG_CHARACTERS


def test_members_say_whether_they_must_be_there():
    assert rules.required(rules.boolean).required
    assert rules.optional(rules.boolean, field="other", when_none="omit") == rules.Member(
        rules.boolean, required=False, field="other", when_none="omit"
    )
