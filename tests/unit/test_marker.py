"""The marker of a provider's place: whose it is, and which of two hosts may go on."""

from __future__ import annotations

import json

import pytest

from artfs.errors import BusyError, DamagedError, ExistsError, FormatError, InvalidError
from artfs.objects import marker
from artfs.objects.memory import MemoryProvider

A, B = "11111111-aaaa", "22222222-bbbb"


@pytest.fixture
def place() -> MemoryProvider:
    return MemoryProvider()


async def test_an_empty_place_is_claimed_once(place: MemoryProvider) -> None:
    assert await marker.read(place) is None
    await marker.claim(place, A, 0)
    found = await marker.read(place)
    assert found is not None
    assert (found.uuid, found.generation, found.format) == (A, 0, marker.FORMAT)
    assert (await place.head(marker.NAME)).size == marker.SIZE
    await marker.claim(place, A, 0)
    assert await marker.read(place) == found, "claimed again is not written again"
    await marker.check(place, A, 0)


async def test_a_place_that_was_ours_and_is_empty_is_not_claimed_again(place: MemoryProvider) -> None:
    with pytest.raises(InvalidError, match="memory: is empty, but this store keeps objects there"):
        await marker.claim(place, A, 0, known=True)
    assert await marker.read(place) is None
    await marker.claim(place, A, 0)
    await marker.claim(place, A, 0, known=True)


async def test_a_place_of_another_store_is_refused(place: MemoryProvider) -> None:
    await marker.claim(place, A, 0)
    for judge in (marker.claim, marker.check):
        with pytest.raises(InvalidError, match=f"{A}.*another prefix.*artfs recover memory:"):
            await judge(place, B, 5)
    found = await marker.read(place)
    assert found is not None
    assert found.uuid == A


@pytest.mark.parametrize("name", ["grid/box/shared/ns-1/00000000", "meta/0000000000000001", "upload/x"])
async def test_a_place_of_nobody_knows_whom_is_refused(place: MemoryProvider, name: str) -> None:
    await place.put(name, b"x")
    with pytest.raises(InvalidError, match=name):
        await marker.claim(place, A, 0)
    assert await marker.read(place) is None


async def test_other_objects_are_in_nobodys_way(place: MemoryProvider) -> None:
    await place.put("photos/1.jpg", b"x")
    await marker.claim(place, A, 0)


async def test_of_two_that_claim_at_once_one_is_refused(place: MemoryProvider) -> None:
    class Late(MemoryProvider):
        """Another store is there between the look and the creation."""

        async def create(self, name: str, data: bytes) -> None:
            await self.put(name, marker.Marker(B, 0, 0).pack())
            raise ExistsError(name)

    with pytest.raises(InvalidError, match=B):
        await marker.claim(Late(), A, 0)


async def test_a_claim_whose_answer_was_lost_is_ours(place: MemoryProvider) -> None:
    class Late(MemoryProvider):
        async def create(self, name: str, data: bytes) -> None:
            await self.put(name, data)
            raise ExistsError(name)

    await marker.claim(Late(), A, 0)


async def test_the_host_that_was_given_up_is_refused(place: MemoryProvider) -> None:
    await marker.claim(place, A, 0)
    mine = await marker.take_over(place, A, 0)
    assert mine > 0
    await marker.check(place, A, mine)
    for judge in (marker.claim, marker.check):
        with pytest.raises(BusyError, match="recovered elsewhere"):
            await judge(place, A, 0)
    found = await marker.read(place)
    assert found is not None
    assert found.generation == mine


async def test_of_two_recoveries_the_higher_one_wins_in_the_end(place: MemoryProvider) -> None:
    await marker.claim(place, A, 0)
    high = 2 * marker.STEP
    low = await marker.take_over(place, A, 0)  # the last to write, though the lower
    assert low < high
    await marker.check(place, A, high)
    with pytest.raises(BusyError):
        await marker.check(place, A, low)


async def test_a_recovery_never_takes_a_generation_that_was(place: MemoryProvider) -> None:
    await marker.claim(place, A, 0)
    taken = [await marker.take_over(place, A, 0) for _ in range(20)]
    assert taken == sorted(set(taken))
    with pytest.raises(DamagedError, match=B):
        await marker.take_over(place, B, 0)


async def test_a_marker_that_has_gone_stops_the_store(place: MemoryProvider) -> None:
    with pytest.raises(InvalidError, match="gone"):
        await marker.check(place, A, 0)


async def test_a_newer_format_and_nonsense(place: MemoryProvider) -> None:
    fields = {"uuid": A, "generation": 0, "created": 1, "format": marker.FORMAT + 1}
    await place.put(marker.NAME, json.dumps(fields).encode().ljust(marker.SIZE))
    for judge in (marker.claim, marker.check):
        with pytest.raises(FormatError, match="upgrade"):
            await judge(place, A, 0)
    for nonsense in (b"", b"x" * marker.SIZE, b"{}".ljust(marker.SIZE)):
        await place.put(marker.NAME, nonsense)
        with pytest.raises(DamagedError):
            await marker.claim(place, A, 0)
