"""The owner of the bundles, and what it does to keep them.

What it decides is decided by `p2pstore.policy`, unchanged: who is suspect or lost, what is to be
done for a bundle and in which order, to whom it is given, who is vetted, what is audited. The world
supplies what a node has beside it: a catalog, a line that carries so much, a clock.

All bundles are evicted: nothing but the copies of others keeps them. For a repair the owner brings
one group at a time back from a holder, sends what is missing, asks all holders for whole proofs, as
it must before it evicts, and evicts again when the target is reached. The owner's own machine dies
like any other; it is back after some days, from the words, with nothing of its own.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence

from p2pstore.policy import (
    Action,
    Auditable,
    BackOff,
    Budget,
    Candidate,
    Condition,
    Copy,
    Holder,
    Method,
    Standing,
    Verdict,
    audit_failed,
    audit_passed,
    choose_holders,
    earned,
    eligible,
    is_vetted,
    judge,
    reliability,
    seen_by_us,
    standing_of,
    target,
    to_audit,
    urgency,
)
from tests.simulate.nature import BEGIN, Group, Kept, Kind, Nature, Tally
from tests.simulate.peer import Peer
from tests.simulate.scenario import BUNDLE, DAY, HOUR, YEAR, Scenario

SURPLUS_S = 14 * DAY + 1  # when a surplus is looked at again
OFFER = 1 << 40
LOOK_AROUND_S = HOUR
LEASE_UNTIL = BEGIN + 1e6 * YEAR  # renewed every month while the holder is there


class World(Nature):
    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(scenario, seed)
        self._work: list[tuple[tuple[bool, int, float, bytes], int]] = []
        self._is_busy = False
        self._watching_since = BEGIN - YEAR
        self._budgets: dict[int, Budget] = {}
        self._target = scenario.min_copies
        self._verdicts: dict[int, tuple[Action, int]] = {}  # the last of each group
        self._retarget()
        for number in range(scenario.groups):
            group = Group(number, b"", BEGIN)
            self.groups.append(group)
            self._counts[0] += 1
            self._write(group)
        if scenario.friends:
            self._at(BEGIN + DAY, Kind.AUDIT)

    def branch(self, seed: int) -> World:
        """The same state, and another future."""
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.dice = random.Random(seed)
        other.tally = Tally()
        other.peers = {n: peer.clone() for n, peer in self.peers.items()}
        other.groups = [group.clone() for group in self.groups]
        other._events = list(self._events)
        other._work = list(self._work)
        other._budgets = dict(self._budgets)
        other._verdicts = dict(self._verdicts)
        other._counts = list(self._counts)
        other._era = self._era + 1
        other._draw_nature()
        return other

    def _owner_sees(self, kind: Kind, about: tuple[int, ...]) -> None:
        match kind:
            case Kind.JOIN | Kind.RETURN:
                self._retarget()
                for group in self.groups:
                    if not group.copies:  # everybody was dead when it was lost
                        self._write(group)
                self._consider(n for n in range(len(self.groups)) if self._may_want(n, about[0]))
            case Kind.OWNER_BACK:
                self._watching_since = self.now
                for number in range(len(self.groups)):
                    self._at(self.now + LOOK_AROUND_S + 1, Kind.RETRY, number)
            case Kind.LOOK | Kind.FORGET:
                self._retarget()
                peer = self.peers.get(about[0])
                if peer is None or peer.gone_at is None:
                    return
                self._consider(sorted(peer.groups))
                if kind is Kind.FORGET and peer.is_dead:
                    self._forget(peer)
            case Kind.RETRY:
                self._consider(about)
            case Kind.DONE:
                self._is_busy = False
                if self._owner_is_there:
                    self._done(self.groups[about[0]], about[1], about[2:])
                self._begin_work()
            case Kind.AUDIT:
                self._at(self.now + DAY, Kind.AUDIT)
                if self._owner_is_there:
                    self._audit_all()

    # -- the catalog ------------------------------------------------------------------------------

    def _write(self, group: Group) -> None:
        """A new group goes to as many holders as there can be, before it is evicted."""
        group.seed = self.dice.randbytes(8)
        group.since = self.now
        group.back_off, group.surplus_since = BackOff(), None
        self._verdicts.pop(group.number, None)
        present = [peer for peer in self.peers.values() if peer.gone_at is None]
        for candidate in self._choose(group, present, self._target):
            self._give(group, self._peer(candidate.holder))
        if not group.there:  # nobody is there just now, or liars alone
            living = [p for p in self.peers.values() if not p.is_dead and p.keeps == 1.0]
            for peer in living[:1]:
                self._give(group, peer)

    def _peer(self, holder: Holder) -> Peer:
        return self.peers[int.from_bytes(holder.node, "big")]

    def _give(self, group: Group, peer: Peer) -> None:
        """The peer has it whole, proves it and signs. A liar may then throw it away."""
        before = group.copies.get(peer.number)
        keeps = peer.keeps == 1.0 or self.dice.random() < peer.keeps
        copy = Copy(peer.holder, self.now, LEASE_UNTIL, since=self.now)
        group.copies[peer.number] = Kept(copy, keeps)
        peer.groups.add(group.number)
        if peer.record.since is None:
            peer.record = peer.record._replace(since=self.now)
        change = keeps - (before.is_there if before else False)
        if change:
            self._count(group, change)

    def _drop(self, group: Group, number: int) -> None:
        kept = group.copies.pop(number)
        self.peers[number].groups.discard(group.number)
        if kept.is_there:
            self._count(group, -1)

    def _forget(self, peer: Peer) -> None:
        """It is lost for the owner, and is so in truth."""
        for number in peer.groups:
            del self.groups[number].copies[peer.number]
        del self.peers[peer.number]
        self._budgets.pop(peer.number, None)
        self._count_liar(peer)

    def _copy(self, number: int, kept: Kept) -> Copy:
        holder = self.peers[number].holder
        if holder.last_seen is not None and self.now - self._watching_since < LOOK_AROUND_S:
            seen = seen_by_us(holder.last_seen, watching_since=self._watching_since, now=self.now)
            return kept.copy._replace(holder=holder._replace(last_seen=seen))
        if kept.copy.holder is not holder:
            kept.copy = kept.copy._replace(holder=holder)
        return kept.copy

    def _condition(self, group: Group) -> Condition:
        return Condition(
            group.seed,
            group.is_local,
            [self._copy(number, kept) for number, kept in group.copies.items()],
            self.scenario.min_copies,
            self._target,
            group.since,
            group.back_off,
            group.surplus_since,
        )

    def _candidate(self, peer: Peer) -> Candidate:
        seen = self.now if peer.gone_at is None else peer.gone_at
        good = reliability(peer.answered, peer.answered + peer.failed)
        return Candidate(peer.holder, OFFER, seen, False, False, OFFER, good)

    def _retarget(self) -> None:
        candidates = [self._candidate(peer) for peer in self.peers.values()]
        self._target = target(
            self.scenario.copies, self.scenario.min_copies, eligible(candidates, self.now)
        )

    def _consider(self, numbers: Iterable[int]) -> None:
        """Ask policy what is to be done for these groups, and begin with it."""
        if not self._owner_is_there or not self.scenario.repairs:
            return
        for number in numbers:
            group = self.groups[number]
            condition = self._condition(group)
            verdict = judge(condition, self.now)
            match verdict.action:
                case Action.PUSH | Action.BRING_BACK:
                    heapq.heappush(self._work, (urgency(condition, verdict), number))
                case Action.REST:
                    self._at(group.back_off.until + 1, Kind.RETRY, number)
                case Action.RELEASE:
                    for holder in verdict.release:
                        self._drop(group, self._peer(holder).number)
                case Action.NOTHING if group.is_local:
                    self._evict(group)
            self._mind_surplus(group, verdict)
            self._verdicts[number] = (verdict.action, self._target)
        self._begin_work()

    def _may_want(self, number: int, peer: int) -> bool:
        """Whether a peer that came may change what is to be done for a group."""
        last = self._verdicts.get(number)
        return last != (Action.NOTHING, self._target) or peer in self.groups[number].copies

    def _mind_surplus(self, group: Group, verdict: Verdict) -> None:
        if not verdict.has_surplus or verdict.action is Action.RELEASE:
            group.surplus_since = None
        elif group.surplus_since is None:
            group.surplus_since = self.now
            self._at(self.now + SURPLUS_S, Kind.RETRY, group.number)

    # -- repair -----------------------------------------------------------------------------------

    def _choose(self, group: Group, peers: Iterable[Peer], count: int) -> list[Candidate]:
        holding = [
            copy.holder
            for n, kept in group.copies.items()
            if standing_of(copy := self._copy(n, kept), self.now) is not Standing.LOST
        ]
        return choose_holders(
            [self._candidate(peer) for peer in peers],
            holding=holding,
            size=BUNDLE,
            now=self.now,
            count=count,
            seed=group.seed,
        )

    def _begin_work(self) -> None:
        """The most urgent group, unless one is on its way: the line is full with one."""
        while self._work and not self._is_busy and self._owner_is_there:
            _, number = heapq.heappop(self._work)
            group = self.groups[number]
            condition = self._condition(group)
            verdict = judge(condition, self.now)
            if verdict.action not in (Action.PUSH, Action.BRING_BACK):
                continue
            on = [peer for peer in self.peers.values() if peer.is_on(self.now)]
            targets = [self._peer(c.holder) for c in self._choose(group, on, verdict.wanted)]
            if not targets and (group.is_local or verdict.live >= self.scenario.min_copies):
                if self._choose(group, self.peers.values(), 1):
                    self._fail(group)  # else it waits for a peer to come
                continue
            source = None if group.is_local else self._source(group, condition)
            if source is None and not group.is_local:
                self._fail(group)
            else:
                self._send(group, source, targets)

    def _send(self, group: Group, source: Peer | None, targets: Sequence[Peer]) -> None:
        """The line is busy until all of it is done."""
        size = self.scenario.weight * BUNDLE
        end = self.now
        if source is not None:
            rate = min(self.scenario.down, self.scenario.up)
            end = source.after_work(end, size / rate)
        for peer in targets:
            end = peer.after_work(end, size / self.scenario.up)
        self._is_busy = True
        begun = source.number if source is not None else 0
        self._at(end, Kind.DONE, group.number, begun, *(peer.number for peer in targets))

    def _source(self, group: Group, condition: Condition) -> Peer | None:
        """A live holder that is on; one that has it not any more is found out."""
        for copy in condition.copies:
            peer = self._peer(copy.holder)
            if not peer.is_on(self.now) or standing_of(copy, self.now) is not Standing.LIVE:
                continue
            if group.copies[peer.number].is_there:
                return peer
            if not peer.relays:
                self._failed(peer, group)
        return None

    def _fail(self, group: Group) -> None:
        group.back_off = group.back_off.failed(self.now)
        self._at(group.back_off.until + 1, Kind.RETRY, group.number)

    def _done(self, group: Group, source: int, targets: tuple[int, ...]) -> None:
        if source:
            kept = group.copies.get(source)
            if kept is None or not kept.is_there:  # it died, or all was lost, meanwhile
                self._fail(group)
                return
            self.tally.moved += self.scenario.weight
            self._set_local(group, True)
        if not group.is_local:
            return  # the owner's machine died meanwhile, and is back
        group.back_off = BackOff()
        for number in targets:
            peer = self.peers.get(number)
            if peer is None or peer.gone_at is not None:
                self._fail(group)
            else:
                self.tally.moved += self.scenario.weight
                self._give(group, peer)
        self._consider([group.number])

    def _evict(self, group: Group) -> None:
        """Everybody reachable is asked for a whole proof first; it stays if too few can."""
        if self._prove(group):
            self._set_local(group, False)

    def _prove(self, group: Group) -> bool:
        """Whether all who should have it have it."""
        are_good = True
        for number, kept in list(group.copies.items()):
            peer = self.peers[number]
            copy = self._copy(number, kept)
            if not peer.is_on(self.now) or standing_of(copy, self.now) is not Standing.LIVE:
                continue
            if kept.is_there:
                kept.copy = kept.copy._replace(proved_at=self.now)
            else:
                are_good = False
                if peer.relays:
                    self._lied(peer)
                else:
                    self._failed(peer, group)
        return are_good

    # -- audits -----------------------------------------------------------------------------------

    def _audit_all(self) -> None:
        """Friends only: own devices do not lie here, so that audits would find nothing."""
        for peer in [p for p in self.peers.values() if p.holder.role == "friend"]:
            if peer.is_on(self.now) and peer.groups:
                self._audit(peer)
            vetted = is_vetted(peer.holder.role, peer.record, self.now)
            if vetted != peer.holder.vetted:
                peer.holder = peer.holder._replace(vetted=vetted)
                self._consider(sorted(peer.groups))

    def _audit(self, peer: Peer) -> None:
        copies = [
            Auditable(
                number.to_bytes(4, "big"),
                BUNDLE,
                self._copy(peer.number, self.groups[number].copies[peer.number]),
                self.groups[number].is_local,
            )
            for number in sorted(peer.groups)
        ]
        budget = self._budgets.get(peer.number, Budget(0, 0))
        budget = earned(budget, DAY, bytes_a_second=self.scenario.up)
        audits = to_audit(copies, budget, now=self.now, seed=self.dice.randbytes(8))
        self._budgets[peer.number] = budget.after(audits)
        for audit in audits:
            group = self.groups[int.from_bytes(audit.bundle, "big")]
            kept = group.copies[peer.number]
            if kept.is_there or (peer.relays and audit.method is Method.SAMPLE):
                peer.answered += 1
                kept.copy = kept.copy._replace(audited_at=self.now)
                peer.record = audit_passed(peer.record)
            else:
                self._failed(peer, group)

    def _failed(self, peer: Peer, group: Group) -> None:
        """It has it not."""
        kept = group.copies[peer.number]
        kept.copy = kept.copy._replace(failed=True)
        self._is_found(peer)
        self._at(self.now, Kind.RETRY, group.number)

    def _lied(self, peer: Peer) -> None:
        """It asked another, and the proof was bound to that one: none of its copies counts."""
        peer.holder = peer.holder._replace(lied_at=self.now)
        self._is_found(peer)
        self._at(self.now, Kind.RETRY, *sorted(peer.groups))

    def _is_found(self, peer: Peer) -> None:
        peer.failed += 1
        peer.record = audit_failed(peer.record, self.now)
        peer.holder = peer.holder._replace(vetted=False)
        if peer.keeps == 1.0:
            self.tally.accused += 1
        elif peer.found_at is None:
            peer.found_at = self.now
            assert peer.record.since is not None
            self.tally.found_after.append(self.now - peer.record.since)
