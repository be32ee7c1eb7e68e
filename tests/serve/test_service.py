"""The service over an engine that does what a test tells it: text, stops, cancelling, back-pressure, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from served import until

from neoxkit.data.tokenizer import Tokenizer
from neoxkit.data.tokenizer.train import train_bpe
from neoxkit.errors import ConfigError, NeoxkitError
from neoxkit.parallel.world import ContactError
from neoxkit.serve import service as module
from neoxkit.serve.asking import Asked, Part, Question, Reply
from neoxkit.serve.engine import Full
from neoxkit.serve.request import Event, Finish, Limits, Request, Sampling, Scored, Statistics
from neoxkit.serve.seeds import derived_seed
from neoxkit.serve.service import BusyError, ClosingError, CutError, Service

TEXT = "one two three € four five"


class Fake:
    """An engine that answers all with the tokens of TEXT, one for each permit that it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = tokenizer.encode(TEXT)
        self.limits = Limits(batch=2, waiting=4)
        self.context = 100
        self.open: dict[int, list[int]] = {}
        self.requests: list[Request] = []
        self.cancelled: list[int] = []
        self.left: list[int] = []
        self.ticks = self.numbers = 0
        self.permits = threading.Semaphore(0)
        self.refuses: Callable[[Request], None] = lambda request: None
        self.dies: BaseException | None = None

    @property
    def idle(self) -> bool:
        return not self.open and not self.cancelled

    def submit(self, request: Request) -> int:
        self.refuses(request)
        self.numbers += 1
        self.requests.append(request)
        self.open[self.numbers] = self.ids[: request.max_tokens]
        return self.numbers

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)

    def tick(self) -> list[Event]:
        self.ticks += 1
        if self.open and not self.cancelled:
            self.permits.acquire()
        if self.dies is not None:
            raise self.dies
        events = []
        for number in self.cancelled:
            if self.open.pop(number, None) is not None:
                self.left.append(number)
                events.append(Event(number, finish="cancelled"))
        self.cancelled.clear()
        for number, ids in list(self.open.items()):
            token, rest = ids[0], ids[1:]
            first = len(rest) == len(self.ids) - 1
            events.append(
                Event(number, token, Scored(token, -1.0), None if rest else "length", cached=3 if first else 0)
            )
            self.open[number] = rest
            if not rest:
                del self.open[number]
        return events

    def statistics(self) -> Statistics:
        return Statistics(running=len(self.open))

    def let(self, ticks: int = 1000) -> None:
        for _ in range(ticks):
            self.permits.release()


class Asker:
    """Who asks: counts how often it was woken."""

    def __init__(self) -> None:
        self.woken = 0
        self.bell = threading.Event()

    def wake(self, asked: Collection[Asked]) -> None:
        self.woken += 1
        self.bell.set()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    train_bpe([TEXT], 258, folder)  # a token for each byte
    return Tokenizer(folder)


@pytest.fixture
def fake(tokenizer: Tokenizer) -> Fake:
    return Fake(tokenizer)


@pytest.fixture
def service(fake: Fake, tokenizer: Tokenizer) -> Iterator[Service]:
    serving: Any = SimpleNamespace(engine=fake, tokenizer=tokenizer)
    with Service(serving) as found:
        yield found
        fake.let()


def question(samples: int = 1, seed: int = 0, **options: Any) -> Question:
    return Question(Request((1, 2), Sampling(seed=seed), max_tokens=100), samples, **options)


def ask(service: Service, *questions: Question, asker: Asker | None = None) -> Asked:
    return service.ask(questions or [question()], (asker or Asker()).wake)


def whole(reply: Reply) -> tuple[str, Finish | None, int | str | None]:
    """What came of a reply, once it is done."""
    until(lambda: reply.finish is not None)
    part = reply.take()
    return part.text, part.finish, part.stopped_by


def test_an_answer_is_the_text_of_its_tokens(service: Service, fake: Fake) -> None:
    fake.let()
    asked = ask(service)
    (reply,) = asked.replies
    assert whole(reply) == (TEXT, "length", None)
    assert asked.accepted
    assert asked.done
    assert asked.error is None
    assert (reply.tokens, reply.cached) == (len(fake.ids), 3)
    assert not reply.take()
    until(lambda: service.load == 0)


