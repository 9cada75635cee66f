"""A model of a corpus: what is known of its sources is in its record and on its card."""

from __future__ import annotations

import pytest

from evenfield.data_pipelines.corpus.config import CorpusConfig
from evenfield.data_pipelines.corpus.corpus import build_corpus
from evenfield.model_zoo import BadModelError, load_model, publish
from evenfield.pretrain.run import pretrain


def test_record_card_and_publication_follow_the_sources(run_config, emt_file, tmp_path):
    levels = {"columns": {"level_of_theory": "level"}, "files": emt_file.name}
    corpus = {
        "name": "metals",
        "level_details": {"EMT": "effective medium theory", "other": "in no source"},
        "allow_unpublishable": True,
        "sources": {
            "free": {**levels, "licence": "CC-BY-4.0", "citation": "B. Author, 2021"},
            "closed": {**levels, "licence": "GPL-3.0-only", "without_elements": ["Pt"]},
        },
    }
    config = CorpusConfig.model_validate(corpus)
    info = build_corpus(config, tmp_path / "metals", folder=emt_file.parent, workers=1)
    assert info is not None

    pretrain(run_config(data=str(tmp_path / "metals"), licence="CC0-1.0", max_steps=2))

    model = tmp_path / "run" / "model"
    _, record = load_model(model)
    assert record.level_details == {"EMT": "effective medium theory"}
    (data,) = record.training_data
    assert [source.name for source in data.sources] == ["free", "closed"]
    assert sum(source.num_structures for source in data.sources) == data.num_structures
    card = (model / "README.md").read_text()
    assert "- free: B. Author, 2021 (CC-BY-4.0)" in card
    assert "GPL-3.0-only (**not publishable**)" in card
    with pytest.raises(BadModelError, match="training data whose licences allow a public model"):
        publish(model, "me/metals", tmp_path / "hub")
