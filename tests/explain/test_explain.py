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
from dictionary_learning_ext.commands import explain as explain_command
from dictionary_learning_ext.errors import EndpointError
from dictionary_learning_ext.explain import questions, runner
from dictionary_learning_ext.explain.endpoint import Endpoint
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.features.explanations import explanations_in, means_of
from dictionary_learning_ext.run_folder.sae_names import results_folder


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


def test_a_feature_with_too_few_contexts_is_passed_over_and_its_place_is_gone_through(
    folder_to_explain, chat, monkeypatch
):
    """So that the others' scores are in the mean."""
    of = runner.question

    def of_most(feature, place, *rest):
        return None if place == 1 else of(feature, place, *rest)

    monkeypatch.setattr(runner, "question", of_most)
    assert main(words(folder_to_explain, chat)) == 0
    found = explanations_in(folder_to_explain / "explanations.json")
    places = sorted(one.place for one in found.values())
    assert len(places) == FEATURES
    assert 1 not in places
    assert found.places == places[-1] + 1
    assert len(found.scores) == FEATURES


def test_an_sae_without_a_return_score_goes_by_the_firing_rate(
    folder_to_explain, chat, capsys, monkeypatch
):
    monkeypatch.setattr(runner, "return_scores_if_any", lambda codes, dictionary: None)
    assert main([*words(folder_to_explain, chat), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "the firing rate" in out
    assert not (folder_to_explain / "explanations.json").exists()
    assert not chat.requests, "a dry run asks nothing"


def test_features_that_cannot_be_explained_are_refused(
    folder_to_explain, chat, capsys, monkeypatch
):
    dead = next(n for n in range(128) if not features_of(folder_to_explain, tokens=3000)[n].density)
    for only, expected in ((128, "0 to 127"), (dead, f"feature {dead} has fewer than 8 contexts")):
        assert expected in refused(words(folder_to_explain, chat, "--only", only), capsys)
    monkeypatch.setattr(questions, "LEAST", 1000)
    assert "every feature" in refused(words(folder_to_explain, chat), capsys)


def test_an_explanation_in_the_wrong_form_is_asked_for_once_more_then_missing(
    folder_to_explain, chat, capsys
):
    nothing = (200, '{"choices": [{"message": {"content": null}}]}', {})
    chat.answer = lambda request: knowing(request) if is_greeting(request) else nothing
    assert main(words(folder_to_explain, chat)) == 2
    assert Counter(asked(each) for each in real(chat.requests)).most_common(1)[0][1] == 2
    assert len(real(chat.requests)) == 2 * FEATURES
    assert "the right form" in capsys.readouterr().out
    assert all(each["text"] is None for each in stored(folder_to_explain)["features"].values())
    chat.answer = knowing
    assert main(words(folder_to_explain, chat)) == 0
    assert all(each["text"] for each in stored(folder_to_explain)["features"].values())


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


PASSING = {
    "429": (429, "slow down", {"Retry-After-Ms": "1"}),
    "503": (503, "<html>down</html>", {"Retry-After-Ms": "1"}),
    "closed within": (200, completion("Explanation: x")[:-9], {"Content-Length": "4000"}),
}


@pytest.mark.parametrize("failure", PASSING)
def test_what_fails_once_is_asked_again(failure, chat):
    chat.answer = lambda request: PASSING[failure] if len(chat.requests) == 1 else "yes"
    assert answer_of(chat) == "yes"


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


def test_without_openai_it_says_what_to_install(folder_to_explain, chat, capsys, monkeypatch):
    monkeypatch.setattr(explain_command, "find_spec", lambda name: None)
    line = refused(words(folder_to_explain, chat), capsys)
    assert "pip install 'dictionary-learning-ext[explain]'" in line


def test_no_endpoint_there(folder_to_explain, chat, capsys):
    command = words(folder_to_explain, chat)
    chat.server_close()
    assert "no answer (ConnectError" in refused(command, capsys)


ADDRESSES = ["localhost:8000", "ftp://a/v1", "http://", "http://[::1"]
ADDRESSES += ["http://u:secret@a/v1", "http://u:se/secret@a", "http://a/v1?k=secret"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none(address, folder_to_explain, chat, capsys):
    line = refused([*words(folder_to_explain, chat), "--endpoint", address], capsys)
    assert "endpoint" in line
    assert "http://localhost:8000/v1" in line
    assert "secret" not in line


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


def test_features_that_were_picked_are_not_in_the_mean(folder_to_explain, chat):
    folder = folder_to_explain
    path = folder / "explanations.json"
    assert main(words(folder, chat, "--features", 3)) == 0
    third = max(explanations_in(path).values(), key=lambda one: one.place).feature
    path.unlink()
    assert main(words(folder, chat, "--features", 1)) == 0
    assert main(words(folder, chat, "--only", third)) == 0
    found = explanations_in(path)
    assert (len(found), len(found.scores)) == (2, 1)
    assert found[third].score is not None


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


@pytest.mark.parametrize("other", ["SAE", "scorer"])
def test_explanations_of_something_else_are_not_taken(other, folder_to_explain, chat, capsys):
    folder = folder_to_explain
    assert main(words(folder, chat)) == 0
    before = stored(folder)
    changed = json.loads(json.dumps(before))
    if other == "SAE":
        changed["sae"] = "0" * 64
    else:
        changed["settings"][other] = "another"
    path = folder / "explanations.json"
    path.write_text(json.dumps(changed))
    line = refused(words(folder, chat), capsys)
    assert f"another {'SAE' if other == 'SAE' else 'kind: ' + other}" in line
    assert "overwrite=True" in line
    assert stored(folder) == changed
    assert main(words(folder, chat, "--overwrite")) == 0
    assert stored(folder) == before


def test_answers_to_other_questions_are_asked_for_again(folder_to_explain, chat):
    assert main(words(folder_to_explain, chat)) == 0
    content = stored(folder_to_explain)
    first = next(iter(content["features"].values()))
    first |= {"asked": "of other contexts", "text": "stale"}
    (folder_to_explain / "explanations.json").write_text(json.dumps(content))
    chat.answer = lambda request: knowing(request) if is_greeting(request) else 400
    assert main(words(folder_to_explain, chat)) == 2
    assert "stale" in json.dumps(stored(folder_to_explain)), "a failure replaces nothing"
    chat.answer = knowing
    before = len(chat.requests)
    assert main(words(folder_to_explain, chat)) == 0
    assert sum(not is_of_scorer(each) for each in real(chat.requests[before:])) == 1
    assert "stale" not in json.dumps(stored(folder_to_explain))


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


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_ctrl_c_says_to_type_the_same_again(flags, folder_to_explain, chat, capsys):
    first = threading.Lock()  # several requests are answered at once

    def answer(request):
        if is_of_scorer(request) and first.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        return knowing(request)

    chat.answer = answer
    assert main(words(folder_to_explain, chat, *flags)) == 130
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("vsae: ")]
    assert "the same command" in line
    assert ("without --overwrite" in line) == bool(flags)


def answered(folder):
    """What explanations.json holds: an entry for each request that was answered."""
    found = []
    for each in stored(folder)["features"].values():
        found += [each["text"]] * (each["text"] is not None)
        n = sum(answer != "-" for said in each["said"].values() for answer in said)
        found += ["part"] * -(-n // 10)
    return found


def test_another_librarys_sae(folder_to_explain, chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export = ["export", str(folder_to_explain), "--format", "sae-lens", "--tokens", "64"]
    assert main([*export, "--out", str(tmp_path / "lens")]) == 0
    model = [
        "--data",
        json.loads((folder_to_explain / "config.json").read_text())["run"]["settings"]["data"],
    ]
    model += [
        "--model",
        json.loads((folder_to_explain / "config.json").read_text())["run"]["settings"]["model"],
    ]
    assert main(words(tmp_path / "lens", chat, *model)) == 0
    assert len(stored(results_folder(tmp_path / "lens"))["features"]) == FEATURES
    assert not (tmp_path / "lens" / "explanations.json").exists()


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


def test_features_of_a_folder_have_their_explanations(explained):
    features = features_of(explained[1], tokens=600)
    number = next(iter(features.explanations))
    assert features[number].explanation.text in repr(features[number])
    assert features[number].explanation.score.value > 0.5
    html = features_of(explained[0], tokens=600)
    number = next(iter(html.explanations))
    assert "<script>" not in html[number]._repr_html_()
    assert "&lt;script&gt;" in html[number]._repr_html_()
    without = next(n for n in range(128) if n not in features.explanations)
    assert features[without].explanation is None


def test_exports_that_have_a_place_for_them_hold_them(explained, tmp_path):
    folder = export(explained[1], "neuronpedia", tmp_path / "out", tokens=600).folder
    lines = (folder / "explanations" / "batch-0.jsonl").read_text().splitlines()
    found = {int(each["index"]): each for each in map(json.loads, lines)}
    known = explanations_in(explained[1] / "explanations.json")
    assert found.keys() == known.keys()
    for feature, each in found.items():
        assert each["description"] == known[feature].text
        assert each["explanationModelName"] == "explainer"
        assert each["layer"] == "0-good"
        assert str(known[feature].score) in each["notes"]
    assert not list((folder / "explanations").glob("batch-1*"))
