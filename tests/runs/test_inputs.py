import json
import logging
import os

import pytest
import torch

from ssdd_hub.data.bank import ImageBank, fingerprint_pixels
from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs import inputs as inputs_module
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.inputs import INPUTS_FILE, deciding_facts, describe_bank, describe_images, fingerprint_labels
from ssdd_hub.runs.lock import LOCK_FILES
from ssdd_hub.teachers.teacher import Teacher

CONFIG = {"data": {"name": "digits"}, "seed": 0, "output": "runs/a"}
A, B, C = "a" * 64, "b" * 64, "c" * 64
IMAGES = {"source": {"fingerprint": A, "num_images": 9}, "heldout": {"fingerprint": B, "num_images": 3}}
TEACHER = {"teacher": {"weights_sha256": A, "input_size": 16, "pixel_space": {"mean": (0.5,), "std": (0.2,)}}}


def begin(path, inputs=IMAGES, config=CONFIG, **arguments):
    run = RunFolder(path, config, **arguments)
    run.start(inputs)
    return run


def changed(inputs, name, **facts):
    return {**inputs, name: {**inputs[name], **facts}}


def content(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in LOCK_FILES
    }


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


def write_set(run, **provenance):
    write(run / "distilled" / "ssdd_hub.json", {"provenance": provenance})


def make_bank(pixels, labels=None):
    return ImageBank(pixels, labels, None, {"name": "made", "fingerprint": fingerprint_pixels(pixels)})


# What is recorded


def test_the_inputs_are_recorded_when_a_run_starts(tmp_path):
    begin(tmp_path, is_main=False).pin(TEACHER)
    run = RunFolder(tmp_path / "a", CONFIG)
    assert {*os.listdir(run.path)} == LOCK_FILES
    run.start({**IMAGES, **TEACHER})
    record = json.loads((run.path / INPUTS_FILE).read_text())
    assert record == {"format_version": 1, "inputs": json.loads(json.dumps({**IMAGES, **TEACHER}))}
    assert {*os.listdir(run.path)} - LOCK_FILES == {"config.yaml", INPUTS_FILE}


