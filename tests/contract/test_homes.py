"""Which providers a store uses: looked at together at its start, and again if they were missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import trio

from artfs.errors import ArtfsError, DeniedError, UnavailableError
from artfs.objects import Capabilities, Home, Provider
from artfs.settings import Settings
from artfs.store.homes import LOOK_AGAIN, Homes
from artfs.volume.shard import Shard

SILENCE = 60.0


class Place:
    """Answers at once, or is silent and then fails; counts how often it was asked."""

    capabilities = Capabilities(adopts=False, durable=False)

    def __init__(self) -> None:
        self.error: ArtfsError | None = None
        self.asked = 0

    async def check(self) -> None:
        self.asked += 1
        if self.error is not None:
            if isinstance(self.error, UnavailableError):
                await anyio.sleep(SILENCE)
            raise self.error


class Places:
    def __init__(self) -> None:
        self.by_url = {url: Place() for url in ("one:", "two:", "three:")}

    def canonical(self, url: str) -> str:
        return url

    def get(self, home: Home) -> Provider:
        return cast(Provider, self.by_url[home.provider])


def homes(places: Places, used: list[Home], **settings: Any) -> Homes:
    """Of a store that has a namespace in each of these homes."""
    known = {serial: SimpleNamespace(home=home) for serial, home in enumerate(used)}
    shard = SimpleNamespace(
        remote=SimpleNamespace(providers=places),
        catalogue=SimpleNamespace(by_serial=known),
        engine=SimpleNamespace(record=lambda *_: None),
    )
    return Homes(cast(Any, "/root"), cast(Shard, shard), Settings.model_validate(settings))


ALL = [Home("one:"), Home("one:", "zstd"), Home("two:"), Home("two:", "zstd"), Home("three:")]


async def test_silent_providers_are_waited_for_together(autojump_clock: trio.testing.MockClock) -> None:
    places = Places()
    places.by_url["one:"].error = places.by_url["two:"].error = UnavailableError("silent")
    store = homes(places, ALL, provider="one:")
    start = trio.current_time()
    await store.look_at_all()
    assert trio.current_time() - start == pytest.approx(SILENCE)
    assert store.missing.keys() == {Home("one:"), Home("one:", "zstd"), Home("two:"), Home("two:", "zstd")}
    assert [place.asked for place in places.by_url.values()] == [1, 1, 1]


async def test_what_was_missing_is_found_again_without_hands(autojump_clock: trio.testing.MockClock) -> None:
    places = Places()
    places.by_url["one:"].error = UnavailableError("silent")
    places.by_url["two:"].error = DeniedError("not for you")
    store = homes(places, ALL)
    await store.look_at_all()  # neither is the settings' own
    assert {str(error) for error in store.missing.values()} == {"silent", "not for you"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.look_again)
        await trio.sleep(1.5 * LOOK_AGAIN + SILENCE)
        places.by_url["one:"].error = places.by_url["two:"].error = None
        await trio.sleep(2 * LOOK_AGAIN + SILENCE)
        assert not store.missing
    await store.use_provider(Home("one:", "zstd"))
    assert places.by_url["one:"].asked == 3


async def test_a_provider_that_nobody_uses_any_more_is_not_missed(autojump_clock: trio.testing.MockClock) -> None:
    places = Places()
    places.by_url["two:"].error = DeniedError("not for you")
    used = [Home("two:")]
    store = homes(places, used)
    await store.look_at_all()
    assert list(store.missing) == used
    store.catalogue.by_serial.clear()
    await store.look_again()
    assert not store.missing


async def test_what_the_settings_name_must_be_in_order_or_silent() -> None:
    places = Places()
    places.by_url["two:"].error = DeniedError("not for you")
    with pytest.raises(DeniedError, match="not for you"):
        await homes(places, [], provider="one:", providers={"user": "two:"}).look_at_all()
