"""What a monitor reads: vLLM's names, and numbers that are those of what was done."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from served import LONG, NAME, Live, connect, held, live, until

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
COUNTERS = (
    "prompt_tokens",
    "generation_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "request_success",
)
HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")


def read(server: Live) -> dict[str, float]:
    """Every sample by its name, with the labels but the model's."""
    response = server.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name not in ("model_name", "le")}
            if sample.name.startswith("vllm:"):
                assert sample.labels["model_name"] == NAME
            if "le" not in sample.labels or sample.labels["le"] == "+Inf":
                found[" ".join([sample.name.removeprefix("vllm:"), *labels.values()])] = sample.value
    return found


def test_every_name_is_there_from_the_start(model_folder: Path) -> None:
    with live(model_folder) as server:
        now = read(server)
        assert all(now[name] == 0 for name in GAUGES)
        assert all(now[f"{name}_total"] == 0 for name in COUNTERS[:-1])
        assert all(now[f"request_success_total {reason}"] == 0 for reason in ("stop", "length", "abort"))
        assert all(now[f"{name}_count"] == 0 for name in HISTOGRAMS)


def test_what_is_done_is_counted(model_folder: Path) -> None:
    with live(model_folder) as server:
        prompt = list(range(70, 110))
        body = {"prompt": prompt, "max_tokens": 10, "ignore_eos": True, "n": 2}
        told = server.post("/v1/completions", body).json()["usage"]
        stopped = server.post("/v1/completions", {"prompt": "a", "logit_bias": {"0": 100}, "temperature": 0})
        assert stopped.json()["choices"][0]["finish_reason"] == "stop"
        server.post("/v1/completions", {})
        until(server.idle)
        now = read(server)
        assert now["prompt_tokens_total"] == now["prefix_cache_queries_total"] == 2 * len(prompt) + 1
        assert now["generation_tokens_total"] == told["completion_tokens"] == 20
        assert now["prefix_cache_hits_total"] == 32  # the second sample's two whole pages
        assert now["request_success_total length"] == 2
        assert now["request_success_total stop"] == 1
        assert now["time_to_first_token_seconds_count"] == 2  # one had no token
        assert now["inter_token_latency_seconds_count"] == 18
        assert now["e2e_request_latency_seconds_count"] == 3
        assert 0 < now["time_to_first_token_seconds_sum"] < now["e2e_request_latency_seconds_sum"]
        assert now["neoxkit:http_responses_total /v1/completions 200"] == 2
        assert now["neoxkit:http_responses_total /v1/completions 400"] == 1
        server.get("/v1/models/" + "x" * 99)
        server.get("/" + "x" * 99)
        now = read(server)
        assert now["neoxkit:http_responses_total /v1/models/{model:path} 404"] == 1
        assert now["neoxkit:http_responses_total other 404"] == 1


def test_what_goes_on_is_shown(model_folder: Path) -> None:
    with live(model_folder) as server, held(server.serving) as let:
        leaving = connect(server, {**LONG, "n": 10})
        until(lambda: server.service.statistics.waiting == 10)
        let(3)
        until(lambda: server.service.statistics.running == 8)
        now = read(server)
        assert (now["num_requests_running"], now["num_requests_waiting"]) == (8, 2)
        assert 0 < now["kv_cache_usage_perc"] < 1
        leaving.close()
        until(server.idle)
        now = read(server)
        assert all(now[name] == 0 for name in GAUGES)
        assert now["request_success_total abort"] == 10


def test_two_servers_count_apart(server: Live, model_folder: Path) -> None:
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "ignore_eos": True})
    with live(model_folder) as other:
        assert read(other)["generation_tokens_total"] == 0
    assert read(server)["generation_tokens_total"] >= 2