def test_images_are_named_by_pixels_and_order_and_by_labels_where_these_count():
    pixels = torch.randint(0, 256, (6, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(6)
    bank, turned = make_bank(pixels, labels), make_bank(pixels.flip(0), labels)
    relabelled = make_bank(pixels.clone(), labels.flip(0))
    assert describe_bank(bank) == describe_bank(relabelled) == {"fingerprint": bank.fingerprint, "num_images": 6}
    assert describe_bank(bank) != describe_bank(turned)
    assert describe_bank(bank, labels=True) != describe_bank(relabelled, labels=True)
    assert describe_images(bank, turned) == {"source": describe_bank(bank), "heldout": describe_bank(turned)}
    assert fingerprint_labels(None) is None and fingerprint_labels(labels) != fingerprint_labels(labels.flip(0))


def test_all_that_decides_the_features_of_a_teacher_names_it_and_nothing_else(small_backbone, small_teacher):
    def facts(backbone=None, size=16, name="x", licence="mit", space=None, **options):
        first = small_teacher()
        backbone = small_backbone() if backbone is None else backbone
        return deciding_facts(Teacher(backbone, space or first.pixel_space, size, name, licence, **options).identity())

    strided = small_backbone()
    next(m for m in strided.modules() if isinstance(m, torch.nn.Conv2d)).padding = (0, 0)
    others = [
        facts(small_backbone(1)),
        facts(strided),
        facts(space=PixelSpace((0.1,), (0.9,))),
        facts(features="mean"),
        facts(interpolation="bilinear"),
    ]
    assert facts() == facts(name="y", licence="unknown")
    assert all(other != facts() for other in others)


# Going on


def test_a_run_goes_on_with_the_same_inputs_and_further_ones(tmp_path):
    begin(tmp_path)
    before = (tmp_path / INPUTS_FILE).read_bytes()
    begin(tmp_path)
    assert (tmp_path / INPUTS_FILE).read_bytes() == before
    RunFolder(tmp_path, CONFIG).pin(TEACHER)
    begin(tmp_path, {**IMAGES, **TEACHER}).pin(TEACHER)
    # What is not named this time stays.
    begin(tmp_path)
    with pytest.raises(InputError, match="teacher: input_size 16 there, 32 now"):
        begin(tmp_path, {**IMAGES, **changed(TEACHER, "teacher", input_size=32)})


A_C = r"a{12}\.\.\. there, c{12}\.\.\. now"
CASES = {
    f"source images: fingerprint {A_C}": {"source": {"fingerprint": C}},
    "held-out images: num_images 3 there, 4 now": {"heldout": {"num_images": 4}},
    r"source images: labels None there, c{12}\.\.\. now": {"source": {"labels": C}},
    "source images: fingerprint a.*; held-out images: labels": {
        "source": {"fingerprint": B},
        "heldout": {"labels": C},
    },
    f"teacher: weights_sha256 {A_C}": {"teacher": {"weights_sha256": C}},
    r"{'mean': \[0.5\].* there, {'mean': \[0.4\].* now": {"teacher": {"pixel_space": {"mean": (0.4,), "std": (0.2,)}}},
}


@pytest.mark.parametrize("message", CASES)
def test_other_inputs_are_refused_by_name_and_nothing_is_changed(tmp_path, message):
    other = {name: {**facts, **CASES[message].get(name, {})} for name, facts in {**IMAGES, **TEACHER}.items()}
    begin(tmp_path, {**IMAGES, **TEACHER}).log.write([{"stage": "distill", "step": 1}])
    before = content(tmp_path)
    # A setting that may differ does not find its way into the folder either.
    run = RunFolder(tmp_path, {**CONFIG, "evaluate": {"seeds": 9}})
    with pytest.raises(InputError, match=message) as raised:
        run.start(other)
    assert content(tmp_path) == before
    for words in (
        f"--output {tmp_path} holds a run with other inputs",
        "restore",
        "choose another --output",
        "remove",
    ):
        assert words in str(raised.value)


def test_what_a_run_has_made_must_be_what_it_made_before(tmp_path):
    begin(tmp_path).pin(TEACHER)
    before = content(tmp_path)
    with pytest.raises(InputError, match="teacher: input_size 16 there, 32 now"):
        RunFolder(tmp_path, CONFIG).pin(changed(TEACHER, "teacher", input_size=32))
    assert content(tmp_path) == before


def dumped(inputs, version=1):
    return json.dumps({"format_version": version, "inputs": inputs}).encode()


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        *((damaged, "") for damaged in (b"", b"{", b'"a"', b"\xff", b"[" * 100_000)),
        (b" " * (2**20 + 1), "it has more than 1048576 bytes"),
        *((damaged, "it is not of format 1") for damaged in (b"[]", b"{}", dumped(IMAGES, version=2))),
        *((dumped(wrong), "it names no inputs") for wrong in (None, {}, [], {"source": "a"})),
        *(
            (dumped(wrong), "it names 'zzz', which are no inputs of a run")
            for wrong in ({"zzz": {}}, {**IMAGES, "zzz": {}})
        ),
        *((dumped(wrong), "it does not name the source images") for wrong in (TEACHER, {"source": {}})),
    ],
)
def test_a_damaged_record_is_an_error_that_says_what_to_do(tmp_path, damaged, words):
    begin(tmp_path)
    (tmp_path / INPUTS_FILE).write_bytes(damaged)
    before = content(tmp_path)
    message = rf"inputs\.json is no record of the inputs of a run \(.*{words}.*restore it, choose another"
    with pytest.raises(InputError, match=message):
        begin(tmp_path)
    assert content(tmp_path) == before


def test_a_run_that_was_killed_before_it_could_record_them_begins_anew(tmp_path, caplog):
    RunFolder(tmp_path, CONFIG).start()
    (tmp_path / ".inputs.json.1-2.tmp").write_text("{")
    begin(tmp_path)
    assert (tmp_path / INPUTS_FILE).exists() and not caplog.records


# Several processes


def test_processes_that_have_other_inputs_than_the_main_one_are_refused_by_all(tmp_path, monkeypatch):
    other = changed(IMAGES, "source", fingerprint=C)
    monkeypatch.setattr(inputs_module, "_gather", lambda share: [(IMAGES, {}, [], ""), (other, {}, [], "")])
    for rank in (0, 1):
        with pytest.raises(InputError, match=r"process 1 has other inputs than process 0 \(source images: finger"):
            begin(tmp_path / "a", (IMAGES, other)[rank], is_main=rank == 0)
    assert not (tmp_path / "a").exists()


