"""`vsae explain` against a small real server: what is asked, written, resumed, refused and said."""

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
from email.utils import formatdate

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
from dictionary_learning_ext.errors import ConfigError, EndpointError
from dictionary_learning_ext.explain import endpoint as endpoint_module
from dictionary_learning_ext.explain import questions, runner
from dictionary_learning_ext.explain.endpoint import Endpoint
from dictionary_learning_ext.export.exporter import export
from dictionary_learning_ext.features import features_of as features_of_module
from dictionary_learning_ext.features.explanations import explanations_in, means_of
from dictionary_learning_ext.run_folder.sae_names import results_folder


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """And the key of the machine that runs the tests is not sent."""
    monkeypatch.setattr(endpoint_module.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


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


@pytest.mark.parametrize(
    ("owner", "name", "answer"),
    [
        (features_of_module, "has_score", lambda dictionary: False),
        (features_of_module.SignalCollector, "scores_if_any", lambda collector: None),
    ],
    ids=["as its k says", "as all features fire"],
)
def test_an_sae_without_a_return_score_goes_by_the_firing_rate(
    owner, name, answer, folder_to_explain, chat, capsys, monkeypatch
):
    monkeypatch.setattr(owner, name, answer)
    assert main([*words(folder_to_explain, chat), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "the firing rate" in out
    assert not (folder_to_explain / "explanations.json").exists()
    assert not chat.requests, "a dry run asks nothing"


def test_a_list_of_features(folder_to_explain, chat, capsys):
    assert main(words(folder_to_explain, chat)) == 0
    chosen = [int(number) for number in stored(folder_to_explain)["features"]][::-1][:2]
    (folder_to_explain / "explanations.json").unlink()
    assert main(words(folder_to_explain, chat, "--only", *chosen)) == 0
    assert {int(number) for number in stored(folder_to_explain)["features"]} == set(chosen)


def test_features_that_cannot_be_explained_are_refused(
    folder_to_explain, chat, capsys, monkeypatch
):
    dead = next(n for n in range(128) if not features_of(folder_to_explain, tokens=3000)[n].density)
    for only, expected in ((128, "0 to 127"), (dead, f"feature {dead} has fewer than 8 contexts")):
        assert expected in refused(words(folder_to_explain, chat, "--only", only), capsys)
    monkeypatch.setattr(questions, "LEAST", 1000)
    assert "every feature" in refused(words(folder_to_explain, chat), capsys)


FORMS = {
    "no such line": lambda request: "It is about cats.",
    "empty": lambda request: "",
    "nothing": lambda request: (200, '{"choices": [{"message": {"content": null}}]}', {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_explanation_in_the_wrong_form_is_asked_for_once_more_then_missing(
    form, folder_to_explain, chat, capsys
):
    chat.answer = lambda request: knowing(request) if is_greeting(request) else FORMS[form](request)
    assert main(words(folder_to_explain, chat)) == 2
    assert Counter(asked(each) for each in real(chat.requests)).most_common(1)[0][1] == 2
    assert len(real(chat.requests)) == 2 * FEATURES
    assert "the right form" in capsys.readouterr().out
    assert all(each["text"] is None for each in stored(folder_to_explain)["features"].values())
    chat.answer = knowing
    assert main(words(folder_to_explain, chat)) == 0
    assert all(each["text"] for each in stored(folder_to_explain)["features"].values())


@pytest.mark.parametrize("wrong", ["[1, 0]", "yes, no", "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"])
def test_judgements_in_the_wrong_form_are_missing_and_the_others_count(
    wrong, folder_to_explain, chat
):
    seen = Counter()

    def answer(request):
        if is_of_scorer(request):
            seen[asked(request)] += 1
            if len(seen) == 1:
                return wrong
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


def once(failure):
    """Each request fails the first time."""
    seen = set()

    def answer(request):
        key = json.dumps(request)
        if key in seen or is_greeting(request):
            return knowing(request)
        seen.add(key)
        return failure

    return answer


PASSING = {
    "429": (429, "slow down", {"Retry-After": "7"}),
    "500": 500,
    "503": (503, "<html>down</html>", {}),
    "closed": None,
    "closed within": (200, completion("Explanation: x")[:-9], {"Content-Length": "4000"}),
}


@pytest.mark.parametrize("failure", PASSING)
def test_what_fails_once_is_asked_again(failure, folder_to_explain, chat, monkeypatch):
    pauses = []
    monkeypatch.setattr(endpoint_module.time, "sleep", pauses.append)
    chat.answer = once(PASSING[failure])
    assert main(words(folder_to_explain, chat)) == 0
    content = stored(folder_to_explain)["features"].values()
    assert all(each["text"] and "-" not in "".join(each["said"].values()) for each in content)
    assert set(pauses) == ({7.0} if failure == "429" else {1.0})


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("asked_for", "pauses"),
    [
        ("7", [7, 7, 7]),
        ("0", [1, 2, 4]),
        ("3", [3, 3, 4]),  # no shorter than without it
        ("soon", [1, 2, 4]),
        ("999999", [60, 60, 60]),
        ("9" * 5000, [1, 2, 4]),
    ],
)
def test_retry_after_makes_a_pause_longer(status, asked_for, pauses, chat, monkeypatch):
    found = []
    monkeypatch.setattr(endpoint_module.time, "sleep", found.append)
    busy = (status, "busy", {"Retry-After": asked_for})
    chat.answer = lambda request: busy if len(chat.requests) < 4 else "yes"
    assert Endpoint(chat.url).answer("any", []) == "yes"
    assert found == pauses


def test_retry_after_may_be_a_date(chat, monkeypatch):
    found = []
    monkeypatch.setattr(endpoint_module.time, "sleep", found.append)
    then = formatdate(time.time() + 50, usegmt=True)
    chat.answer = lambda request: (
        (503, "busy", {"Retry-After": then}) if len(chat.requests) < 2 else "yes"
    )
    assert Endpoint(chat.url).answer("any", []) == "yes"
    assert 5 < found[0] <= 50


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


def test_the_reason_of_a_failure_is_short_printable_text(folder_to_explain, chat, capsys):
    def answer(request):
        return knowing(request) if is_greeting(request) else (400, "\x1b[31m" + "x" * 9999, {})

    chat.answer = answer
    assert main(words(folder_to_explain, chat)) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    lines = [line for line in error.splitlines() if line.startswith("  feature ")]
    assert len(lines) == FEATURES
    assert all(len(line) < 400 for line in lines)


def test_an_endpoint_that_is_down_ends_it(folder_to_explain, chat, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_MOST_FAILURES", 2)
    chat.answer = lambda request: knowing(request) if is_greeting(request) else 500
    line = refused(words(folder_to_explain, chat, "--at-once", 1), capsys)
    assert "2 requests" in line
    assert "answered 500" in line


REFUSALS = {
    "no key": (401, "no key", "set OPENAI_API_KEY"),
    "no model": (404, "no model 'explainer'", "names of the models"),
    "a page": (200, "<html>hello</html>", "something else than a chat completion"),
    "deep": (200, "[" * 100_000, "something else than a chat completion"),
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


def test_no_endpoint_there(folder_to_explain, chat, capsys):
    command = words(folder_to_explain, chat)
    chat.server_close()
    assert "no answer (ConnectionError" in refused(command, capsys)


ADDRESSES = [
    "localhost:8000",
    "ftp://a/v1",
    "http://",
    "http://u:secret@a/v1",
    "http://a/v1?k=secret",
]
ADDRESSES += [
    "http://[::1",
    "http://[zz]/v1",
    "http://u:secret@[::1",
    "u:secret@a",
    "http://u:se/secret@a",
]
ADDRESSES += ["http://a:99999/v1", "http://a:b/v1", "http://a b/v1", "http://a..b/v1"]
ADDRESSES += [f"http://{'a' * 64}/v1", "http://a/v1#secret", "http://u:se?secret@a/v1"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none(address, folder_to_explain, chat, capsys):
    line = refused([*words(folder_to_explain, chat), "--endpoint", address], capsys)
    assert "--endpoint" in line
    assert "http://localhost:8000/v1" in line
    assert "secret" not in line


@pytest.mark.parametrize("timeout", [0, float("nan"), float("inf"), 1e30])
def test_a_timeout_that_is_none(timeout, chat):
    with pytest.raises(ConfigError, match=r"timeout=.*above 0"):
        Endpoint(chat.url, timeout=timeout)


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


def test_without_a_key_none_is_sent_not_even_that_of_netrc(
    folder_to_explain, chat, tmp_path, monkeypatch
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    assert main(words(folder_to_explain, chat, "--features", 1)) == 0
    assert not any("Authorization" in each for each in chat.headers)


def test_models_that_refuse_an_option_are_asked_without_it(chat):
    def answer(request):
        for name in ("max_tokens", "temperature"):
            if name in request:
                return (400, f"Unsupported parameter: '{name}'", {})
        return "yes"

    chat.answer = answer
    endpoint = Endpoint(chat.url, max_tokens=77)
    endpoint.check("reasoner")
    assert endpoint.answer("reasoner", [{"role": "user", "content": "hi"}]) == "yes"
    assert chat.requests[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert chat.requests[-1]["max_completion_tokens"] == 77


def test_a_model_is_asked_without_the_options_that_it_refuses_and_no_other_is(chat):
    def answer(request):
        refuses = request["model"] == "reasons"
        if refuses and "max_tokens" in request:
            return (400, "Unsupported parameter: 'max_tokens'", {})
        if not refuses and "max_completion_tokens" in request:
            return (400, "Unknown parameter: 'max_completion_tokens'", {})
        return "yes"

    chat.answer = answer
    endpoint = Endpoint(chat.url)
    for model in ("reasons", "old", "reasons", "old"):
        endpoint.check(model)
    assert [("max_tokens" in each) for each in chat.requests[-2:]] == [False, True]


def test_a_reason_that_names_an_option_is_no_refusal_of_it(chat):
    chat.answer = lambda request: (429, "slow down, or reduce max_tokens", {})
    with pytest.raises(EndpointError, match="answered 429"):
        Endpoint(chat.url).check("busy")
    assert all("max_tokens" in each for each in chat.requests)


@pytest.mark.parametrize("key", ["sk-secret\r", " sk-secret\n"])
def test_a_key_is_sent_without_the_ends_of_its_line(key, chat):
    Endpoint(chat.url, key).check("any")
    assert chat.headers[-1]["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize("key", ["sk-sec\nret", "sk-secrét"])
def test_a_key_that_none_can_be_is_refused_and_not_shown(key, chat):
    with pytest.raises(ConfigError, match="OPENAI_API_KEY ") as refusal:
        Endpoint(chat.url, key)
    assert "sk-" not in str(refusal.value)


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


def pieces(text, n=8):
    """Of bytes: all but the last n one by one, then those."""
    return [text[i : i + 1] for i in range(len(text) - n)] + [text[-n:]]


WHOLE = completion("late").encode()
HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(WHOLE)}\r\n\r\n".encode()
SLOW = {
    "nothing": [b"", b""],
    "headers": [*pieces(HEAD), WHOLE],
    "body": [HEAD, *pieces(WHOLE)],
    "stalled": [HEAD + WHOLE[:9], b"", WHOLE[9:]],
}


@pytest.mark.parametrize("slow", SLOW)
def test_an_answer_that_is_not_whole_in_time_is_an_error_that_names_the_timeout(slow, chat):
    """Each byte comes sooner than the timeout, all of them don't."""
    release = threading.Event()

    def write_slowly(write):
        for piece in SLOW[slow]:
            write(piece)
            release.wait(0.05 if len(SLOW[slow]) > 9 else 1)

    chat.answer = lambda request: write_slowly
    with pytest.raises(EndpointError) as error:
        Endpoint(chat.url, timeout=0.2).answer("any", [], is_known=False)
    assert "0.2 seconds" in str(error.value)
    assert "timeout" in str(error.value)
    release.set()


def gzipped(content, coding="gzip"):
    body = gzip.compress(content)
    return (
        HEAD.replace(b"200 OK", f"200 OK\r\nContent-Encoding: {coding}".encode()).replace(
            str(len(WHOLE)).encode(), str(len(body)).encode()
        )
        + body
    )


def test_an_answer_that_was_compressed_without_being_asked_for_is_read(chat):
    chat.answer = lambda request: lambda write: write(gzipped(WHOLE))
    assert Endpoint(chat.url).answer("any", []) == "late"
    assert chat.headers[-1]["Accept-Encoding"] == "identity"


LARGE = completion("x" * (16 << 20)).encode()
DECLARED = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n"
ENDLESS = {
    "a gzip bomb": [gzipped(LARGE)],
    "gzip in gzip": [gzipped(gzip.compress(LARGE), "gzip, gzip")],
    "a declared length": [DECLARED % (b"200 OK", 3 << 30), *[b" " * (1 << 20)] * 64],
    "no length": [b"HTTP/1.1 200 OK\r\n\r\n", LARGE],
    "an error": [DECLARED % (b"503 Busy", 3 << 30), *[b" " * (1 << 20)] * 64],
    "a redirect": [DECLARED % (b"302 Found\r\nLocation: /", 3 << 30), *[b" " * (1 << 20)] * 64],
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_no_more_than_a_few_megabytes_of_an_answer_are_read(endless, chat):
    def write(out):
        for piece in ENDLESS[endless]:
            out(piece)

    chat.answer = lambda request: write
    tracemalloc.start()
    try:
        reason = "gzip, gzip" if endless == "gzip in gzip" else "more than 4 MB"
        with pytest.raises(EndpointError, match=f"answered with .*{reason}"):
            Endpoint(chat.url).answer("any", [])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 14 << 20
    assert len(chat.requests) == 1, "it isn't asked for again"


@pytest.mark.parametrize("other", ["SAE", "explainer", "scorer", "tokens"])
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
    assert "--overwrite True" in line
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
def test_a_kill_in_between_loses_nothing_that_was_answered(folder_to_explain, chat):
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
            or len(answered(folder_to_explain)) < 4
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


def test_the_features_are_written_in_their_order_whichever_is_answered_first(
    folder_to_explain, chat
):
    first, another = threading.Lock(), threading.Event()

    def answer(request):
        """The first explanation comes after another one, which is being scored."""
        if is_of_scorer(request):
            another.set()
        elif not is_greeting(request) and first.acquire(blocking=False):
            assert another.wait(60)
        return knowing(request)

    chat.answer = answer
    assert main(words(folder_to_explain, chat, "--at-once", FEATURES)) == 0
    places = [each["place"] for each in stored(folder_to_explain)["features"].values()]
    assert places == sorted(places)


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