def test_nothing_that_is_not_taken_is_lost_or_piles_up(service: Service, fake: Fake) -> None:
    (reply,) = ask(service).replies
    parts: list[Part] = []
    for ticks in (1, 2, 5, 1000):
        before = reply.tokens
        fake.let(ticks)
        until(lambda: reply.tokens >= before + ticks or reply.finish is not None)  # noqa: B023
        parts.append(reply.take())
    assert "".join(part.text for part in parts) == TEXT
    assert [part.tokens for part in parts] == [1, 2, 5, len(fake.ids) - 8]
    assert [len(part.scored) for part in parts] == [1, 2, 5, len(fake.ids) - 8]
    assert [part.finish for part in parts] == [None, None, None, "length"]


def test_a_stop_text_ends_an_answer_and_its_request(service: Service, fake: Fake) -> None:
    fake.let()
    asked = ask(service, question(stop=("three", "never")), question(stop=("€ f",), keep_stop=True))
    first, second = asked.replies
    assert whole(first) == ("one two ", "stop", "three")
    assert whole(second) == ("one two three € f", "stop", "€ f")
    until(lambda: fake.left == [1, 2])
    assert service.load == 0


def test_each_sample_has_a_seed_and_the_first_that_of_the_question(service: Service, fake: Fake) -> None:
    fake.let()
    asked = ask(service, question(samples=3, seed=7), question(seed=7))
    assert [reply.request.sampling.seed for reply in asked.replies] == [
        7,
        derived_seed(7, sample=1),
        derived_seed(7, sample=2),
        7,
    ]
    until(lambda: asked.done)
    assert [request.sampling.seed for request in fake.requests] == [
        reply.request.sampling.seed for reply in asked.replies
    ]


def test_whoever_asked_is_woken_once_a_tick(service: Service, fake: Fake) -> None:
    asker = Asker()
    asked = ask(service, question(samples=3), asker=asker)
    fake.let(4)
    until(lambda: asked.replies[2].tokens == 4)
    time.sleep(0.02)
    assert asker.woken <= 5  # once when the engine had taken it up, at most, and four times for three tokens


def test_whoever_wants_it_whole_is_woken_at_the_beginning_and_the_end(service: Service, fake: Fake) -> None:
    asker = Asker()
    asked = service.ask([question(samples=2)], asker.wake, pieces=False)
    until(lambda: asker.woken == 1)
    assert asked.accepted
    fake.let()
    until(lambda: asked.done)
    assert [whole(reply)[0] for reply in asked.replies] == [TEXT, TEXT]
    until(lambda: asker.woken == 2)


def test_more_than_may_wait_is_refused_at_once(service: Service, fake: Fake) -> None:
    asked = ask(service, question(samples=5))
    with pytest.raises(BusyError, match=r"5 answers are open, of at most 6; ask again later"):
        ask(service, question(samples=2))
    last = ask(service)
    fake.let()
    until(lambda: asked.done and last.done)
    assert asked.error is last.error is None
    until(lambda: service.load == 0)
    assert whole(ask(service).replies[0])[0] == TEXT


@pytest.mark.parametrize(
    ("error", "kind"), [(Full("it is full", "wait"), BusyError), (ConfigError("too long", "shorten it"), ConfigError)]
)
def test_what_the_engine_refuses_is_refused_whole(
    service: Service, fake: Fake, error: NeoxkitError, kind: type[Exception]
) -> None:
    def refuse(request: Request) -> None:
        if len(fake.requests) == 2:
            raise error

    fake.refuses = refuse
    asker = Asker()
    asked = ask(service, question(samples=3), asker=asker)
    assert asker.bell.wait(5)
    assert type(asked.error) is kind
    assert asked.done
    assert not asked.accepted
    until(lambda: service.load == 0 and fake.left == [1, 2])


