import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmark import BenchmarkConfig
from compare_methods import CompareConfig
from compute_targets import ComputeTargetsConfig
from distill import DistillConfig
from evaluate import EvaluateConfig
from gradient_bias import GradientBiasConfig
from ssdd_hub.cli import main
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.settings import parse_config, to_dict, to_yaml
from ssdd_hub.teachers.teacher import TeacherSettings
from studies.methods_jobs import Layers
from time_to_quality import TimeToQualityConfig
from train_teacher import TrainTeacherConfig

RECIPES = Path(__file__).parents[2] / "recipes"
# Those of `accelerate launch` are settings of no recipe.
CONFIGS = sorted(path for path in (RECIPES / "configs").rglob("*.yaml") if path.parent.name != "accelerate")


@pytest.fixture
def parse(tmp_path):
    """Reads YAML texts as `--config` files, in order, and a command line after them."""

    def parse(*argv, files=("",), recipe=DistillConfig, **options):
        paths = [tmp_path / f"{number}.yaml" for number in range(len(files))]
        for path, text in zip(paths, files, strict=True):
            path.write_text(text)
        given = [word for path in paths[1:] for word in ("--config", str(path))]
        # The first file is the recipe's default unless there are others.
        given = ["--config", str(paths[0]), *given] if given else []
        return parse_config(recipe, paths[0], [*given, *argv], description="A recipe.", **options)

    return parse


CLASSES = {
    "distill": DistillConfig,
    "train_teacher": TrainTeacherConfig,
    "compute_targets": ComputeTargetsConfig,
    "evaluate": EvaluateConfig,
    "gradient_bias": GradientBiasConfig,
    "benchmark": BenchmarkConfig,
    "time_to_quality": TimeToQualityConfig,
    "compare_methods": CompareConfig,
}
# Names that may mislead, and one of which nothing else is known.
RECIPE_OF = {
    **{"cifar100_small": "distill", "cifar100_small_teacher": "train_teacher", "teacher": "train_teacher"},
    **{
        "cifar100_small_evaluation": "evaluate",
        "cifar100_rank": "evaluate",
        "evaluate": "evaluate",
        "smoke": "distill",
        "digits": "distill",
    },
}


def problems(parse, *argv, **options):
    with pytest.raises(SettingsError) as caught:
        parse(*argv, **options)
    return caught.value.problems


# What ships


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_shipped_config_is_valid_and_says_how_it_is_run(path):
    head = "".join(line for line in path.read_text().splitlines()[:10] if line.startswith("#"))
    recipe = re.search(r"accelerate launch recipes/(\w+)\.py", head)
    assert recipe and (RECIPES / f"{recipe[1]}.py").exists()
    assert to_dict(parse_config(CLASSES[recipe[1]], path, []))["seed"] == 0
    assert recipe[1] == RECIPE_OF.get(path.stem, recipe[1])
    if recipe[1] == "compare_methods":
        Layers(parse_config(CompareConfig, path, [])).check()


def test_there_are_shipped_configs():
    assert RECIPE_OF.keys() <= {path.stem for path in CONFIGS}


# Where settings come from


def test_without_any_setting_the_defaults_of_the_dataclasses_hold(parse):
    assert parse() == DistillConfig()


def test_the_command_line_wins_over_yaml_and_yaml_over_the_defaults(parse):
    config = parse("--pool.size", "1", "--pool.size=3", files=["pool: {size: 2, max_age: 7}"])
    assert (config.pool.size, config.pool.max_age, config.pool.learning_rate) == (3, 7, 0.1)


def test_of_several_files_the_later_wins_and_the_default_file_is_not_read(parse, tmp_path):
    config = parse(files=["pool: {size: 2, max_age: 7}", "pool: {size: 4}"])
    assert (config.pool.size, config.pool.max_age) == (4, 7)
    (tmp_path / "default.yaml").write_text("seed: 9")
    config = parse_config(DistillConfig, tmp_path / "default.yaml", ["--config", str(tmp_path / "1.yaml")])
    assert (config.seed, config.pool.size) == (0, 4)


