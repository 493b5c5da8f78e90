"""`vsae explain` against a small real server: what is asked, written, resumed, refused and said."""

import asyncio
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter

import pytest
from chat_server import (
    FEATURES,
    asked,
    completion,
    excerpts,
    is_greeting,
    is_of_scorer,
    knowing,
    stored,
    words,
)
from small_commands import refused

from dictionary_learning_ext import features_of
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import EndpointError
from dictionary_learning_ext.explain import runner
from dictionary_learning_ext.explain.endpoint import Endpoint
from dictionary_learning_ext.features.explanations import explanations_in, means_of


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """The key of the machine that runs the tests is not sent."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def answer_of(chat, **options):
    """What an endpoint answers to one request."""

    async def ask():
        async with Endpoint(chat.url, **options) as endpoint:
            return await endpoint.answer("any", [{"role": "user", "content": "hi"}], retries=1)

    return asyncio.run(ask())


def real(requests):
    return [each for each in requests if not is_greeting(each)]


def test_features_are_explained_and_scored_in_the_order_of_the_return_score(
    folder_to_explain, chat, capsys
):
    folder = folder_to_explain
    assert main(words(folder, chat, "--at-once", 2)) == 0
    out = capsys.readouterr().out
    assert "the return score" in out
    content = stored(folder)
    assert content["order"] == "return score"
    assert len(content["features"]) == FEATURES
    places = [each["place"] for each in content["features"].values()]
    assert max(places) < 128
    for each in content["features"].values():
        assert each["text"].startswith("the text '")
        assert set("".join(each["said"].values())) <= {"0", "1"}
        assert len(each["said"]["strong"]) >= 4
        assert len(each["said"]["silent"]) >= 4
        assert each["text"] in out
    n = len(real(chat.requests))
    assert f"{n} requests about {FEATURES} of them" in out
    assert chat.most_at_once <= 2
    assert {each["model"] for each in chat.requests} == {"explainer", "scorer"}
    for each in real(chat.requests):
        assert each["model"] == ("scorer" if is_of_scorer(each) else "explainer")
    score_F = features_of(folder, tokens=3000).return_scores.score_F
    in_order = sorted(content["features"], key=lambda one: content["features"][one]["place"])
    scores = [score_F[int(one)] for one in in_order]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == score_F.max()

    before = len(chat.requests)
    assert main(words(folder, chat)) == 0
    assert not real(chat.requests[before:]), "all is there"
    assert main(words(folder, chat, "--features", FEATURES + 1)) == 0
    new = real(chat.requests[before:])
    assert sum(not is_of_scorer(each) for each in new) == 1, "only the feature that is missing"
    assert len(stored(folder)["features"]) == FEATURES + 1


def test_the_scorer_is_asked_about_no_context_that_the_explainer_saw(folder_to_explain, chat):
    assert main(words(folder_to_explain, chat, "--features", 1)) == 0
    plain = [
        {text.replace("<<", "").replace(">>", "") for each in some for text in excerpts(each)}
        for some in (
            [each for each in real(chat.requests) if not is_of_scorer(each)],
            [each for each in real(chat.requests) if is_of_scorer(each)],
        )
    ]
    shown, held_out = plain
    assert len(shown) >= 4
    assert len(held_out) >= 8
    assert not shown & held_out
    assert not any(
        "<<" in text for each in chat.requests if is_of_scorer(each) for text in excerpts(each)
    )


def test_an_sae_without_a_return_score_goes_by_the_firing_rate(
    folder_to_explain, chat, capsys, monkeypatch
):
    monkeypatch.setattr(runner, "return_scores_if_any", lambda codes, dictionary: None)
    assert main([*words(folder_to_explain, chat), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "the firing rate" in out
    assert not (folder_to_explain / "explanations.json").exists()
    assert not chat.requests, "a dry run asks nothing"


def test_judgements_in_the_wrong_form_are_missing_and_the_others_count(folder_to_explain, chat):
    seen = Counter()

    def answer(request):
        if is_of_scorer(request):
            seen[asked(request)] += 1
            if len(seen) == 1:
                return "[1, 0]"
        return knowing(request)

    chat.answer = answer
    assert main(words(folder_to_explain, chat, "--features", 1, "--at-once", 1)) == 0
    assert sorted(seen.values())[-1] == 2
    (found,) = stored(folder_to_explain)["features"].values()
    said = "".join(found["said"].values())
    assert 0 < said.count("-") <= 10
    before = len(chat.requests)
    chat.answer = knowing
    assert main(words(folder_to_explain, chat, "--features", 1)) == 0
    assert len(real(chat.requests[before:])) == 1, "only the part that is missing"
    (found,) = stored(folder_to_explain)["features"].values()
    assert "-" not in "".join(found["said"].values())


def test_what_keeps_failing_is_named_at_the_end_and_a_second_call_asks_for_it(
    folder_to_explain, chat, capsys
):
    first = []

    def answer(request):
        if not is_greeting(request) and not is_of_scorer(request):
            first.append(asked(request))
            if asked(request) == first[0]:
                return (400, "the prompt\x1b[31m is too long " + "x" * 9999, {})
        return knowing(request)

    chat.answer = answer
    line = refused(words(folder_to_explain, chat, "--at-once", 1), capsys)
    assert f"requests about 1 of {FEATURES} features failed" in line
    texts = [each["text"] for each in stored(folder_to_explain)["features"].values()]
    assert texts.count(None) == 1
    chat.answer = knowing
    before = len(chat.requests)
    assert main(words(folder_to_explain, chat)) == 0
    assert sum(not is_of_scorer(each) for each in real(chat.requests[before:])) == 1
    assert all(each["text"] for each in stored(folder_to_explain)["features"].values())


def test_an_endpoint_that_is_down_ends_it(folder_to_explain, chat, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_MOST_FAILURES", 2)
    bad = (400, "\x1b[31m" + "x" * 9999, {})
    chat.answer = lambda request: knowing(request) if is_greeting(request) else bad
    line = refused(words(folder_to_explain, chat, "--at-once", 1), capsys)
    assert "2 requests" in line
    assert "answered 400" in line
    assert "\x1b" not in line
    assert len(line) < 500


REFUSALS = {
    "no key": (401, "no key", "set OPENAI_API_KEY"),
    "no model": (404, "no model 'explainer'", "names of the models"),
    "a page": (200, "<html>hello</html>", "something else than a chat completion"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_one_line_before_anything_is_measured(
    refusal, folder_to_explain, chat, capsys, monkeypatch
):
    monkeypatch.setattr(runner, "_read_features", lambda *args: pytest.fail("measured"))
    status, body, expected = REFUSALS[refusal]
    chat.answer = lambda request: (status, body, {})
    assert expected in refused(words(folder_to_explain, chat), capsys)
    assert len(chat.requests) == 1


def test_the_key_is_sent_and_written_nowhere(folder_to_explain, chat, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    def answer(request):
        if not is_greeting(request) and not is_of_scorer(request):
            return "Explanation: sk-secret is the text 'a'"
        return (400, "sk-secret is not allowed", {}) if is_of_scorer(request) else "yes"

    chat.answer = answer
    assert main(words(folder_to_explain, chat, "--features", 1)) == 2
    assert {each["Authorization"] for each in chat.headers} == {"Bearer sk-secret"}
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    for path in folder_to_explain.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()


def test_a_model_is_asked_without_the_options_that_it_refuses_and_no_other_is(chat):
    def answer(request):
        refuses = request["model"] == "reasons"
        if refuses and "max_tokens" in request:
            return (400, "Unsupported parameter: 'max_tokens'", {})
        if not refuses and "max_completion_tokens" in request:
            return (400, "Unknown parameter: 'max_completion_tokens'", {})
        return "yes"

    async def check():
        async with Endpoint(chat.url, max_tokens=77) as endpoint:
            for model in ("reasons", "old", "reasons", "old"):
                await endpoint.check(model)

    chat.answer = answer
    asyncio.run(check())
    reasons, old = chat.requests[-2:]
    assert reasons["max_completion_tokens"] == old["max_tokens"] == 77
    assert "temperature" not in reasons


WHOLE = completion("late").encode()
HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(WHOLE)}\r\n\r\n".encode()


@pytest.mark.parametrize("starts_with", [b"", HEAD], ids=["nothing", "a byte at a time"])
def test_an_answer_that_is_not_whole_in_time_is_an_error_that_names_the_timeout(starts_with, chat):
    """Each byte comes sooner than the timeout, all of them don't."""
    release = threading.Event()

    def write_slowly(write):
        write(starts_with)
        for byte in WHOLE if starts_with else b"":
            write(bytes([byte]))
            release.wait(0.05)
        release.wait(5)

    chat.answer = lambda request: write_slowly
    with pytest.raises(EndpointError, match=r"0\.4 seconds; give a larger timeout"):
        answer_of(chat, timeout=0.4)
    release.set()


