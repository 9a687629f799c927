import pytest

from narrowcast.errors import NarrowcastError
from narrowcast.pipelines.parameters import load, refuse_early


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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "deepmf"}, "no model named 'deepmf': did you mean 'deepfm'"),
        ({"backbone": "adrec", "model.settings.attention_width": "9"}, "attention_width is 9: give a multiple"),
        ({"backbone": "finalmlp", "model.settings.num_heads": "3"}, "num_heads of finalmlp is 3, which"),
        ({"model.history": "append", "model.history_settings.model_width": "5"}, "model_width is 5, which 2 heads"),
        ({"training.schedule": "cosin"}, "schedule is 'cosin'; did you mean 'cosine'"),
        ({"batch_size": "0"}, "batch_size is 0"),
        ({"inner_width": "-1"}, "inner_width is -1"),
        ({"width": "257"}, "width 257 must be 1 to 256"),
        ({"method": "pepp"}, "did you mean 'pep'"),
        ({"bits": "7"}, "bits is 7"),
        ({"num_trials": "99"}, "set num_trials to at most"),
        ({"budget": "2/1"}, "budget '2/1' is neither a size nor a ratio"),
        ({"online_store": "localhost:6379"}, "it is no Redis address"),
    ],
)
def test_what_no_data_could_make_right_is_refused_before_any_step(params, changes, sentence):
    values = load(params, changes)
    with pytest.raises(NarrowcastError, match=sentence):
        refuse_early(values)


def test_what_may_be_right_passes(params):
    refuse_early(load(params, {"model.settings": "{}", "training.min_workers": "1", "inner_width": "32"}))


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
