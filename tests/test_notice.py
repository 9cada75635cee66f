"""NOTICE: written from the recipes of the training data."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from evenfield.core.settings import load_settings, recipes_of
from evenfield.data_pipelines.corpus.config import CorpusConfig

from house import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "docs" / "write_notice.py"
    spec = importlib.util.spec_from_file_location("write_notice", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_file_is_up_to_date(script: ModuleType) -> None:
    assert script.FILE.read_text() == script.notice(), "run: python docs/write_notice.py"


def test_every_source_of_every_corpus_is_named_with_its_licence(script: ModuleType) -> None:
    # lines are broken where they are full
    text = " ".join(script.FILE.read_text().split())
    recipes = list(recipes_of(CorpusConfig).glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        for name, source in load_settings(CorpusConfig, recipe, []).sources.items():
            own = text.split(f"- {name}: ")[1].split(" - ")[0]
            assert f"Licence: {source.licence}." in own
            assert source.url is None or source.url in own
            assert source.citation is None or " ".join(source.citation.split()) in own
