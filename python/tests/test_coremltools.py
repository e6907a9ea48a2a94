"""coremltools as it is, after one call."""

import gc
import os

import numpy as np
import pytest
from PIL import Image

ct = pytest.importorskip("coremltools")

import coreml_portable  # noqa: E402

coreml_portable.install()

from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import get_new_symbol, types  # noqa: E402
from coremltools.models.compute_device import MLComputeDevice, MLCPUComputeDevice  # noqa: E402
from coremltools.models.compute_plan import MLComputePlan, MLModelStructure  # noqa: E402


def affine():
    """y = 2x + 1. No fixture: those outlive the check for leaks."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3))])
    def program(x):
        return mb.add(x=mb.mul(x=x, y=2.0), y=1.0, name="y")

    return ct.convert(program, compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS18)


def test_predict_and_batches():
    model = affine()
    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.testing.assert_array_equal(model.predict({"x": x})["y"], x * 2 + 1)
    batch = model.predict([{"x": x + at} for at in range(3)])
    for at, outputs in enumerate(batch):
        np.testing.assert_array_equal(outputs["y"], (x + at) * 2 + 1)


def test_compiled_model_outlives_its_source(tmp_path):
    path = tmp_path / "affine.mlpackage"
    affine().save(str(path))
    compiled = ct.models.utils.compile_model(str(path), str(tmp_path / "affine.mlmodelc"))
    again = ct.models.CompiledMLModel(compiled)
    np.testing.assert_array_equal(again.predict({"x": np.ones((2, 3))})["y"], np.full((2, 3), 3.0))
    del again
    kept = ct.models.MLModel(str(path)).get_compiled_model_path()
    gc.collect()
    assert not os.path.exists(kept), "the temporary compiled model goes with its owner"


def test_state_is_kept_read_and_written():
    @mb.program(
        input_specs=[mb.TensorSpec((3,), dtype=types.fp16), mb.StateTensorSpec((3,), dtype=types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x, memory):
        total = mb.add(x=mb.read_state(input=memory), y=x)
        return mb.coreml_update_state(state=memory, value=total)

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18)
    state = model.make_state()
    other = model.make_state()
    x = np.array([1, 2, 3], np.float16)
    model.predict({"x": x}, state)
    model.predict({"x": x}, state)
    np.testing.assert_array_equal(state.read_state("memory"), [2, 4, 6])
    np.testing.assert_array_equal(other.read_state("memory"), [0, 0, 0])
    state.write_state("memory", np.array([10, 20, 30], np.float32))
    model.predict({"x": x}, state)
    np.testing.assert_array_equal(state.read_state("memory"), [11, 22, 33])


def test_a_failed_prediction_is_a_runtime_error_with_its_cause():
    model = affine()
    with pytest.raises(RuntimeError) as failure:
        model.predict({"x": np.zeros((9, 9))})
    assert isinstance(failure.value.__cause__, coreml_portable.CoreMLError)
    del failure


def test_a_model_that_fails_while_it_runs_says_so_in_core_mls_words():
    @mb.program(
        input_specs=[mb.TensorSpec((2, 3)), mb.TensorSpec((1,), dtype=types.int32), mb.TensorSpec((1, 3))],
        opset_version=ct.target.iOS17,
    )
    def program(data, indices, updates):
        return mb.scatter(data=data, indices=indices, updates=updates, validate_indices=True)

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS17)
    with pytest.raises(RuntimeError, match="^Error computing NN outputs: .*index 7 is out of bounds") as failure:
        model.predict({"data": np.zeros((2, 3)), "indices": np.array([7]), "updates": np.ones((1, 3))})
    assert isinstance(failure.value.__cause__, coreml_portable.CoreMLError)
    del failure


def test_a_shape_that_a_flexible_input_does_not_take_is_told_in_core_mls_words():
    def flexible(shape):
        @mb.program(input_specs=[mb.TensorSpec((get_new_symbol(), 2))], opset_version=ct.target.iOS15)
        def program(x):
            return mb.relu(x=x)

        model = ct.convert(program, inputs=[ct.TensorType("x", shape=shape)], minimum_deployment_target=ct.target.iOS15)
        return lambda rows: model.predict({"x": np.zeros((rows, 2), np.float32)})

    ranges = flexible((ct.RangeDim(3, 5, default=3), 2))
    assert len(ranges(4)) == 1
    with pytest.raises(RuntimeError, match=r"^Size \(99\) of dimension \(0\) is not in allowed range \(3\.\.5\)"):
        ranges(99)
    enumerated = flexible(ct.EnumeratedShapes(shapes=[(3, 2), (6, 2)]))
    assert len(enumerated(6)) == 1
    with pytest.raises(RuntimeError, match=r"^MultiArray Shape \(4 x 2\) was not in enumerated set of allowed shapes"):
        enumerated(4)


def test_every_hint_becomes_an_option(monkeypatch):
    seen = []

    class Spied(coreml_portable.Model):
        def __init__(self, path, **options):
            seen.append(options)
            super().__init__(path, **options)

    monkeypatch.setattr("coreml_portable.coremltools.Model", Spied)
    hints = {
        "allowLowPrecisionAccumulationOnGPU": True,
        "reshapeFrequency": ct.ReshapeFrequency.Infrequent,
        "specializationStrategy": ct.SpecializationStrategy.FastPrediction,
    }
    model = affine()
    path = model.get_compiled_model_path()
    for wanted in ({}, hints, {"allowLowPrecisionAccumulationOnGPU": False}):
        ct.models.CompiledMLModel(path, optimization_hints=wanted)
    for options in seen:
        del options["function"], options["compute_units"]
    low = "low_precision_accumulation"
    given = {low: "True", "reshape_frequency": "Infrequent", "specialization": "FastPrediction"}
    assert seen == [{}, {}, given, {low: "False"}]
    proxy = ct.libcoremlpython._MLModelProxy
    with pytest.raises(ValueError, match="not colour"):
        proxy(path, "ALL", "", {"colour": "red"}, None)
    with pytest.raises(ValueError, match="reshape_frequency is one of Frequent, Infrequent, not 'Never'"):
        proxy(path, "ALL", "", {"reshapeFrequency": "Never"}, None)
    with pytest.raises(ValueError, match="low_precision_accumulation"):
        proxy(path, "ALL", "", {"allowLowPrecisionAccumulationOnGPU": "Perhaps"}, None)


def test_the_one_device_is_the_processor():
    for devices in (MLComputeDevice.get_all_compute_devices(), ct.models.MLModel.get_available_compute_devices()):
        assert [type(device) for device in devices] == [MLCPUComputeDevice]


def usual(usage):
    return isinstance(usage.preferred_compute_device, MLCPUComputeDevice) and [
        type(device) for device in usage.supported_compute_devices
    ] == [MLCPUComputeDevice]


def test_a_program_has_a_structure_and_a_plan():
    model = affine()
    path = model.get_compiled_model_path()
    structure = MLModelStructure.load_from_path(path)
    assert structure.neuralnetwork is None and structure.pipeline is None
    main = structure.program.functions["main"]
    assert [value.name for value in main.inputs] == ["x"]
    assert main.block.output_names == ["y"] and main.block.inputs == []
    first, last = main.block.operations
    assert (first.operator_name, last.operator_name) == ("mul", "add")
    assert [binding.name for binding in first.inputs["x"].bindings] == ["x"]
    assert [value.name for value in last.outputs] == ["y"]

    plan = MLComputePlan.load_from_path(path, compute_units=ct.ComputeUnit.CPU_ONLY)
    planned = plan.model_structure.program.functions["main"].block.operations
    assert all(usual(plan.get_compute_device_usage_for_mlprogram_operation(op)) for op in planned)
    assert [plan.get_estimated_cost_for_mlprogram_operation(op).weight for op in planned] == [0.5, 0.5]
    for op in [first, MLComputePlan.load_from_path(path).model_structure.program.functions["main"].block.operations[0]]:
        assert plan.get_compute_device_usage_for_mlprogram_operation(op) is None, "it is none of this plan's"
        assert plan.get_estimated_cost_for_mlprogram_operation(op) is None


def test_blocks_and_constants_of_a_program_are_in_its_structure():
    @mb.program(input_specs=[mb.TensorSpec((1,)), mb.TensorSpec((3,))], opset_version=ct.target.iOS17)
    def program(go, x):
        go = mb.cast(x=mb.squeeze(x=go), dtype="bool")
        return mb.cond(pred=go, _true_fn=lambda: mb.exp(x=x), _false_fn=lambda: mb.sin(x=x))

    model = ct.convert(program, compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS17)
    plan = MLComputePlan.load_from_path(model.get_compiled_model_path())
    ops = plan.model_structure.program.functions["main"].block.operations
    (cond,) = [op for op in ops if op.operator_name == "cond"]
    assert [[op.operator_name for op in block.operations] for block in cond.blocks] == [["exp"], ["sin"]]
    for block in cond.blocks:
        assert all(usual(plan.get_compute_device_usage_for_mlprogram_operation(op)) for op in block.operations)


def test_layers_have_a_structure_and_a_plan(digits):
    model = ct.models.MLModel(str(digits / "digits.mlmodel"))
    plan = MLComputePlan.load_from_path(model.get_compiled_model_path())
    assert plan.model_structure.program is None
    layers = plan.model_structure.neuralnetwork.layers
    assert (layers[0].name, layers[0].type, layers[0].input_names) == ("conv1", "convolution", ["image"])
    assert layers[0].output_names == layers[1].input_names
    assert all(usual(plan.get_compute_device_usage_for_neuralnetwork_layer(layer)) for layer in layers)


def test_a_pipeline_has_the_structures_of_its_models(tmp_path):
    from coremltools.models import datatypes
    from coremltools.models.pipeline import Pipeline

    inputs, outputs = [("x", datatypes.Array(2, 3))], [("y", datatypes.Array(2, 3))]
    pipeline = Pipeline(inputs, outputs)
    pipeline.add_model(affine())
    path = tmp_path / "pipeline.mlmodel"
    ct.models.utils.save_spec(pipeline.spec, str(path))
    ((name, inner),) = MLModelStructure.load_from_path(str(path)).pipeline.sub_models
    assert name == "0" and list(inner.program.functions) == ["main"]


def test_what_has_no_structure_is_a_runtime_error_with_its_cause(tmp_path):
    for load in (MLModelStructure.load_from_path, MLComputePlan.load_from_path):
        with pytest.raises(RuntimeError) as failure:
            load(str(tmp_path / "missing.mlmodelc"))
        assert isinstance(failure.value.__cause__, coreml_portable.CoreMLError)
        del failure


def test_the_specification_version_is_refused():
    with pytest.raises(RuntimeError, match="specification version"):
        ct.libcoremlpython._MLModelProxy.auto_set_specification_version(b"")


def test_images_go_in_and_come_out():
    @mb.program(input_specs=[mb.TensorSpec((1, 3, 4, 5))])
    def program(x):
        return mb.sub(x=255.0, y=x, name="y")

    image = ct.ImageType(name="x", shape=(1, 3, 4, 5))
    tensors = ct.convert(program, inputs=[image], minimum_deployment_target=ct.target.iOS16)
    spec = tensors.get_spec()
    # The converter takes no images as outputs of a program that was built by hand.
    spec.description.output[0].type.CopyFrom(spec.description.input[0].type)
    model = ct.models.MLModel(spec, weights_dir=tensors.weights_dir)
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    negative = model.predict({"x": Image.fromarray(pixels)})["y"]
    assert (negative.mode, negative.size) == ("RGBA", (5, 4))
    np.testing.assert_array_equal(np.asarray(negative)[..., :3], 255 - pixels)


def test_install_twice_is_once():
    coreml_portable.install()
    assert ct.libcoremlpython is __import__("sys").modules["coremltools.libcoremlpython"]
