"""What a monitor is told, in Prometheus' form and under the names that vLLM's have."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from neoxkit.serve.request import Finish, Statistics
from neoxkit.serve.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The form that every release of Prometheus reads."""

LABELS = ["model_name"]

TO_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20)
WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
"""Upper ends of the histograms' buckets, in seconds; vLLM's, with smaller ones."""

REASONS: dict[Finish, str] = {"stop": "stop", "length": "length", "cancelled": "abort"}
"""What vLLM calls the ways in which an answer ends."""


class Metrics:
    """The measurements of one server, in a registry of its own. It is what its service tells."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry(auto_describe=False)
        self._first = self._histogram("vllm:time_to_first_token_seconds", "From asking to the first token.", TO_FIRST)
        self._next = self._histogram("vllm:inter_token_latency_seconds", "From a token to the next one.", BETWEEN)
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "From asking to the end.", WHOLE)
        success = Counter(
            "vllm:request_success", "Answers that ended.", [*LABELS, "finished_reason"], registry=self.registry
        )
        self._ended = {finish: success.labels(model, reason) for finish, reason in REASONS.items()}
        self._responses = Counter(
            "neoxkit:http_responses", "Responses, by path and status.", ["path", "status"], registry=self.registry
        )

    def watch(self, service: Service) -> None:
        """Tell what the engine of a service does, too."""
        self.registry.register(_Engine(service, self.model))

    def first_token(self, waited: float) -> None:
        """The first token came so long after it was asked for."""
        self._first.observe(waited)

    def next_token(self, since: float) -> None:
        """Another token came, so long after the one before."""
        self._next.observe(since)

    def ended(self, finish: Finish, lasted: float) -> None:
        """An answer ended, so long after it was asked for."""
        self._ended[finish].inc()
        self._whole.observe(lasted)

    def responded(self, path: str, status: int) -> None:
        """A response was begun."""
        self._responses.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """All of it, as a monitor reads it."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        found: Histogram = Histogram(name, what, LABELS, buckets=buckets, registry=self.registry).labels(self.model)
        return found


class _Engine(Collector):
    """What the engine counts itself."""

    def __init__(self, service: Service, model: str) -> None:
        self._service, self._model = service, model

    def collect(self) -> Iterator[Metric]:
        """The numbers of now."""
        now: Statistics = self._service.statistics
        used = now.pages_used / now.pages if now.pages else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests that are worked on.", now.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for their turn.", now.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the key/value cache that is in use, 0 to 1.", used)
        yield self._counter("vllm:prompt_tokens", "Tokens of prompts that were read.", now.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens that were made.", now.new_tokens)
        yield self._counter("vllm:prefix_cache_queries", "Tokens that were looked up.", now.prompt_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Tokens that were found computed.", now.cached_tokens)
        yield self._counter("vllm:num_preemptions", "Times that a request was put back.", now.preemptions)

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        found = GaugeMetricFamily(name, what, labels=LABELS)
        found.add_metric([self._model], value)
        return found

    def _counter(self, name: str, what: str, value: float) -> Metric:
        found = CounterMetricFamily(name, what, labels=LABELS)
        found.add_metric([self._model], value)
        return found