LARGE = completion("x" * (16 << 20)).encode()
GZIPPED = gzip.compress(LARGE)
ENDLESS = {
    "a declared length": [b"HTTP/1.1 200 OK\r\nContent-Length: 3221225472\r\n\r\n", LARGE],
    "an error": [b"HTTP/1.1 400 Bad\r\n\r\n", LARGE],
    "a gzip bomb": [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", GZIPPED],
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_no_more_than_a_few_megabytes_of_an_answer_are_read_and_it_is_not_asked_for_again(
    endless, chat
):
    chat.answer = lambda request: lambda write: [write(piece) for piece in ENDLESS[endless]]
    tracemalloc.start()
    try:
        said = "answered 400" if endless == "an error" else "more than 4 MB; check the endpoint"
        with pytest.raises(EndpointError, match=said):
            answer_of(chat)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 14 << 20
    assert len(chat.requests) == 1


@pytest.mark.slow
def test_a_kill_in_between_loses_nothing_that_was_written(folder_to_explain, chat):
    blocked, release = threading.Event(), threading.Event()

    def answer(request):
        if len(real(chat.requests)) > 4:
            blocked.set()
            release.wait(60)
        return knowing(request)

    chat.answer = answer
    command = [sys.executable, "-m", "dictionary_learning_ext", *words(folder_to_explain, chat)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--at-once", "1"], env=environment)
    try:
        assert blocked.wait(120)
        end = time.monotonic() + 60
        while (
            not (folder_to_explain / "explanations.json").exists()
            or len(answered(folder_to_explain)) < 3
        ):
            assert time.monotonic() < end
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        release.set()
    kept = answered(folder_to_explain)
    before = len(chat.requests)
    chat.answer = knowing
    assert main(words(folder_to_explain, chat)) == 0
    new = {json.dumps(each) for each in real(chat.requests[before:])}
    old = [json.dumps(each) for each in real(chat.requests[:before])][: len(kept)]
    assert not new & set(old)
    assert len(new) + len(old) == len({json.dumps(each) for each in real(chat.requests)})


def answered(folder):
    """What explanations.json holds: an entry for each request that was answered."""
    found = []
    for each in stored(folder)["features"].values():
        found += [each["text"]] * (each["text"] is not None)
        n = sum(answer != "-" for said in each["said"].values() for answer in said)
        found += ["part"] * -(-n // 10)
    return found


def test_compare_shows_mean_scores_of_equally_many_features(explained, tmp_path, capsys):
    hostile, good = explained
    assert main(["compare", *map(str, explained)]) == 0
    out = capsys.readouterr().out
    assert "3 features" in out
    assert "can't be compared" not in out
    found = [explanations_in(folder / "explanations.json") for folder in explained]
    _, means = means_of(dict(zip(explained, found, strict=True)))
    for mean in means.values():
        assert f"{mean.value:.2f}" in out
    assert means[good].value > means[hostile].value
    other = shutil.copytree(good, tmp_path / "other")
    content = stored(other)
    content["settings"]["scorer"] = "another"
    (other / "explanations.json").write_text(json.dumps(content))
    assert main(["compare", str(hostile), str(other)]) == 0
    assert "measured differently (scorer)" in capsys.readouterr().out
