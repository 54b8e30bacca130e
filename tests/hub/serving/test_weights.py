"""One set of weights at a time: who waits for whom."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from adapterhub.hub.serving.weights import OWN, Weights


async def yes() -> bool:
    return True


class Desk:
    """Writes down what happens; a user stays until told to leave."""

    def __init__(self) -> None:
        self.weights = Weights()
        self.weights.current = OWN
        self.log: list[str] = []

    def changer(self, name: str) -> Callable[[], Awaitable[None]]:
        async def change() -> None:
            assert self.weights.running == 0
            await asyncio.sleep(0)
            self.log.append(f"put {name}")

        return change

    async def use(self, name: str, leave: asyncio.Event) -> None:
        async with self.weights.using(name, yes, self.changer(name)):
            self.log.append(f"use {name}")
            await leave.wait()
        self.log.append(f"left {name}")


def test_those_of_one_set_run_together_and_another_waits_for_all() -> None:
    async def story() -> list[str]:
        desk, leave = Desk(), [asyncio.Event() for _ in range(4)]
        users = [asyncio.create_task(desk.use(name, leave[number])) for number, name in enumerate((OWN, OWN, "a", OWN))]
        await settle()
        leave[0].set()
        await settle()
        assert desk.log == [f"use {OWN}", f"use {OWN}", f"left {OWN}"]  # the last came after "a", and waits its turn
        leave[1].set()
        await settle()
        assert desk.log[3:] == [f"left {OWN}", "put a", "use a"]
        leave[2].set()
        leave[3].set()
        await asyncio.gather(*users)
        return desk.log[6:]

    assert asyncio.run(story()) == ["left a", f"put {OWN}", f"use {OWN}", f"left {OWN}"]


def test_a_change_that_failed_leaves_nobody_sure_and_is_tried_again() -> None:
    async def story() -> None:
        desk, gone = Desk(), asyncio.Event()
        gone.set()

        async def fails() -> None:
            raise RuntimeError("half of it")

        with pytest.raises(RuntimeError):
            async with desk.weights.using("a", yes, fails):
                raise AssertionError("never entered")
        assert desk.weights.current is None
        await desk.use(OWN, gone)
        assert desk.log[0] == f"put {OWN}"

    asyncio.run(story())


def test_a_change_goes_on_when_who_asked_is_gone() -> None:
    async def story() -> None:
        desk, begun, go_on = Desk(), asyncio.Event(), asyncio.Event()

        async def change() -> None:
            begun.set()
            await go_on.wait()

        async def ask() -> None:
            async with desk.weights.using("a", yes, change):
                desk.log.append("who asked is gone, and went on")

        asking = asyncio.create_task(ask())
        await begun.wait()
        asking.cancel()
        await settle()
        assert not asking.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (desk.weights.current, desk.weights.running, desk.log) == ("a", 0, [])

    asyncio.run(story())


def test_weights_that_are_gone_are_put_in_again() -> None:
    async def story() -> list[str]:
        desk, gone = Desk(), asyncio.Event()
        gone.set()
        await desk.use("a", gone)
        await desk.use("a", gone)

        async def no() -> bool:
            return False

        async with desk.weights.using("a", no, desk.changer("a")):
            pass
        return [line for line in desk.log if line.startswith("put")]

    assert asyncio.run(story()) == ["put a", "put a"]


async def settle() -> Any:
    for _ in range(20):
        await asyncio.sleep(0)
