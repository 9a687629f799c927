"""Settings: strict keys and types, and what a step makes of its dict parameters."""

import json

import pytest

from narrowcast.components.train.run import train_config
from narrowcast.errors import NarrowcastError
from narrowcast.pipelines import parameters

GIVEN = {"epochs": 3, "seed": 1}


def test_a_steps_parameters_become_one_config():
    model = {"hidden": [32], "dropout": 0.25, "settings": {"bottom": [8.0]}}
    config = train_config("dlrm", model, {"patience": 5.0, "weight_decay": 0}, **GIVEN)
    assert (config.epochs, config.seed, config.patience, config.weight_decay) == (3, 1, 5, 0.0)
    assert (config.model.hidden, config.model.head.bottom) == ((32,), (8,))


@pytest.mark.parametrize(
    ("model", "training", "said"),
    [
        ({"hiden": [3]}, {}, "parameter 'model': unknown key 'hiden'; did you mean 'hidden'"),
        ({"hidden": 3}, {}, "parameter 'model': hidden must be a list"),
        ({"backbone": "dlrm"}, {}, "'backbone' is a parameter of its own"),
        ({"settings": {"hidden": [3]}}, {}, "'hidden' is a setting of its own; set model.hidden"),
        ({"settings": {"botom": [3]}}, {}, "settings of the model 'dlrm': unknown key 'botom'; did you mean 'bottom'"),
        ({"history": "dim"}, {}, "did you mean 'din'"),
        ({}, {"patiense": 1}, "parameter 'training': unknown key 'patiense'; did you mean 'patience'"),
        ({}, {"epochs": 1}, "'epochs' is a parameter of its own"),
        ({}, {"patience": "two"}, "parameter 'training': patience must be int, not 'two'"),
    ],
)
def test_a_bad_setting_is_one_sentence(model, training, said):
    with pytest.raises(NarrowcastError, match=said):
        train_config("dlrm", model, training, **GIVEN)


def test_a_model_is_saved_alike_however_its_numbers_were_given():
    saved = set()
    for one in (1, 1.0):
        model = {"settings": {"bottom": [one]}, "history": "append", "history_settings": {"num_layers": one}}
        saved.add(json.dumps(train_config("dlrm", model, {}, **GIVEN).model.to_json()))
    assert len(saved) == 1


def test_the_command_line_reaches_into_mappings(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("schema: s.yaml\ndata_version: v\nmodel: {hidden: [8], settings: {mask: none}}\n")
    values = parameters.load(path, {"model.settings.mask": "topk", "training.schedule": "cosine", "epochs": "2"})
    assert values["model"] == {"hidden": [8], "settings": {"mask": "topk"}}
    assert (values["training"], values["epochs"]) == ({"schedule": "cosine"}, 2)
    with pytest.raises(NarrowcastError, match=r"--set epochs\.most: 'epochs' is no mapping"):
        parameters.load(path, {"epochs": "3", "epochs.most": "2"})
