"""`tunesmith bench` measures on this device, by the same step as a job's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import Done

pytestmark = pytest.mark.slow
SHORT = ("--seconds", "0.5", "--row-tokens", "128")
LONG = ("--seconds", "0.5", "--row-tokens", "512", "--workload", "long")


def test_it_tells_speed_limit_and_memory(tunesmith: Callable[..., Done]) -> None:
    done = tunesmith("bench", "tiny", *SHORT, "--json")
    assert done.code == 0
    told = done.json
    assert told["tokens_per_second"] > 0 and told["evaluation_tokens_per_second"] > 0
    assert 0 < told["share_of_roofline"] < 2 and told["peak_memory_bytes"] > 1 << 20
    assert (told["path"], told["workload"], told["device_name"]) == ("generic", "dialog", "cpu")
    assert "making the model" in done.err


def test_a_folder_and_its_options_change_what_is_measured(tunesmith: Callable[..., Done]) -> None:
    runs = (("--lora-rank", "4"), ("--lora-rank", "64"), ("--lora-rank", "4", "--lora-dropout", "0"))
    small, large, plain = (tunesmith("bench", "tunesmith/demo", *LONG, *options, "--json").json for options in runs)
    assert large["operations_per_token"] > small["operations_per_token"] == plain["operations_per_token"]
    assert plain["losses"] != small["losses"]
    assert small["workload"] == "long"


def test_what_cannot_be_measured_is_refused_in_words(tunesmith: Callable[..., Done]) -> None:
    done = tunesmith("bench", "nothing")
    assert done.code == 3 and "MODEL_NOT_FOUND" in done.err
    done = tunesmith("bench", "tiny", "--path", "fast", *SHORT)
    assert done.code == 4 and "PATH_NOT_POSSIBLE" in done.err and "GPU" in done.err
    assert tunesmith("bench", "tiny", "--seconds", "0").code == 2
    done = tunesmith("bench", "tiny", "--workload", "long", *SHORT)
    assert done.code == 3 and "NO_ROWS_LEFT" in done.err and "232" in done.err
    done = tunesmith("bench", "tunesmith/demo", "--row-tokens", "2049")
    assert done.code == 3 and "SEQUENCE_LENGTH_ABOVE_CONTEXT" in done.err and "2,048" in done.err
