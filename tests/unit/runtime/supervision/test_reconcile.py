from __future__ import annotations

import pytest

from tokenweir.core.errors import (
    EngineError,
    EngineRestartedError,
    InputError,
    ModelNotLoadedError,
    NoMemoryError,
)
from tokenweir.ports.inference import LoadSpec, ModelCard
from tokenweir.runtime.supervision.reconcile import (
    Absent,
    Inventory,
    Loaded,
    Loading,
    Model,
    Refused,
    Suspect,
)


def card(name: str, revision: str = "r") -> ModelCard:
    return ModelCard(
        name=name,
        path=f"/{name}",
        revision=revision,
        architecture="sim",
        context_tokens=10,
        vocabulary=10,
        weights_bytes=5,
        kv_bytes_per_token=1,
    )


def put(inventory: Inventory, name: str, revision: str = "r") -> Model:
    return inventory.put(LoadSpec(name=name, path=f"/{name}"), card(name, revision))


def names(models: list[Model]) -> list[str]:
    return [model.name for model in models]


def loaded(inventory: Inventory, name: str, epoch: int) -> Model:
    model = put(inventory, name)
    inventory.loading(model, epoch)
    inventory.loaded(model, epoch, card(name, "confirmed"))
    return model


def test_what_is_wanted_and_not_there_is_missing() -> None:
    inventory = Inventory()
    a, b = loaded(inventory, "a", 1), put(inventory, "b")
    assert names(inventory.missing(1)) == ["b"]
    inventory.loading(b, 1)
    assert names(inventory.missing(1)) == []
    assert a.in_epoch(1)
    assert not a.in_epoch(2)
    assert a.card.revision == "confirmed"


def test_after_a_restart_all_that_was_there_is_missing_again() -> None:
    inventory = Inventory()
    a, b = loaded(inventory, "a", 1), put(inventory, "b")
    inventory.loading(b, 1)
    a.answered = True
    inventory.lost(1)
    assert names(inventory.missing(2)) == ["a", "b"]
    assert a.presence == Absent()
    assert not a.answered


def test_what_was_put_away_comes_back_only_when_wanted() -> None:
    inventory = Inventory()
    a = loaded(inventory, "a", 1)
    inventory.released(a)
    assert names(inventory.missing(2)) == []
    a.wanted = True
    assert names(inventory.missing(2)) == ["a"]


def test_the_loss_of_another_process_changes_nothing() -> None:
    inventory = Inventory()
    a = loaded(inventory, "a", 2)
    inventory.lost(1)
    assert a.presence == Loaded(epoch=2)


def test_an_answer_that_comes_too_late_counts_for_nothing() -> None:
    inventory = Inventory()
    a = put(inventory, "a")
    inventory.loading(a, 1)
    inventory.lost(1)
    inventory.loading(a, 2)
    inventory.loaded(a, 1, card("a", "old"))
    inventory.refused(a, 1, InputError("old"))
    assert a.presence == Loading(epoch=2)


def test_a_model_that_ends_the_process_twice_is_not_loaded_a_third_time_by_itself() -> None:
    inventory = Inventory()
    a = put(inventory, "a")
    for epoch in (1, 2):
        assert names(inventory.missing(epoch)) == ["a"]
        inventory.loading(a, epoch)
        inventory.lost(epoch)
    assert a.presence == Suspect(crashes=2)
    assert inventory.missing(3) == []
    assert isinstance(a.refusal(), EngineError)
    put(inventory, "a")
    assert names(inventory.missing(3)) == ["a"]
    inventory.loading(a, 3)
    inventory.lost(3)
    assert names(inventory.missing(4)) == ["a"], "an explicit load starts the count anew"


def test_a_load_that_worked_forgives_the_crash_before_it() -> None:
    inventory = Inventory()
    a = put(inventory, "a")
    inventory.loading(a, 1)
    inventory.lost(1)
    inventory.loading(a, 2)
    inventory.loaded(a, 2, card("a"))
    inventory.lost(2)
    inventory.loading(a, 3)
    inventory.lost(3)
    assert names(inventory.missing(4)) == ["a"]


def test_what_the_engine_refused_stays_refused_unless_it_may_succeed_later() -> None:
    inventory = Inventory()
    a, b = put(inventory, "a"), put(inventory, "b")
    inventory.loading(a, 1)
    inventory.loading(b, 1)
    error = NoMemoryError("too large")
    inventory.refused(a, 1, error)
    inventory.refused(b, 1, EngineRestartedError("gone"))
    assert a.presence == Refused(error=error)
    assert a.refusal() is error
    assert names(inventory.missing(1)) == ["b"]


def test_another_revision_or_way_of_loading_is_another_model() -> None:
    inventory = Inventory()
    a = loaded(inventory, "a", 1)
    a.card = card("a")
    assert put(inventory, "a") is a
    assert put(inventory, "a", "other") is not a
    assert inventory.get("a").presence == Absent()


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    inventory = Inventory()
    put(inventory, "a")
    put(inventory, "b")
    inventory.forget("b")
    with pytest.raises(ModelNotLoadedError, match="'x'; known models: 'a'"):
        inventory.get("x")
    assert "a" in inventory
    assert "b" not in inventory
