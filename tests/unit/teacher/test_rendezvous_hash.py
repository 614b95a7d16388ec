from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from distill_dist.teacher.rendezvous_hash import owners, rank_hosts

HOSTS = [f"teacher{number}" for number in range(8)]
KEYS = [hashlib.blake2b(bytes([a, b]), digest_size=16).digest() for a in range(16) for b in range(256)]


def first_owners(hosts: list[str]) -> list[str]:
    return [hosts[place] for place in rank_hosts(KEYS, hosts)[:, 0]]


def assert_even(counts: Counter[str], names: list[str]) -> None:
    """Within five standard deviations of a binomial share: one in two million is further out by chance."""
    total, share = sum(counts.values()), 1 / len(names)
    assert set(counts) <= set(names)
    for name in names:
        assert abs(counts[name] - total * share) < 5 * (total * share * (1 - share)) ** 0.5, (name, counts)


def test_every_host_owns_an_even_share() -> None:
    assert_even(Counter(first_owners(HOSTS)), HOSTS)


def test_only_a_lost_hosts_rows_move_and_they_spread_evenly() -> None:
    before = first_owners(HOSTS)
    for lost in HOSTS:
        left = [host for host in HOSTS if host != lost]
        after = first_owners(left)
        assert [b for b, a in zip(before, after, strict=True) if b != a] == [b for b in before if b == lost]
        assert_even(Counter(a for b, a in zip(before, after, strict=True) if b == lost), left)


def test_the_next_in_order_takes_over_whoever_is_lost() -> None:
    for key in KEYS[:50]:
        order = owners(key, HOSTS)
        assert sorted(order) == HOSTS
        for lost in HOSTS:
            assert owners(key, [host for host in HOSTS if host != lost]) == [h for h in order if h != lost]


def test_the_order_of_names_does_not_matter() -> None:
    for key in KEYS[:50]:
        assert owners(key, HOSTS[::-1]) == owners(key, HOSTS)


def test_many_keys_at_once_have_the_orders_of_each() -> None:
    ranks = rank_hosts(KEYS[:50], HOSTS)
    assert [[HOSTS[place] for place in row] for row in ranks] == [owners(key, HOSTS) for key in KEYS[:50]]
    assert len({tuple(row) for row in ranks.tolist()}) > 45


def test_other_processes_agree() -> None:
    """Written down from another process: a change here moves every stored row to another host."""
    assert owners(b"sixteen bytes it", ["a", "b", "c", "d", "e"]) == ["d", "e", "a", "c", "b"]


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distinct names, got \['a', 'b', 'a'\]"):
        owners(KEYS[0], ["a", "b", "a"])
