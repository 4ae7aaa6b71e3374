"""Writes what Redis lacks of the log in SQL; only then does this process trust Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from authsvc.cache.errors import CacheError
from authsvc.cache.redis.client import Command
from authsvc.domain.errors import StoreUnavailable
from authsvc.domain.revocations import Horizon, Position, Revocation, Sight, whole_number
from authsvc.domain.values.clocks import Monotonic
from authsvc.store.copies.index import RedisIndex
from authsvc.store.copies.marker import Reading, Seal, is_claim, new_claim
from authsvc.store.copies.ownership import Ownership
from authsvc.store.copies.servers import Answer, Server, Servers, Shard, Visit, ask_about, unread
from authsvc.store.revocations import Range, SqlRevocationLog

log = logging.getLogger(__name__)


def nothing() -> None:
    """The default callback: does nothing."""


@dataclass(slots=True, kw_only=True)
class Reconciler:
    """
    Compares Redis with SQL, one comparison at a time: each shard separately, all with one read of the log.

    *on_lag* is called with the number of entries that Redis was behind.
    """

    revocations: SqlRevocationLog
    index: RedisIndex
    servers: Servers
    ownership: Ownership
    monotonic: Monotonic
    on_lag: Callable[[int], None]
    #: Called after each comparison with the number of proven shards.
    on_proven: Callable[[int], None]
    #: Called after each comparison in which SQL and Redis both answered.
    on_compared: Callable[[], None] = nothing
    _horizon: Horizon = field(default_factory=Horizon, init=False)
    #: The head of the log at the last read.
    _last: Position = field(default=Position(), init=False)
    #: After a restore of SQL all epochs were raised, but the log has not been moved on yet.
    _has_cut: bool = field(default=False, init=False)

    def tick(self) -> bool:
        """
        Compare once; True if all of Redis is proven now.  Raises CacheError and StoreUnavailable.

        An error of one shard is raised after the others have been compared.
        """
        errors: list[CacheError] = []
        visits = self._visits(errors)
        compared = self._compare(visits, is_partial=bool(errors)) if visits else []
        self.on_proven(len(compared))
        errors += [visit.error for visit in visits if visit.error is not None]
        if errors:
            raise errors[0]
        return len(compared) == len(self.servers.shards)

    def _compare(self, visits: Sequence[Visit], *, is_partial: bool) -> Sequence[Visit]:
        """The visits among *visits* that are proven now."""
        # Take the time before SQL is asked. A process that was suspended since must not treat the answer as
        # new, and later commits may be above the answer although SQL was not restored.
        began_s, seen = self.monotonic(), max(shard.proof.seen for shard in self.servers.shards)
        try:
            sight = self._look(visits)
        except StoreUnavailable:
            return _gone_on_without_sql(visits, began_s)
        going = self._begin(visits, sight, seen, is_partial=is_partial)
        settled = self._horizon.settled
        if not going or settled is None:
            return []
        proven = self._bring_up_or_distrust(going, settled)
        for visit in proven:
            visit.end(settled, began_s)
        if proven:
            self.on_compared()
        return proven

    def _visits(self, errors: list[CacheError]) -> list[Visit]:
        """The shards that can be compared now, with their markers; errors of the others go to *errors*."""
        visits: list[Visit] = []
        for server, shards in self.servers.now(errors):
            try:
                visits += self._visit(server, shards, errors)
            except CacheError as error:
                errors.append(error)
        return visits

    def _visit(self, server: Server, shards: Sequence[Shard], errors: list[CacheError]) -> list[Visit]:
        self._follow_checks(server)
        server.watch_role()
        visits = _read(server, shards)
        is_ours = self._are_ours(visits)
        for visit in visits:
            if not is_ours or visit.is_lost:
                visit.shard.proof.distrust()
        going = [visit for visit in visits if visit.is_going_on and is_ours]
        if going:
            server.renew_connections(going[0].reading.over)
        is_good = not self._evicts(server, going)
        errors += [visit.error for visit in visits if visit.error is not None]
        return [visit for visit in going if is_good and visit.is_going_on]

    def _follow_checks(self, server: Server) -> None:
        """
        Remake our connection if checks made, or need, connections that no comparison has covered: they may
        lead to another server.

        Not without SQL: nothing can be compared then, and trust in the current state depends on our
        connection.
        """
        if not server.wants_new_connection():
            return
        with suppress(StoreUnavailable):
            self.revocations.head()
            server.client.connections.suspect()

    def _are_ours(self, visits: Sequence[Visit]) -> bool:
        """False if one belongs to another installation; those without an owner become ours."""
        new = [visit for visit in visits if visit.is_going_on and visit.reading.installation is None]
        keys = [visit.shard.marker.installation for visit in new]
        answers = ask_about(
            (visit, [self.ownership.claim_command(key), ("GET", key)])
            for visit, key in zip(new, keys, strict=True)
        )
        for visit in new:
            answer = answers.get(visit.shard.number)
            if answer is not None:
                visit.is_lost = answer.over != visit.reading.over
                visit.reading = visit.reading.of(cast("bytes | None", answer.replies[1]))
        holds = [
            self.ownership.holds(visit.shard.marker.installation, visit.reading.installation)
            for visit in visits
            if visit.is_going_on
        ]
        return all(holds)

    def _evicts(self, server: Server, visits: Sequence[Visit]) -> bool:
        """True if Redis evicts keys, or did until just now; an unknown policy is accepted."""
        policy = server.policy()
        if policy is None:
            return False
        did_evict, server.is_evicting = server.is_evicting, policy != "noeviction"
        if not did_evict and not server.is_evicting:
            return False
        if not did_evict:
            log.error("redis.evicting", extra={"policy": policy})
        for visit in visits:
            visit.shard.proof.distrust()
        # Also once after the policy is corrected: processes that had not checked it may have renewed the
        # marker, and evicted keys are missing until all is replayed.
        _discard(visits)
        server.ticks -= 1
        return True

    def _look(self, visits: Sequence[Visit]) -> Sight:
        """The state of the log, with the entries that Redis and this process refer to."""
        reached = [visit.reached for visit in visits if visit.reached is not None]
        remembered = {visit.reading.position.seq for visit in visits} | {self._last.seq, *reached}
        return self.revocations.look(settled=max(reached, default=None), at=remembered)

    def _begin(self, visits: Sequence[Visit], sight: Sight, seen: int, *, is_partial: bool) -> list[Visit]:
        """Where to start: the visits that have a marker, or whose refill this process has claimed."""
        reached = [visit.reached or 0 for visit in visits]
        is_other = self._undo_rewind(sight, visits, max(seen, *reached), is_partial=is_partial)
        if is_other:
            sight = self.revocations.look()
        self._take_in(sight)
        standing = [visit for visit in visits if visit.reached is not None and not is_other]
        for visit in standing:
            visit.start = cast("bytes", visit.reading.value)
        if standing:
            highest = max(visit.reached or 0 for visit in standing)
            self._horizon.hear(next((at for at in sight.found if at.seq == highest), Position(highest)))
        empty = [visit for visit in visits if visit not in standing]
        if self._horizon.settled is None:
            return standing
        claimed = _claim(empty, is_other=is_other)
        # Read the log again under the claim: revocations after the first read were written to Redis at once,
        # perhaps before it was emptied. From now on, writes are lost only together with the claim.
        if claimed:
            self._take_in(self.revocations.look())
        return [*standing, *claimed]

    def _take_in(self, sight: Sight) -> None:
        """Remember the state of the log; correct a sequence that is behind."""
        self._last = sight.head
        for shard in self.servers.shards:
            shard.proof.saw(sight.head.seq)
        self._horizon.look(sight, self.monotonic())
        if sight.is_behind:
            log.error("revocations.numbers_behind", extra={"head": sight.head.seq})
            with suppress(StoreUnavailable):  # the next comparison tries again
                self.revocations.catch_up()

    def _undo_rewind(self, sight: Sight, visits: Sequence[Visit], seen: int, *, is_partial: bool) -> bool:
        """
        True if the log lacks what Redis or this process has *seen*: then SQL was restored.

        Either it ends earlier, or a remembered number has another entry. Then the log continues above all
        numbers seen.
        """
        head = sight.head.seq
        remembered = [self._last, *(visit.reading.position for visit in visits)]
        is_renumbered = any(sight.contradicts(position) for position in remembered)
        if head >= seen and not is_renumbered:
            return False
        self.ownership.confirm()
        log.error("revocations.rewound", extra={"head": head, "seen": seen})
        # Remove the markers first: new entries below them may not have been replayed, and after the log has
        # moved on this could not be detected.
        _discard(visits)
        if is_partial or not all(visit.is_going_on for visit in visits):
            raise next((visit.error for visit in visits if visit.error), unread())
        # Only once: the next step may have to be repeated, and each cut adds a log entry for every user.
        if not self._has_cut:
            # Each lost entry may have raised an epoch. Their number is not known if the log grew again: at
            # most all that ever existed.
            self.revocations.cut_everybody_off(by=seen + 1 if is_renumbered else seen - head + 1)
            self._has_cut = True
        self.revocations.skip_to(seen)
        self._has_cut = False
        self._horizon = Horizon()
        for shard in self.servers.shards:
            shard.backlog = shard.backlog.anew()
        return True

    def _bring_up_or_distrust(self, visits: Sequence[Visit], settled: Position) -> list[Visit]:
        """
        Write what Redis lacks, and move the markers up to the settled number; returns the visits that moved.

        If that fails, this process knows that the marker is behind. A full Redis still answers reads: its old
        marker must not prove entries that could not be written.
        """
        try:
            self._bring_up(visits, settled)
        except StoreUnavailable:
            for visit in visits:
                visit.shard.proof.learned(self._last.seq)
            raise
        for visit in visits:
            if visit.error is not None:
                visit.shard.proof.learned(self._last.seq)
        return [visit for visit in visits if visit.is_going_on]

    def _bring_up(self, visits: Sequence[Visit], settled: Position) -> None:
        together: dict[tuple[Range, ...], list[Visit]] = {}
        for visit in visits:
            visit.begin(self._last.seq)
            together.setdefault(visit.ranges, []).append(visit)
        self.on_lag(sum(high - low + 1 for ranges in together for low, high in ranges))
        for ranges, some in together.items():
            for page in self.revocations.pages(ranges):
                self._write(page, [visit for visit in some if visit.is_going_on], settled)
        advancing = [visit for visit in visits if visit.is_going_on]
        answers = ask_about(
            (visit, [visit.shard.marker.advance_command(visit.start, settled, visit.backlog.seal)])
            for visit in advancing
        )
        for visit in advancing:
            is_moved = _is_done(answers, visit)
            visit.is_lost = not (is_moved and answers[visit.shard.number].over == visit.reading.over)
        if all(visit.is_going_on for visit in visits):
            self.on_lag(0)

    def _write(self, page: Sequence[Revocation], visits: Sequence[Visit], settled: Position) -> None:
        """Write *page*, the part of each shard followed by a seal, and move their markers to its end."""
        parts = self.index.parts(page)
        seals = {visit.shard.number: visit.shard.marker.seal() for visit in visits}
        ask_about(
            (visit, [*parts.get(visit.shard.number, ()), seals[visit.shard.number].command])
            for visit in visits
        )
        self.index.wrote(page, {visit.shard.number for visit in visits if _is_news(visit)})
        for visit in visits:
            visit.backlog.wrote(page, seals[visit.shard.number])
        # Shards without entries in the page are moved with the last page.
        moving = [visit for visit in visits if visit.shard.number in parts or visit.is_refill]
        reached = min(settled, Position.of(page[-1]))
        _step([visit for visit in moving if visit.is_going_on], reached, seals)


def _is_news(visit: Visit) -> bool:
    """False if Redis had the entry before it was emptied: its delay then is not known."""
    return visit.is_going_on and not visit.is_refill


def _read(server: Server, shards: Sequence[Shard]) -> list[Visit]:
    """The markers of *shards*, which *server* owns: one round trip."""
    visits = [Visit(shard, server, Reading(None, Position(), is_sealed=False, over=-1)) for shard in shards]
    answers = ask_about(
        (visit, [visit.shard.marker.read_command(visit.shard.backlog.seal)]) for visit in visits
    )
    for visit in visits:
        shard, answer = visit.shard, answers.get(visit.shard.number)
        if answer is not None:
            values = cast("list[bytes | None]", answer.replies[0])
            visit.reading = shard.marker.reading(values, answer.over, shard.backlog.seal)
    return visits


def _gone_on_without_sql(visits: Sequence[Visit], now_s: float) -> list[Visit]:
    """Extend each marker that is exactly what this process knows, over the connection that was compared."""
    exact = [
        visit
        for visit in visits
        if visit.reached == visit.shard.proof.known and visit.shard.proof.still_connected(visit.reading.over)
    ]
    answers = ask_about(
        (visit, [visit.shard.marker.renew_command(visit.shard.proof.known)]) for visit in exact
    )
    renewed = [visit for visit in exact if _is_done(answers, visit)]
    for visit in renewed:
        visit.shard.proof.watched(now_s)
    return renewed


def _is_done(answers: dict[int, Answer], visit: Visit) -> bool:
    """True if the last command about the shard had a reply other than 0 and None."""
    answer = answers.get(visit.shard.number)
    return answer is not None and bool(answer.replies[-1])


def _claim(visits: Sequence[Visit], *, is_other: bool) -> list[Visit]:
    """Claim the refill of *visits*, which have no marker; returns those that no other process refills."""
    claims = {visit.shard.number: new_claim() for visit in visits}
    commands: list[tuple[Visit, list[Command]]] = []
    for visit in visits:
        marker, value = visit.shard.marker, visit.reading.value
        is_garbage = value is not None and whole_number(value) is None and not is_claim(value)
        first = [marker.discard_command()] if is_garbage and not is_other else []
        commands.append((visit, [*first, marker.claim_command(claims[visit.shard.number])]))
    answers = ask_about(commands)
    claimed = []
    for visit in visits:
        if _is_done(answers, visit):
            visit.start = claims[visit.shard.number]
            claimed.append(visit)
    return claimed


def _step(visits: Sequence[Visit], to: Position, seals: dict[int, Seal]) -> None:
    steps = {
        visit.shard.number: visit.shard.marker.step_command(visit.start, to, seals[visit.shard.number])
        for visit in visits
    }
    answers = ask_about((visit, [steps[visit.shard.number][1]]) for visit in visits)
    for visit in visits:
        visit.is_lost = not _is_done(answers, visit)
        visit.start = steps[visit.shard.number][0]


def _discard(visits: Sequence[Visit]) -> None:
    ask_about((visit, [visit.shard.marker.discard_command()]) for visit in visits)
