from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, IntegrityError, UsageError
from p2pstore.ids import group_id_of
from p2pstore.keys import (
    MAX_STATE,
    GroupState,
    Role,
    create_group,
    merge,
    new_root,
    newer,
    public_key_of,
    recovery_key,
    recovery_tag,
    verify_chain,
)
from p2pstore.keys import part as part_module
from p2pstore.keys.certificate import revoke
from p2pstore.keys.signed import encode, sign

from .conftest import Family, dice, key, public


def test_a_new_group_has_one_admin_and_one_device_that_reads_its_secrets(family: Family) -> None:
    state = family.founded()
    assert state.order == (1, 1)
    assert state.group_public == public_key_of(family.group_key)
    assert state.group_id == group_id_of(state.group_public)
    assert [c.name for c in state.devices()] == ["laptop"]
    assert state.role_of(public(1)) is Role.DEVICE
    assert state.role_of(public(2)) is Role.ADMIN
    assert state.role_of(public(3)) is Role.STRANGER
    assert state.recovery_tag == recovery_tag(family.root)
    assert state.open(family.device) == state.open_recovery(recovery_key(family.root))


def test_a_state_survives_being_encoded(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    again = GroupState.decode(state.raw)
    assert again.raw == state.raw
    assert again.order == state.order == (1, 2)
    assert again.certificates == state.certificates


def test_a_new_device_reads_everything_and_a_friend_nothing(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    state = family.with_member(state, 4, Role.FRIEND, "anna")
    assert state.open(key(3)) == state.open(family.device)
    assert state.role_of(public(4)) is Role.FRIEND
    assert [c.name for c in state.friends()] == ["anna"]
    for reader in (key(4), key(2), key(9)):
        with pytest.raises(IntegrityError):
            state.open(reader)


def test_a_members_chain_is_its_credential(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    chain = state.chain_of(public(3))
    assert chain is not None
    found = verify_chain(chain, state.group_public, state.revoked, public(3))
    assert found == state.certificate_of(public(3))
    assert state.chain_of(public(9)) is None


def test_a_revoked_device_is_out_and_cannot_read_what_comes(family: Family) -> None:
    before = family.with_member(family.founded(), 3)
    after = family.without(before, 3)
    assert after.role_of(public(3)) is Role.STRANGER
    assert after.revocations == (public(3),)
    assert after.name_of(public(3)) == "nas"
    secrets = after.open(family.device)
    assert secrets.current not in before.open(key(3)).epochs
    assert set(before.open(key(3)).epochs) < set(secrets.epochs)
    assert secrets.dedup == before.open(key(3)).dedup
    with pytest.raises(IntegrityError):
        after.open(key(3))


def test_revoking_a_friend_needs_no_new_epoch(family: Family) -> None:
    before = family.with_member(family.founded(), 4, Role.FRIEND)
    after = family.without(before, 4)
    assert after.role_of(public(4)) is Role.STRANGER
    assert after.open(family.device) == before.open(family.device)


def test_a_revoked_key_never_comes_back(family: Family) -> None:
    before = family.with_member(family.founded(), 3)
    after = family.without(before, 3)
    chain = before.chain_of(public(3))
    assert chain is not None
    with pytest.raises(UsageError, match="revoked"):
        after.certify(public(3), Role.DEVICE, "nas", signer=family.admin, now_ms=9)
    with pytest.raises(UsageError, match="revoked"):
        after.with_member(
            chain,
            signer=family.admin,
            secrets=after.open(family.device),
            now_ms=9,
            random=family.random,
        )
    assert merge(before, after).role_of(public(3)) is Role.STRANGER


def test_who_is_no_admin_changes_nothing(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    for signer in (family.device, key(3), key(9)):
        with pytest.raises(UsageError, match="laptop"):
            state.certify(public(5), Role.DEVICE, "x", signer=signer, now_ms=1)
        with pytest.raises(UsageError):
            family.without(state, 3, signer)


def test_revoking_an_admin_takes_the_words(family: Family) -> None:
    state = family.founded()
    with pytest.raises(UsageError, match="words"):
        family.without(state, 2)
    after = family.without(state, 2, family.group_key)
    assert after.order == (2, 1)
    assert after.role_of(public(2)) is Role.STRANGER
    assert after.role_of(public(1)) is Role.STRANGER  # its certificate came from that admin


def test_words_recover_a_group_without_any_device(family: Family) -> None:
    state = family.with_member(family.with_member(family.founded(), 3), 4, Role.FRIEND, "anna")
    recovered = GroupState.decode(state.raw).recovered(
        family.root,
        device=key(11),
        admin=key(12),
        name="new laptop",
        now_ms=5000,
        random=dice("new"),
        revoke=[public(2), public(1)],
        keep=[public(3), public(4)],
    )
    assert recovered.order == (2, 1)
    assert newer(recovered, state)
    assert recovered.role_of(public(11)) is Role.DEVICE
    assert recovered.role_of(public(12)) is Role.ADMIN
    assert recovered.role_of(public(1)) is Role.STRANGER
    assert recovered.role_of(public(3)) is Role.DEVICE
    assert recovered.role_of(public(4)) is Role.FRIEND
    assert set(state.open(family.device).epochs) < set(recovered.open(key(11)).epochs)
    assert recovered.open(key(3)) == recovered.open(key(11))
    with pytest.raises(IntegrityError):
        recovered.open(family.device)


def test_words_of_another_group_recover_nothing(family: Family) -> None:
    with pytest.raises(UsageError, match="another group"):
        family.founded().recovered(
            new_root(bytes(32)),
            device=key(11),
            admin=key(12),
            name="x",
            now_ms=1,
            random=dice("x"),
        )


def test_what_a_revoked_admin_signs_later_has_no_say(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    stolen = family.with_member(state, 6, name="thief")
    for _ in range(3):
        stolen = family.without(stolen, 6) if stolen.seq == 4 else family.with_member(stolen, 7)
    rescued = state.recovered(
        family.root,
        device=key(11),
        admin=key(12),
        name="new",
        now_ms=9,
        random=dice("rescue"),
        revoke=[public(2)],
        keep=[public(3)],
    )
    both = merge(stolen, rescued)
    assert both.order == rescued.order
    assert both.role_of(public(7)) is Role.STRANGER
    assert both.role_of(public(3)) is Role.DEVICE
    assert both.open(key(3)).current == rescued.open(key(3)).current
    assert merge(both, stolen).raw == both.raw


def _two_branches(family: Family) -> tuple[GroupState, GroupState, GroupState]:
    """One state, changed on two machines that have the admin key (one restored from a backup)."""
    base = family.with_member(family.with_member(family.founded(), 3), 4)
    return base, family.without(base, 3), family.without(base, 4)


def test_two_admins_apart_lose_no_revocation_and_the_next_change_makes_one(family: Family) -> None:
    base, left, right = _two_branches(family)
    both = merge(left, right)
    assert both.raw == merge(right, left).raw == merge(merge(base, right), left).raw
    assert len(both.parts) == 2
    assert both.revoked == {public(3), public(4)}
    epochs = {e for state in (left, right) for e in state.open(family.device).epochs}
    assert set(both.open(family.device).epochs) == epochs
    assert both.wants_new_epoch  # each of the two could read the other branch's epoch
    one = family.with_member(both, 5)
    assert len(one.parts) == 1
    assert one.revoked == both.revoked
    assert one.open(key(5)).current not in epochs
    assert merge(one, left).raw == one.raw


def test_an_older_state_adds_nothing(family: Family) -> None:
    base, left, _ = _two_branches(family)
    assert newer(left, base)
    assert not newer(base, left)
    assert not newer(base, base)
    assert merge(base, left).raw == merge(left, base).raw == left.raw
    assert merge(left, left).raw == left.raw


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from("+-"), st.integers(3, 6), st.booleans()), max_size=7))
def test_merging_never_revives_and_does_not_care_about_order(
    steps: list[tuple[str, int, bool]],
) -> None:
    family = Family()
    states = [family.founded()]
    for what, number, fork in steps:
        state = states[-2 if fork and len(states) > 1 else -1]
        if what == "+" and public(number) not in state.revoked:
            states.append(family.with_member(state, number))
        elif what == "-" and state.role_of(public(number)) is Role.DEVICE:
            states.append(family.without(state, number))
    results = []
    for order in itertools.islice(itertools.permutations(states), 6):
        merged = order[0]
        for state in order[1:]:
            following = merge(merged, state)
            assert following.revoked >= merged.revoked | state.revoked
            merged = following
        results.append(merged)
    assert len({merged.revoked for merged in results}) == 1
    assert len({merged.order for merged in results}) == 1
    revoked = results[0].revoked
    assert all(results[0].role_of(subject) is Role.STRANGER for subject in revoked)
    epochs = {e for state in states for e in state.open(family.device).epochs}
    assert set(results[0].open(family.device).epochs) == epochs


def test_states_of_two_groups_are_not_merged(family: Family) -> None:
    stranger = Family(root=new_root(bytes(32)))
    with pytest.raises(IntegrityError):
        merge(family.founded(), stranger.founded())


def _signed_anew(state: GroupState, by: SigningKey, **change: object) -> bytes:
    """The state's leading part with another clear part, signed by whoever wants to cheat."""
    part = state.parts[0]
    clear = encode(msgspec.structs.replace(part.clear, **change))
    body = msgspec.structs.replace(part.body, clear=clear)
    return encode((sign(part_module.CONTEXT, encode(body), by),))


def test_an_admin_cannot_raise_the_generation(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    grant = msgspec.structs.replace(state.parts[0].grant, generation=2)
    forged = sign(part_module.GRANT_CONTEXT, encode(grant), family.admin)
    with pytest.raises(IntegrityError, match="generation grant"):
        GroupState.decode(_signed_anew(state, family.admin, grant=forged))


def test_a_device_signs_no_state(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    for chain in (state.chain_of(public(3)), state.chain_of(public(2)), b""):
        raw = _signed_anew(state, key(3), signer=public(3), chain=chain, seq=99)
        with pytest.raises((IntegrityError, FormatError)):
            GroupState.decode(raw)


def test_secrets_do_not_move_to_another_clear_part(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    moved = GroupState.decode(_signed_anew(state, family.admin, seq=9))
    with pytest.raises(IntegrityError, match="changed"):  # the clear part stands, signed as it is
        moved.open(family.device)


def test_an_admins_word_against_an_admin_does_not_count(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    chain = state.chain_of(public(2))
    assert chain is not None
    record = revoke(
        family.admin, group=state.group_public, subject=public(2), chain=chain, now_ms=1
    )
    found = GroupState.decode(_signed_anew(state, family.admin, revocations=(record,)))
    assert found.role_of(public(2)) is Role.ADMIN
    assert found.revoked == frozenset()


def test_a_state_of_a_revoked_admin_alone_is_refused(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    record = revoke(
        family.group_key, group=state.group_public, subject=public(2), chain=b"", now_ms=1
    )
    with pytest.raises(IntegrityError, match="revoked admin"):
        GroupState.decode(_signed_anew(state, family.admin, revocations=(record,)))


def test_a_revoked_admin_cannot_push_a_good_part_out(family: Family) -> None:
    state = family.with_member(family.founded(), 3)
    rescued = state.recovered(
        family.root,
        device=key(11),
        admin=key(12),
        name="new",
        now_ms=9,
        random=dice("rescue"),
        revoke=[public(2)],
        keep=[public(3)],
    )
    # The thief lists all that the good part lists, under its public grant, with a higher seq.
    copied = _signed_anew(
        rescued, family.admin, signer=public(2), chain=state.chain_of(public(2)), seq=99
    )
    good, bad = rescued.parts[0], part_module.read_part(msgspec.msgpack.decode(copied)[0])
    both = GroupState._of([bad, good])
    assert both.order == rescued.order
    assert both.open(key(3)) == rescued.open(key(3))


def test_secrets_are_not_shown_in_logs(family: Family) -> None:
    state = family.founded()
    secrets = state.open(family.device)
    shown = repr((state, secrets, secrets.epochs))
    assert repr(secrets.dedup) not in shown
    assert repr(secrets.current.secret) not in shown


STATE = Family().with_member(Family().founded(), 3).raw


@settings(max_examples=60)
@given(st.integers(0, len(STATE) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(place: int, mask: int) -> None:
    changed = bytearray(STATE)
    changed[place] ^= mask
    with pytest.raises((IntegrityError, FormatError)):
        GroupState.decode(bytes(changed))


@settings(max_examples=30)
@given(st.integers(0, len(STATE) - 1), st.binary(max_size=20))
def test_no_cut_or_patched_state_passes(length: int, tail: bytes) -> None:
    with pytest.raises((IntegrityError, FormatError)):
        GroupState.decode(STATE[:length] + (tail if tail != STATE[length:] else b""))


@pytest.mark.parametrize("raw", [b"", b"\x90", b"\xc1", b"\x91" * 100_000, b"\x91" * MAX_STATE])
def test_junk_is_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        GroupState.decode(raw)


def test_a_state_above_the_limit_is_not_parsed() -> None:
    with pytest.raises(FormatError, match="longer"):
        GroupState.decode(bytes(MAX_STATE + 1))


def test_equal_dice_make_equal_states(family: Family) -> None:
    again = create_group(
        family.root,
        device=family.device,
        admin=family.admin,
        name="laptop",
        now_ms=1000,
        random=dice("family"),
    )
    assert again.raw == family.founded().raw