def test_what_is_cancelled_leaves_the_engine(service: Service, fake: Fake) -> None:
    staying, leaving = ask(service), ask(service, question(samples=2))
    fake.let(3)
    until(lambda: leaving.replies[1].tokens == 3)
    service.cancel(leaving)
    fake.let()
    until(lambda: fake.left == [2, 3])
    assert [reply.finish for reply in leaving.replies] == ["cancelled", "cancelled"]
    assert isinstance(leaving.error, CutError)
    assert whole(staying.replies[0])[0] == TEXT
    service.cancel(staying)  # what is done stays so
    service.cancel(leaving)
    until(lambda: service.load == 0)
    assert staying.error is None


def test_what_is_cancelled_before_its_turn_never_reaches_the_engine(service: Service, fake: Fake) -> None:
    first = ask(service)
    until(lambda: fake.ticks > 0)  # the engine's thread is in a tick
    second = ask(service)
    service.cancel(second)
    fake.let()
    until(lambda: first.done and second.done)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("error", [ContactError("rank 1 is gone", "look"), RuntimeError("a mistake of ours")])
def test_when_the_engine_dies_all_are_told(service: Service, fake: Fake, error: Exception) -> None:
    asker = Asker()
    running = ask(service, asker=asker)
    until(lambda: running.accepted)
    waiting = ask(service, asker=asker)
    fake.dies = error
    fake.let(1)
    until(lambda: service.failure is not None and waiting.done)
    assert running.error is waiting.error is service.failure is error
    assert asker.bell.is_set()
    assert service.load == 0
    with pytest.raises(ClosingError, match="the engine has failed"):
        ask(service)
    assert service.close()


def test_a_mistake_while_a_request_is_taken_up_leaves_nobody_waiting(service: Service, fake: Fake) -> None:
    def fail(request: Request) -> None:
        raise KeyError("ours")

    running = ask(service)
    until(lambda: running.accepted)
    fake.refuses = fail
    asked = [ask(service), ask(service)]
    fake.let(1)
    until(lambda: all(each.done for each in asked))
    assert [type(each.error) for each in (running, *asked)] == [KeyError] * 3


def test_closing_lets_what_is_open_finish(service: Service, fake: Fake) -> None:
    asked = ask(service)
    until(lambda: asked.accepted)
    closing = threading.Thread(target=lambda: service.close(grace=10))
    closing.start()
    until(lambda: service.draining)
    with pytest.raises(ClosingError, match="being stopped"):
        ask(service)
    fake.let()
    closing.join(10)
    assert not closing.is_alive()
    assert whole(asked.replies[0]) == (TEXT, "length", None)


def test_closing_does_not_wait_for_ever(service: Service, fake: Fake) -> None:
    asked = ask(service)
    fake.let(2)
    until(lambda: asked.replies[0].tokens == 2)
    threading.Timer(0.2, fake.let).start()  # the pass that is going on ends at last
    began = time.monotonic()
    assert service.close(grace=0.05)
    assert time.monotonic() - began < 5
    assert isinstance(asked.error, CutError)
    assert service.close()  # again


def test_an_idle_engine_beats_and_does_not_spin(
    fake: Fake, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.05)
    serving: Any = SimpleNamespace(engine=fake, tokenizer=tokenizer)
    with Service(serving):
        time.sleep(0.5)
        assert 2 <= fake.ticks <= 11


def test_who_measures_is_told(fake: Fake, tokenizer: Tokenizer) -> None:
    told: list[tuple[str, Any]] = []
    observer: Any = SimpleNamespace(
        first_token=lambda seconds: told.append(("first", seconds)),
        next_token=lambda seconds: told.append(("next", seconds)),
        ended=lambda finish, seconds: told.append((finish, seconds)),
    )
    serving: Any = SimpleNamespace(engine=fake, tokenizer=tokenizer)
    with Service(serving, observer) as service:
        fake.let()
        asked = ask(service)
        until(lambda: asked.done)
        assert [name for name, _ in told] == ["first", *["next"] * (len(fake.ids) - 1), "length"]
        assert all(0 <= seconds < 5 for _, seconds in told)
        assert told[-1][1] >= told[0][1]
