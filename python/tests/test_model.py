import ctypes
import threading

import numpy as np
import pytest

import coreml_portable
from coreml_portable import Model, _values
from coreml_portable._table import TABLE, Config, Str


def images(digits):
    return np.load(digits / "test_images.npy").astype(np.float32).reshape(-1, 1, 1, 8, 8)


def name_of(model):
    return model.description["inputs"][0]["name"]


@pytest.mark.parametrize("file", ["digits.mlmodel", "digits.mlpackage", "digits-f32.mlpackage"])
def test_predictions_equal_the_reference(digits, file):
    wanted = np.load(digits / "reference_probabilities.npy")
    with Model(digits / file) as model:
        for image, row in zip(images(digits)[:20], wanted):
            found = model.predict({name_of(model): image})["probabilities"]
            np.testing.assert_allclose(found.reshape(-1), row, atol=5e-3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int8", "uint8", "int64"])
def test_every_dtype_that_fits_gives_the_same_answer(digits, dtype):
    with Model(digits / "digits-f32.mlpackage") as model:
        image = np.round(images(digits)[0])
        wanted = model.predict({name_of(model): image})
        found = model.predict({name_of(model): image.astype(dtype)})
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])


def test_strides_do_not_matter(digits):
    with Model(digits / "digits-f32.mlpackage") as model:
        image = images(digits)[3]
        wanted = model.predict({name_of(model): image})
        wide = np.zeros((1, 1, 16, 24), np.float32)
        wide[:, :, ::2, ::3] = image
        backwards = np.ascontiguousarray(image[..., ::-1, ::-1])[..., ::-1, ::-1]
        for view in [wide[:, :, ::2, ::3], np.asfortranarray(image), backwards, image.astype(">f4")]:
            found = model.predict({name_of(model): view})
            for name in wanted:
                np.testing.assert_array_equal(found[name], wanted[name])


def test_wanted_outputs_only(digits):
    with Model(digits / "digits-f32.mlpackage") as model:
        first = model.description["outputs"][0]["name"]
        assert list(model.predict({name_of(model): images(digits)[0]}, outputs=[first])) == [first]


def test_errors_are_typed_and_chained(digits, tmp_path):
    with pytest.raises(coreml_portable.NotFoundError) as missing:
        Model(tmp_path / "missing.mlmodel")
    assert isinstance(missing.value.__cause__, coreml_portable.CoreMLError)
    assert missing.value.domain
    (tmp_path / "bad.mlmodel").write_bytes(b"\xff" * 100)
    with pytest.raises(coreml_portable.CorruptModelError):
        Model(tmp_path / "bad.mlmodel")
    with Model(digits / "digits-f32.mlpackage") as model:
        with pytest.raises(coreml_portable.TypeMismatchError):
            model.predict({name_of(model): np.zeros((2, 2), np.float32)})
        with pytest.raises(coreml_portable.CoreMLError):
            model.predict({})
        with pytest.raises(coreml_portable.CoreMLError):
            model.predict({name_of(model): images(digits)[0]}, outputs=["nothing"])
        with pytest.raises(TypeError):
            model.predict({name_of(model): "text"})
        with pytest.raises(TypeError):
            model.predict({name_of(model): np.zeros((1, 1, 8, 8), complex)})
    del missing  # its traceback holds the frames


def test_a_closed_model_refuses(digits):
    model = Model(digits / "digits.mlmodel")
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model.predict({})


def test_threads_may_share_a_model(digits):
    with Model(digits / "digits-f32.mlpackage") as model:
        image = images(digits)[0]
        wanted = model.predict({name_of(model): image})
        found, failed = [], []

        def work():
            try:
                for _ in range(20):
                    found.append(model.predict({name_of(model): image}))
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and len(found) == 80
        for outputs in found:
            for name in wanted:
                np.testing.assert_array_equal(outputs[name], wanted[name])


