"""The same faults between botocore and an S3 server, where botocore's own retries come in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardyfusion.errors import PublishUnknownError, StoreUnavailableError
from shardyfusion.type_defs import S3ConnectionOptions
from tests.protocol.lossy_proxy import CUT, PASS, Request, Verdict, lossy_proxy
from tests.protocol.tiny_writes import runs_of, served_version, write

CREATED_ONCE = ("runs/", "manifests/", "commits/", "_CURRENT")


def options(url: str, max_attempts: int) -> S3ConnectionOptions:
    return S3ConnectionOptions(endpoint_url=url, max_attempts=max_attempts)


def of_the_protocol(request: Request) -> bool:
    name = request.key.removeprefix("snap/")
    return request.method == "PUT" and bool(request.condition) and name.startswith(CREATED_ONCE)


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_every_conditional_put_is_applied_and_its_first_answer_cut_off(
    max_attempts: int, s3: str, s3_prefix: str, allow_repeats: Callable[[int], None]
) -> None:
    """With one attempt the repetition is ours; with two it is botocore's, which reports a 412 for our own object."""

    def judge(request: Request) -> Verdict:
        return CUT if of_the_protocol(request) and request.count == 1 else PASS

    allow_repeats(1)
    with lossy_proxy(s3, judge) as proxy:
        for run in ("first", "second"):
            write(s3_prefix, run, s3_connection_options=options(proxy.url, max_attempts))
    kinds = [request.key.removeprefix("snap/").partition("/")[0] for request in proxy.judged]
    once = ["runs", "runs", "manifests", "commits", "_CURRENT"]
    assert kinds == once * 2, "the faults happened"
    assert [r.condition for r in proxy.judged if r.key == "snap/_CURRENT"] == ["if-none-match", "if-match"]
    assert runs_of(s3_prefix) == ["first", "second"]
    assert served_version(s3_prefix) == "second"


@pytest.mark.parametrize("part", ["commits/", "_CURRENT"])
def test_two_answers_in_a_row_are_cut_off(part: str, s3: str, s3_prefix: str) -> None:
    def judge(request: Request) -> Verdict:
        return CUT if of_the_protocol(request) and part in request.key and request.count <= 2 else PASS

    with lossy_proxy(s3, judge) as proxy:
        write(s3_prefix, "run", s3_connection_options=options(proxy.url, 3))
    assert len(proxy.judged) == 2
    assert runs_of(s3_prefix) == ["run"]


def test_409_and_412_with_nothing_to_read_back_are_repeated(s3: str, s3_prefix: str) -> None:
    answers = {
        1: Verdict(forward=False, status=409, code="ConditionalRequestConflict"),
        2: Verdict(forward=False, status=412, code="PreconditionFailed"),
    }

    def judge(request: Request) -> Verdict:
        return answers.get(request.count, PASS) if of_the_protocol(request) and "commits/" in request.key else PASS

    with lossy_proxy(s3, judge) as proxy:
        write(s3_prefix, "run", s3_connection_options=options(proxy.url, 1))
    assert [request.count for request in proxy.judged] == [1, 2]
    assert runs_of(s3_prefix) == ["run"]


def test_a_refusal_of_botocores_second_try_says_nothing_of_its_first(s3: str, s3_prefix: str) -> None:
    """The record is stored, its answer cut off, and the repetition denied, as when credentials expire in between."""

    def judge(request: Request) -> Verdict:
        if not of_the_protocol(request) or "commits/" not in request.key or request.count > 2:
            return PASS
        return CUT if request.count == 1 else Verdict(forward=False, status=403, code="ExpiredToken")

    with lossy_proxy(s3, judge) as proxy:
        write(s3_prefix, "run", s3_connection_options=options(proxy.url, 2))
    assert len(proxy.judged) == 2
    assert runs_of(s3_prefix) == ["run"]


def test_a_line_that_stays_dead_is_unknown_and_the_rerun_finishes(
    s3: str, s3_prefix: str, allow_repeats: Callable[[int], None]
) -> None:
    def judge(request: Request) -> Verdict:
        return CUT if of_the_protocol(request) and "commits/" in request.key else PASS

    allow_repeats(1)
    with lossy_proxy(s3, judge) as proxy, pytest.raises(PublishUnknownError) as caught:
        write(s3_prefix, "run", s3_connection_options=options(proxy.url, 1))
    assert isinstance(caught.value.__cause__, StoreUnavailableError)
    assert len(proxy.judged) == 2
    assert runs_of(s3_prefix) == ["run"], "it had landed"
    assert write(s3_prefix, "run").reused
    assert runs_of(s3_prefix) == ["run"]