@pytest.mark.parametrize(
    "argv", [["--objective", "vicreg"], ["--objective=vicreg"], ["--teacher-training.objective", "vicreg"]]
)
def test_a_setting_may_have_a_short_name(parse, argv):
    assert parse(*argv, recipe=TrainTeacherConfig).teacher_training.objective == "vicreg"


def test_a_short_name_is_shown_needs_a_value_and_belongs_to_its_recipe(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--help", recipe=TrainTeacherConfig)
    assert "--objective is short for --teacher-training.objective." in " ".join(capsys.readouterr().out.split())
    assert problems(parse, "--objective", "--seed", "1", recipe=TrainTeacherConfig) == ["--objective needs a value"]
    assert (
        "objective is not a setting; the nearest is teacher_training.objective"
        in problems(parse, "--objective", "x")[0]
    )


def test_a_teacher_is_trained_from_fresh_weights_and_its_folder_is_named_after_data_and_objective(parse):
    config = parse("--data.name", "a/photos", "--objective", "byol", recipe=TrainTeacherConfig)
    assert config.output == "runs/photos-byol"
    assert (
        "trains a teacher from fresh weights" in problems(parse, "--teacher.pretrained", recipe=TrainTeacherConfig)[0]
    )


@pytest.mark.parametrize("name", ["image-size", "image_size"])
def test_names_are_written_with_dashes_or_underscores_and_values_with_or_without_an_equals_sign(parse, name):
    assert parse(f"--data.{name}", "32") == parse(f"--data.{name}=32") == parse(files=[f"data: {{{name}: 32}}"])
    assert parse(f"--data.{name}", "32").data.image_size == 32


@pytest.mark.parametrize("argv", [["--targets.refresh"], ["--targets.refresh", "true"], ["--targets.refresh=true"]])
def test_a_switch_is_on_with_or_without_a_value_and_can_be_turned_off(parse, argv):
    assert parse(*argv, "--seed", "1").targets.refresh is True
    assert (
        parse("--pool.warm-up", "false").pool.warm_up is parse(files=["pool: {warm_up: false}"]).pool.warm_up is False
    )


def test_a_value_may_be_negative_hold_an_equals_sign_or_begin_with_dashes(parse):
    assert parse("--seed", "-3").seed == -3
    assert parse("--data.name", "a=b").data.name == "a=b"
    assert parse("--data.name=--b").data.name == "--b"


def test_null_takes_back_what_a_file_sets(parse):
    assert parse("--data.image-size", "null", files=["data: {image_size: 32}"]).data.image_size is None


# What the settings that are given state of others


def stating(**stated):
    return lambda values: stated


def test_what_is_stated_comes_between_the_defaults_and_what_is_given(parse):
    stated = stating(seed=4, pool={"size": 5, "max_age": 6, "warm_up": False}, output="runs/stated")
    config = parse("--pool.size", "7", files=["pool: {max_age: 8}"], stated=stated)
    assert (config.pool.size, config.pool.max_age, config.pool.warm_up, config.seed) == (7, 8, False, 4)
    assert config.output == "runs/stated" and config.pool.learning_rate == DistillConfig().pool.learning_rate
    # Of several files each is more than what is stated.
    config = parse(files=["pool: {size: 2}", "pool: {max_age: 3}"], stated=stated)
    assert (config.pool.size, config.pool.max_age, config.seed) == (2, 3, 4)


def test_only_the_settings_that_are_given_are_handed_on(parse):
    found = []
    parse("--seed", "2", "--data.name=a", files=["pool: {size: 3}\nseed: 1"], stated=lambda v: found.append(v) or {})
    assert found == [{"pool.size": 3, "seed": 2, "data.name": "a"}]


def test_a_stated_dictionary_is_replaced_as_a_whole_or_changed_by_one_entry(parse):
    stated = stating(teacher={"model_args": {"channels": [4, 8], "stem": {"size": 2}}, "backbone": "x"})
    assert parse("--teacher.model-args", "{depth: 3}", stated=stated).teacher.model_args == {"depth": 3}
    changed = parse("--teacher.model-args.stem.size", "3", stated=stated).teacher
    assert changed.model_args == {"channels": [4, 8], "stem": {"size": 3}} and changed.backbone == "x"


def test_a_stated_nothing_is_a_value_and_takes_back_no_given_one(parse):
    stated = stating(data={"image_size": None, "revision": None}, pool=None)
    assert parse("--data.image-size", "32", stated=stated).data.image_size == 32
    assert parse(stated=stated) == DistillConfig()


def test_what_is_stated_wrongly_is_reported_by_its_name(parse):
    stated = stating(pool={"sise": 2, "size": "many"}, teachers={"backbone": "x"}, data=3)
    found = problems(parse, "--pool.max-age", "0", stated=stated)
    assert found == [
        "pool.sise is not a setting; the nearest is pool.size (--help all lists them)",
        "pool.size must be of type int, got 'many'",
        "teachers.backbone is not a setting; the nearest is teacher.backbone or selection.backbone "
        "(--help all lists them)",
        "data is a section; give its settings one by one, such as data.name",
        "pool.max_age must be at least 1, got 0",
    ]


def test_what_is_stated_out_of_range_is_refused_unless_something_else_is_given(parse):
    stated = stating(pool={"size": 0})
    assert problems(parse, stated=stated) == ["pool.size must be at least 1, got 0"]
    assert parse("--pool.size", "2", stated=stated).pool.size == 2
    # Nothing follows from settings that cannot be read.
    found = problems(parse, "--seed", "x", stated=lambda values: pytest.fail("it was called"))
    assert found == ["seed must be of type int, got 'x'"]


def test_what_is_stated_is_printed_and_has_its_own_errors(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--print-config", stated=stating(pool={"size": 5}))
    assert yaml.safe_load(capsys.readouterr().out)["pool"]["size"] == 5

    def fails(values):
        raise InputError("there is no such set")

    with pytest.raises(InputError, match="there is no such set"):
        parse(stated=fails)


# YAML


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.1e-3", "1.0e-04", ".1e-3", "0.0001"])
def test_every_way_to_write_a_number_is_a_number_also_inside_a_dictionary(parse, text):
    config = parse(files=[f"teacher_training: {{learning_rate: {text}, view_args: {{cj_bright: {text}}}}}"])
    assert config.teacher_training.learning_rate == config.teacher_training.view_args["cj_bright"] == 1e-4


def test_words_that_look_like_something_else_stay_words(parse):
    config = parse(files=["run: {mixed_precision: no}\ndata: {name: a/b, split: 2020-01-01, revision: 12e45ab}"])
    assert (config.run.mixed_precision, config.data.split, config.data.revision) == ("no", "2020-01-01", "12e45ab")
    config = parse(files=["teacher: {model_args: {a: '12', b: 'null', c: 1, d: no}}"])
    assert config.teacher.model_args == {"a": "12", "b": "null", "c": 1, "d": "no"}
    for revision in ("'0123'", "0123", "1:30", "1_0"):
        assert parse(files=[f"data: {{name: a/b, revision: {revision}}}"]).data.revision == revision.strip("'")
    assert problems(parse, files=["data: {revision: 123, name: null}"]) == [
        "data.revision must be of type str | None, got 123: put it in quotes",
        "data.name must be of type str, got None: put it in quotes",
    ]


def test_an_empty_file_and_an_empty_section_change_nothing(parse):
    assert parse(files=["# only a comment"]) == parse(files=["pool:\n  # size: 2\n"]) == DistillConfig()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "cannot be read as YAML"),
        ("\tpool: 1", "cannot be read as YAML"),
        ("seed: 1\nseed: 2", "'seed' stands there twice"),
        ("pool: {size: 1, size: 2}", "'size' stands there twice"),
        ("- seed", "must map names to settings, got a list"),
        ("seed", "must map names to settings, got a str"),
        ("0", "must map names to settings, got a int"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_refused(parse, text, problem):
    with pytest.raises(InputError, match=problem):
        parse(files=[text])


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        parse_config(DistillConfig, tmp_path / "a.yaml", [])
    with pytest.raises(InputError, match="--config /no/such.yaml cannot be read as YAML: .*No such file"):
        parse_config(DistillConfig, Path("/no/default.yaml"), ["--config", "/no/such.yaml"])


def test_yaml_runs_no_code(parse, tmp_path):
    mark = tmp_path / "ran"
    for tag in ("python/object/apply:os.system", "python/object/new:os.system"):
        with pytest.raises(InputError, match="values of the kind .* are not taken"):
            parse(files=[f"seed: !!{tag} ['touch {mark}']"])
    for value in (f"!!python/object/apply:os.system ['touch {mark}']", "!!python/name:os.system"):
        assert problems(parse, "--teacher.model-args.a", value)
    assert not mark.exists()


# Settings that are dictionaries


def test_one_entry_of_a_dictionary_is_changed_by_its_dotted_name(parse):
    files = ["teacher: {model_args: {channels: [4, 8], stem: {pool: max, size: 2}}}"]
    changed = parse("--teacher.model-args.stem_padding", "2", "--teacher.model-args.stem.size", "3", files=files)
    assert changed.teacher.model_args == {"channels": [4, 8], "stem": {"pool": "max", "size": 3}, "stem_padding": 2}


@pytest.mark.parametrize(
    ("section", "owner", "other", "arguments"),
    [
        ("teacher", "backbone", "resnet18", "model_args"),
        ("student", "name", "resnet18", "model_args"),
        ("teacher_training", "objective", "simclr", "objective_args"),
    ],
)
def test_arguments_are_those_of_the_network_or_objective_that_is_named_with_them(
    parse, section, owner, other, arguments
):
    default = getattr(getattr(DistillConfig(), section), owner)
    named, plain = (f"{section}: {{{name}{arguments}: {{a: 1}}}}" for name in (f"{owner}: {other}, ", ""))
    option, own = f"--{section}.{owner}", f"--{section}.{arguments}.b"

    def found(*words, files):
        return getattr(getattr(parse(*words, files=files), section), arguments)

    assert found(option, other, files=[plain]) == {}
    assert found(option, other, own, "2", files=[plain]) == {"b": 2}
    assert found(option, default, files=[named]) == {}
    assert found(files=[named, f"{section}: {{{owner}: {default}}}"]) == {}
    # The same one again, or nothing said of it, keeps them.
    assert found(option, other, own, "2", files=[named]) == found(own, "2", files=[named]) == {"a": 1, "b": 2}
    assert found(option, default, files=[plain]) == {"a": 1}


def test_a_ready_teacher_takes_no_arguments_of_the_one_that_a_file_would_train():
    words = ["--teacher.backbone", "resnet18.a1_in1k", "--teacher.pretrained"]
    teacher = parse_config(DistillConfig, RECIPES / "configs" / "photos.yaml", words).teacher
    assert (teacher.backbone, teacher.model_args) == ("resnet18.a1_in1k", {})


@pytest.mark.parametrize(
    ("text", "value"), [("2", 2), ("1e-4", 1e-4), ("[1, 2]", [1, 2]), ("true", True), ("gelu", "gelu"), ("'2'", "2")]
)
def test_an_entry_of_a_dictionary_has_the_type_it_is_written_with(parse, text, value):
    assert parse(f"--teacher.model-args.a={text}").teacher.model_args == {"a": value}


@pytest.mark.parametrize(("text", "value"), [('{"depth": 3, "act": "1"}', {"depth": 3, "act": "1"}), ("{}", {})])
def test_a_dictionary_is_replaced_by_json(parse, text, value):
    config = parse("--teacher.model-args", text, files=["teacher: {model_args: {channels: [4, 8]}}"])
    assert config.teacher.model_args == value


@pytest.mark.parametrize("text", ["5", "/etc/hostname", '{"a": ', "[1]", "null"])
def test_what_is_no_dictionary_is_refused(parse, text):
    assert "teacher.model_args must be of type dict" in problems(parse, f"--teacher.model-args={text}")[0]


def test_a_list_is_written_with_or_without_brackets(parse):
    for text in ("tensorboard, wandb", "[tensorboard, wandb]", '["tensorboard", "wandb"]'):
        assert parse("--run.trackers", text).run.trackers == ["tensorboard", "wandb"]
    assert parse(files=["run: {trackers: [tensorboard]}"]).run.trackers == ["tensorboard"]
    assert parse("--run.trackers", "[]").run.trackers == []


@pytest.mark.parametrize("name", ["--set", "--sets"])
@pytest.mark.parametrize("argv", ["{} a {} b/c", "{} a,b/c", "{}=a --sets b/c", "{} a --seed 1 {} b/c", "{}=[a,b/c]"])
def test_a_list_of_words_may_be_given_one_by_one_and_replaces_that_of_a_file(parse, name, argv):
    for files in ([""], ["sets: [x, y, z]"], ["", "sets: [x, y, z]"]):
        assert parse(*argv.format(name, name).split(), files=files, recipe=EvaluateConfig).sets == ["a", "b/c"]


def test_a_list_of_numbers_is_written_with_commas_as_one_of_names(parse):
    for text in ("0.1,0.5", "0.1, 0.5", "[0.1, 0.5]"):
        assert parse("--probe.labels", text).probe.labels == [0.1, 0.5]
    assert parse("--probe.labels", "20").probe.labels == [20]
    teacher = ["--teacher.pretrained", "--teacher.mean", "0.5,0.4,0.4", "--teacher.std=1e-1,2,.3"]
    assert parse(*teacher).teacher.std == [0.1, 2, 0.3] and parse("--teacher.mean", "null").teacher.mean is None
    for text in ("4,8,16", "4, 8, 16"):
        assert parse("--student.model-args.widths", text).student.model_args == {"widths": [4, 8, 16]}
    assert problems(parse, "--probe.labels", "a,b") == ["probe.labels must be of type list[float], got 'a,b'"]


def test_of_two_lists_the_later_wins_and_it_may_be_emptied(parse):
    files = ["sets: [a, b]\nprotocols: [probe]", "sets: [c]"]
    config = parse("--references", "[]", files=files, recipe=EvaluateConfig)
    assert (config.sets, config.protocols, config.references) == (["c"], ["probe"], [])
    assert parse("--probe.labels", "[10]", "--probe.labels", "[20, 0.5]").probe.labels == [20, 0.5]
    for name in ("--protocol", "--protocols"):
        assert parse("--set", "a", name, "knn,kd", recipe=EvaluateConfig).protocols == ["knn", "kd"]


def test_nothing_is_a_reference_in_every_way_to_write_it(parse):
    for text in ("none,random", "[none, random]", "None,random"):
        config = parse("--set", "a", "--references", text, recipe=EvaluateConfig)
        assert config.references == ["none", "random"]
    assert parse("--set", "a", "--references", "none", recipe=EvaluateConfig).references == ["none"]


def test_all_mistakes_of_an_evaluation_are_reported_together(parse):
    found = problems(parse, "--references", "best", "--protocol", "vibes", "--datasets=[]", recipe=EvaluateConfig)
    assert [problem.split(" must ")[0] for problem in found] == ["sets", "references", "protocols", "datasets"]
    assert "got 'best'" in found[1] and "got 'vibes'" in found[2]
    twice = problems(parse, "--set", "a", "--set", "a", recipe=EvaluateConfig)
    assert twice == ["sets must differ from each other, got ['a', 'a']"]


@pytest.mark.parametrize("place", ["runs/digits/distilled", "me/digits", "x/digits"])
def test_an_evaluation_is_named_after_its_first_set(parse, place):
    assert parse("--set", place, "--set", "b", recipe=EvaluateConfig).output == "runs/digits-evaluation"


# Mistakes


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pool.sise", "pool.size"),
        ("image_size", "data.image_size"),
        ("data.seed", "seed"),
        ("distiller.lr", "distiller.lr_images or distiller.lr_targets"),
        ("learning_rate", "teacher_training.learning_rate or pool.learning_rate or student_training.learning_rate"),
        ("targts.transform", "targets.transform"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(parse, name, nearest):
    message = f"{name} is not a setting; the nearest is {nearest} (--help all lists them)"
    assert problems(parse, f"--{name}", "2") == [message]
    section, dot, last = name.rpartition(".")
    assert problems(parse, files=[f"{section}: {{{last}: 2}}" if dot else f"{last}: 2"]) == [message]


def test_a_name_that_nothing_resembles_an_entry_of_a_plain_setting_and_a_section_are_refused(parse):
    assert "1 is not a setting; the nearest is " in problems(parse, files=["1: 2"])[0]
    assert "zzz is not a setting; the nearest is " in problems(parse, "--zzz")[0]
    assert "the nearest is pool.size (" in problems(parse, "--pool.size.more", "2")[0]
    files = ["pool: {size: {more: 2}}"]
    assert problems(parse, files=files) == ["pool.size must be of type int, got {'more': 2}"]
    message = "data is a section; give its settings one by one, such as data.name"
    assert problems(parse, "--data", "x.yaml") == problems(parse, files=["data: 3"]) == [message]


@pytest.mark.parametrize(
    ("name", "kind", "texts"),
    [
        ("seed", "int", ["1.5", "true", ""]),
        ("pool.size", "int", ["null"]),
        ("distiller.lr_images", "float", ["fast", "nan"]),
        ("pool.warm_up", "bool", ["perhaps"]),
        ("data.image_size", "int | None", ["none"]),
        ("run.trackers", "list[str]", ["[1, {}]"]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(parse, name, kind, texts):
    for text in texts:
        assert problems(parse, f"--{name}={text}") == [f"{name} must be of type {kind}, got {text!r}"]


def test_yaml_values_of_the_wrong_type_are_refused(parse):
    files = ["seed: true\npool: {size: null, learning_rate: .nan, warm_up: 1}\nteacher: {model_args: null}"]
    assert problems(parse, files=files) == [
        "seed must be of type int, got True",
        "pool.size must be of type int, got None",
        "pool.learning_rate must be of type float, got nan",
        "pool.warm_up must be of type bool, got 1",
        "teacher.model_args must be of type dict[str, typing.Any], got None: write {name: value}",
    ]


def test_all_mistakes_of_a_command_line_and_its_files_are_reported_together(parse):
    argv = ["--seed", "x", "stray", "--distiller.steps=-1", "--probe.labels"]
    found = problems(parse, *argv, files=["pol: {size: 2}\npool: {size: 0, max_age: 0}"])
    assert found == [
        "a setting is written --name value; got 'stray' alone",
        "--probe.labels needs a value",
        "pol.size is not a setting; the nearest is pool.size (--help all lists them)",
        "seed must be of type int, got 'x'",
        "pool.size must be at least 1, got 0",
        "pool.max_age must be at least 1, got 0",
        "distiller.steps must be at least 0, got -1",
    ]


def test_a_name_without_its_value_and_a_value_without_its_name_are_refused(parse):
    for name in ("--seed", "--data.name", "--config", "--teacher.model-args.channels"):
        assert problems(parse, name, "--pool.size", "2") == [f"{name} needs a value"]
    for word in ("5", "-", "--", "-5"):
        assert problems(parse, word) == [f"a setting is written --name value; got {word!r} alone"]


# What is printed


def test_the_printed_config_read_again_gives_the_same_config(parse, tmp_path, capsys):
    argv = ["--data.name", "1e5", "--data.config", "no", "--data.revision", "0123", "--run.trackers", "trackio,wandb"]
    argv += ["--distiller.ridge", "1e-9", "--teacher.model-args", "{a: '1e5', b: 1e5, c: '2020-01-01', d: 'yes'}"]
    expected = parse(*argv)
    with pytest.raises(SystemExit) as ended:
        parse("--print-config", *argv)
    assert ended.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse_config(DistillConfig, tmp_path / "printed.yaml", []) == expected
    assert expected.data.name == "1e5" and expected.teacher.model_args["a"] == "1e5"


def test_a_mistake_is_reported_also_when_the_config_is_to_be_printed(parse, capsys):
    assert problems(parse, "--print-config", "--seed", "x") == ["seed must be of type int, got 'x'"]
    assert capsys.readouterr().out == ""


def test_the_stored_settings_are_plain_json_and_yaml(parse):
    config = parse("--teacher.model-args.channels", "[1, 2]")
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)
    teacher = TeacherSettings(model_args={"widths": (1, 2)})
    assert to_dict(DistillConfig(teacher=teacher))["teacher"]["model_args"] == {"widths": [1, 2]}


def show_help(parse, capsys, *argv, **how):
    with pytest.raises(SystemExit) as ended:
        parse(*argv, **how)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_is_short_and_lists_the_sections(parse, capsys):
    shown = show_help(parse, capsys, "-h", "--unknown", "2")
    assert shown == show_help(parse, capsys, "--help") and len(shown.splitlines()) < 60
    sections = [name for name, values in to_dict(DistillConfig()).items() if isinstance(values, dict)]
    assert not [name for name in sections if f"\n  {name} " not in shown]
    assert "A recipe." in shown and "--seed SEED" in shown and "--pool." not in shown


def test_help_of_a_section_shows_the_defaults_that_would_run(parse, capsys):
    shown = show_help(parse, capsys, "--help", "student-training", files=["student_training: {epochs: 77}"])
    assert "--student_training.batch_size" in shown and "--pool." not in shown and "A recipe." not in shown
    assert "Passes over the set. (type: int, default: 77)" in " ".join(shown.split())
    shown = show_help(parse, capsys, "--pool.size", "5", "--help=pool")
    assert "Number of students `P`. (type: int, default: 5)" in " ".join(shown.split())
    with pytest.raises(
        InputError, match="--help takes all, or a section, one of data, .* got 'poll'; the nearest is pool"
    ):
        parse("--help", "poll")


def test_help_shows_what_the_given_settings_state_where_that_can_be_read(parse, capsys):
    shown = show_help(parse, capsys, "--help", "pool", stated=stating(pool={"size": 5, "max_age": 7}))
    assert "Number of students `P`. (type: int, default: 5)" in " ".join(shown.split())

    def fails(values):
        raise InputError("there is no such set")

    assert "--pool.size" in show_help(parse, capsys, "--help", "pool", stated=fails)


def test_help_of_a_word_shows_the_defaults_for_such_images(capsys):
    for words, number in ((["digits"], 50), ([], 50), (["a/folder"], 100), (["a/folder", "--config", "smoke"], 20)):
        assert main(["distill", *words, "--help", "distiller"]) == 0
        assert f"Distilled images `M`. (type: int, default: {number})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_documents_every_setting_and_ends_well(parse, capsys, option):
    shown = show_help(parse, capsys, option, "all", "--unknown", "2")
    for section, values in to_dict(DistillConfig()).items():
        for name in values if isinstance(values, dict) else ():
            assert f"--{section}.{name} " in shown
    assert "A recipe." in shown and "--seed SEED" in shown
    words = " ".join(shown.split())
    assert "Real images `B` per outer step, over all processes. (type: int, default: 1024)" in words
    assert "Path to a configuration file" not in words and "Annotated" not in words


# The method


def test_method_and_parameterisation_have_short_names(parse):
    config = parse("--method", "krr_st", "--method.args", "{ridge: 1e-3}", "--parameterisation=pixels")
    assert (config.method.args, config.parameterisation.name) == ({"ridge": 1e-3}, "pixels")


def test_unknown_names_are_refused_with_the_nearest_one_and_together_with_all_other_mistakes(parse):
    argv = ["--method", "krr", "--parameterisation", "pixel", "--init", "herd", "--pool.size", "0"]
    size, init, method, parameterisation = problems(parse, *argv)
    assert size == "pool.size must be at least 1, got 0"
    assert init.startswith("init must be one of random, kmeans") and init.endswith("'herd'; the nearest is herding")
    assert method.startswith("method 'krr' is unknown: use one of ")
    assert parameterisation.startswith("parameterisation 'pixel' is unknown: use one of ")
    (problem,) = problems(parse, "--method.args", "{ridg: 1}")
    assert problem.startswith("method 'krr_st' has no setting 'ridg'") and problem.endswith("the nearest is ridge")


@pytest.mark.parametrize("section", ["method", "parameterisation"])
def test_arguments_of_a_method_pass_the_allow_list(parse, section):
    with pytest.raises(SettingsError, match=rf"{section}.args: weights must be a number or a short word"):
        parse(f"--{section}.args", "{weights: https://example.org/a.bin}")


# The run folder


def test_the_launchers_precision_is_what_the_run_records(parse, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert to_dict(parse())["run"]["mixed_precision"] == "bf16"
    assert "run.mixed_precision is no" in problems(parse, "--run.mixed-precision", "no")[0]


@pytest.mark.slow
def test_accelerate_launch_decides_the_precision():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "bf16"]
    command += [str(RECIPES / "distill.py"), "--print-config"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert yaml.safe_load(printed)["run"]["mixed_precision"] == "bf16"


FOLDERS = {"digits": "digits", "uoft-cs/cifar100": "cifar100", "../shared/data/cifar100": "cifar100", "..": "run"}
FOLDERS |= {"/data/my photos/": "my-photos", "/": "run", ".hidden": "hidden", "été": "t"}
FOLDERS |= {"a;rm b": "a-rm-b", "a\nb": "a-b"}


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_the_run_folder_is_named_after_the_data_and_stays_inside_runs(parse, name, folder):
    assert parse(f"--data.name={name}").output == f"runs/{folder}"


def test_a_given_run_folder_is_kept_and_an_empty_one_counts_as_none(parse):
    assert parse("--output", "/tmp/x").output == "/tmp/x"
    assert parse("--output=").output == "runs/digits"


def test_names_of_before_are_understood_with_a_warning(parse, recwarn):
    config = parse("--use.epochs", "3", "--pretrain.epochs", "2")
    assert (config.student_training.epochs, config.teacher_training.epochs) == (3, 2)
    config = parse(files=["use: {epochs: 4}\npretrain: {epochs: 5}"])
    assert (config.student_training.epochs, config.teacher_training.epochs) == (4, 5)
    assert parse("--pretrain.epochs", "2", recipe=TrainTeacherConfig).teacher_training.epochs == 2
    old = ["--set", "a", "--targets", "source,mine", "--target-args.mine.name", "folder", "--use.epochs", "2"]
    config = parse(*old, recipe=EvaluateConfig)
    assert (config.datasets, config.dataset_args) == (["source", "mine"], {"mine": {"name": "folder"}})
    assert {warning.category for warning in recwarn.list} == {FutureWarning}
    assert "use is now student_training; the old name goes" in " ".join(str(each.message) for each in recwarn.list)
