import pytest

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.parameters import load


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("schema: ml_100k\ndata_version: abc\nepochs: 3\n")
    return path


def test_defaults_file_and_changes_in_this_order(params):
    values = load(params, {"width": "8", "budget": "200KB"})
    assert (values["epochs"], values["width"], values["budget"], values["seed"]) == (3, 8, "200KB", 0)
    assert load(params, {"learning_rate": "1e-3"})["learning_rate"] == 0.001
    assert load(params, {"endpoint": "@home"})["endpoint"] == "@home"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epoch": "3"}, "unknown parameter 'epoch'; did you mean 'epochs'"),
        ({"epochs": "many"}, "'epochs' must be int, not 'many'"),
        ({"epochs": "2.5"}, "'epochs' must be int"),
        ({"seed": "true"}, "'seed' must be int"),
        ({"git_commit": "x"}, "unknown parameter 'git_commit'"),
        ({"max_latency_ms": ".inf"}, "'max_latency_ms' must be a finite number"),
        ({"max_auc_loss": "nan"}, "'max_auc_loss' must be a finite number"),
        ({"epochs": "1: 2: 3"}, "'epochs' must be int, not '1: 2: 3'"),
    ],
)
def test_bad_parameters_are_one_sentence(params, changes, sentence):
    with pytest.raises(NarrowcastError, match=sentence):
        load(params, changes)


def test_a_missing_parameter_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("schema: ml_100k\n")
    with pytest.raises(NarrowcastError, match="'data_version' is missing"):
        load(path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_a_file_that_is_no_parameter_file(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(NarrowcastError, match=r"params\.yaml"):
        load(path)


def test_no_file(tmp_path):
    with pytest.raises(NarrowcastError, match="does not exist"):
        load(tmp_path / "params.yaml")