@pytest.fixture
def configurations(monkeypatch):
    """Every configuration that reaches the table."""
    seen = []

    def call(slot, *arguments):
        for argument in arguments:
            pointed = getattr(argument, "_obj", None)
            if isinstance(pointed, Config):
                seen.append(Config.from_buffer_copy(pointed))
        _values.call(slot, *arguments)

    monkeypatch.setattr(coreml_portable.model, "call", call)
    return seen


def test_options_reach_the_table(digits, configurations):
    Model(digits / "digits.mlmodel").close()
    options = {"reshape_frequency": "Infrequent", "specialization": "FastPrediction", "low_precision_accumulation": True}
    Model(digits / "digits.mlmodel", compute_units="CPU_ONLY", threads=2, **options).close()
    fields = ("compute_units", "flags", "threads", "reshape_frequency", "specialization", "preferred_device")
    assert [[getattr(config, field) for field in fields] for config in configurations] == [
        [2, 0, 0, 0, 0, 0],
        [0, 1, 2, 1, 1, 0],
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compute_units", "GPU"),
        ("reshape_frequency", "Never"),
        ("specialization", "Fast"),
        ("low_precision_accumulation", 2),
    ],
)
def test_a_value_that_an_option_has_not_is_refused(digits, option, value):
    with pytest.raises(ValueError, match=f"{option} is one of .*, not '{value}'"):
        Model(digits / "digits.mlmodel", **{option: value})


@pytest.mark.parametrize(
    ("field", "number", "words"),
    [
        ("compute_units", 9, "9 is not a set of compute units"),
        ("flags", 2, "flags 0x2"),
        ("reshape_frequency", 7, "7 is no frequency of reshapes"),
        ("specialization", 8, "8 is no specialization"),
        ("preferred_device", 2**63, f"registry id {2**63}"),
    ],
)
def test_the_table_reads_each_field_of_a_configuration_where_it_is(digits, field, number, words):
    config = Config(size=ctypes.sizeof(Config))
    setattr(config, field, number)
    path, out = Str.of(str(digits / "digits.mlmodel")), ctypes.c_void_p()
    with pytest.raises(coreml_portable.CoreMLError, match=words) as refused:
        _values.call(TABLE.model_load, TABLE.self_, path, ctypes.byref(config), ctypes.byref(out))
    del refused


def test_the_structure_names_functions_and_ops(digits):
    path = digits / "digits-f32.mlpackage"
    assert coreml_portable.function_names(path) == ["main"]
    structure = coreml_portable.model_structure(path)
    assert structure["kind"] == "ML program"
    main = structure["functions"]["main"]
    assert main["inputs"] == [{"name": "image", "type": "fp32[1, 1, 8, 8]"}]
    assert [op["kind"] for op in main["ops"]].count("conv") == 2
    assert not any("devices" in op for op in main["ops"])
    layers = coreml_portable.model_structure(digits / "digits.mlmodel")["functions"]["main"]["ops"]
    assert [(layer["name"], layer["kind"]) for layer in layers][:2] == [("conv1", "convolution"), ("relu_0", "activation")]


def test_a_plan_says_where_each_op_runs_and_what_part_of_the_work_it_is(digits):
    plan = coreml_portable.compute_plan(digits / "digits-f32.mlpackage", function="main", compute_units="CPU_ONLY")
    ops = plan["functions"]["main"]["ops"]
    assert all(op["devices"] == {"preferred": "cpu", "supported": ["cpu"]} for op in ops)
    assert sum(op.get("weight", 0.0) for op in ops) == pytest.approx(1.0)
    with pytest.raises(coreml_portable.NotFoundError) as missing:
        coreml_portable.compute_plan(digits / "digits-f32.mlpackage", function="nothing")
    with pytest.raises(ValueError, match="compute_units"):
        coreml_portable.compute_plan(digits / "digits-f32.mlpackage", compute_units="GPU")
    del missing