def test_what_the_main_process_finds_is_refused_by_all(tmp_path, monkeypatch):
    shares = [(IMAGES, {}, [], "the record is damaged"), (IMAGES, {}, [], "")]
    monkeypatch.setattr(inputs_module, "_gather", lambda share: shares)
    for main in (True, False):
        with pytest.raises(InputError, match="record is damaged"):
            begin(tmp_path / "a", is_main=main)


# Folders of earlier versions


def old(path, **provenance):
    RunFolder(path, CONFIG).start()
    (path / "log.jsonl").write_text("")
    if provenance:
        write_set(path, **provenance)


def test_an_old_run_of_which_nothing_tells_goes_on_with_a_warning(tmp_path, caplog):
    old(tmp_path)
    begin(tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "source images and held-out images could not be che" in record.message
    assert "If they may have changed since it was begun, stop and choose another --output" in record.message
    with pytest.raises(InputError, match="source images"):
        begin(tmp_path, changed(IMAGES, "source", fingerprint=C))


def test_an_old_run_whose_set_tells_the_same_goes_on(tmp_path, caplog):
    old(tmp_path, source={"name": "digits", **IMAGES["source"]}, teacher={"name": "x", "weights_sha256": A})
    begin(tmp_path, {**IMAGES, **TEACHER})
    (record,) = caplog.records
    assert "the same held-out images could not be checked" in record.message
    assert (tmp_path / INPUTS_FILE).exists()


TOLD = {
    "set/source": ("distilled/ssdd_hub.json", {"provenance": {"source": {"fingerprint": C}}}, "source images"),
    "set/heldout": ("distilled/ssdd_hub.json", {"provenance": {"heldout": {"fingerprint": C}}}, "held-out images"),
    "set/teacher": ("distilled/ssdd_hub.json", {"provenance": {"teacher": {"weights_sha256": C}}}, "teacher: weights"),
    "teacher/source": ("teacher/ssdd_hub.json", {"provenance": {"source": {"fingerprint": C}}}, "source images"),
    "teacher/weights": ("teacher/ssdd_hub.json", {"teacher": {"weights_sha256": C}}, "teacher: weights"),
    "features/source": ("features/features-1/index.json", {"key": {"images": C}}, "source images: fingerprint c"),
    "features/teacher": (
        "features/features-1/index.json",
        {"key": {"dtype": "torch.float32", "teacher": {"input_size": 9}}},
        "teacher: input_size 9 there, 16 now",
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_an_old_run_whose_results_tell_other_inputs_is_refused(tmp_path, case):
    file, told, message = TOLD[case]
    old(tmp_path)
    write(tmp_path / file, told)
    write(tmp_path / "checkpoints" / "distiller" / "step-00000004.safetensors", {})
    before = content(tmp_path)
    with pytest.raises(InputError, match=f"{message}.*, as {file.split('/')[0]}/.* tells"):
        begin(tmp_path, {**IMAGES, **TEACHER})
    assert content(tmp_path) == before


def test_features_of_further_images_tell_nothing_against_a_run(tmp_path, caplog):
    for name, fingerprints in (("a", (C, A)), ("b", (C,))):
        old(tmp_path / name)
        for number, fingerprint in enumerate(fingerprints):
            write(tmp_path / name / "features" / f"features-{number}" / "index.json", {"key": {"images": fingerprint}})
    write(tmp_path / "a" / "checkpoints" / "distiller" / "step-00000004.safetensors", {})
    begin(tmp_path / "a")
    assert "held-out" in caplog.text and "source images" not in caplog.text
    # Without a distillation, they may be somebody else's.
    begin(tmp_path / "b")


def test_weights_in_double_precision_are_not_compared(tmp_path):
    old(tmp_path, teacher={"weights_sha256": C}, settings={"distiller": {"precision": "float64"}})
    begin(tmp_path, {**IMAGES, **TEACHER})


@pytest.mark.parametrize("damaged", ["{", "[]", '{"provenance": 3}', '{"provenance": {"source": "x"}}'])
def test_damaged_results_tell_nothing(tmp_path, damaged, caplog):
    old(tmp_path)
    for file in ("distilled/ssdd_hub.json", "teacher/ssdd_hub.json", "features/features-1/index.json"):
        write(tmp_path / file, None)
        (tmp_path / file).write_text(damaged)
    begin(tmp_path)
    assert "source images" in caplog.text
