"""Structures and plans in the classes of coremltools, which has to be there when this module is imported."""

from __future__ import annotations

from typing import Any

from coremltools.models import compute_device, compute_plan

from .coremltools import (
    _Listed,
    _MLComputePlanProxy,
    _MLCPUComputeDeviceProxy,
    _MLModelStructureNeuralNetworkLayerProxy,
    _MLModelStructureProgramOperationProxy,
)

_DEVICES = {"cpu": (compute_device.MLCPUComputeDevice, _MLCPUComputeDeviceProxy)}


def device(kind: str) -> compute_device.MLComputeDevice:
    """A device by its kind in ``backend_info``."""
    made, proxy = _DEVICES[kind]
    return made(proxy())


class _Plan(_MLComputePlanProxy):
    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self.model_structure = structure(answer)

    def _planned(self, part: _Listed, member: str) -> Any:
        """What the plan says of one of its own ops or layers, if anything; of another model's it says nothing."""
        return part.listed.get(member) if part.answer is self._answer else None

    def _usage(self, part: _Listed) -> compute_plan.MLComputePlanDeviceUsage | None:
        devices = self._planned(part, "devices")
        if devices is None:
            return None
        return compute_plan.MLComputePlanDeviceUsage(
            preferred_compute_device=device(devices["preferred"]),
            supported_compute_devices=[device(kind) for kind in devices["supported"]],
        )

    def get_compute_device_usage_for_mlprogram_operation(
        self, operation: compute_plan.MLModelStructureProgramOperation
    ) -> compute_plan.MLComputePlanDeviceUsage | None:
        return self._usage(operation.__proxy__)

    def get_compute_device_usage_for_neuralnetwork_layer(
        self, layer: compute_plan.MLModelStructureNeuralNetworkLayer
    ) -> compute_plan.MLComputePlanDeviceUsage | None:
        return self._usage(layer.__proxy__)

    def get_estimated_cost_for_mlprogram_operation(
        self, operation: compute_plan.MLModelStructureProgramOperation
    ) -> compute_plan.MLComputePlanCost | None:
        weight = self._planned(operation.__proxy__, "weight")
        return None if weight is None else compute_plan.MLComputePlanCost(weight)


def plan(answer: dict[str, Any]) -> compute_plan.MLComputePlan:
    """What the table's `compute_plan` answers."""
    return compute_plan.MLComputePlan(_Plan(answer))


def structure(answer: dict[str, Any]) -> compute_plan.MLModelStructure:
    """What the table's `model_structure` answers."""
    return _model(answer, answer)


def _model(answer: dict[str, Any], model: dict[str, Any]) -> compute_plan.MLModelStructure:
    """A model of the answer: the whole, or one inside a pipeline. Of other kinds coremltools has no class."""
    network = program = pipeline = None
    kind, functions = model["kind"], model["functions"]
    if kind == "ML program":
        program = compute_plan.MLModelStructureProgram(
            {name: _function(answer, function) for name, function in functions.items()}
        )
    elif kind.startswith("neural network"):
        layers = [_layer(answer, layer) for layer in functions["main"]["ops"]]
        network = compute_plan.MLModelStructureNeuralNetwork(layers)
    elif kind.startswith("pipeline"):
        # The table says no names of the models inside: their places stand for them.
        models = [(str(at), _model(answer, inner)) for at, inner in enumerate(model["models"])]
        pipeline = compute_plan.MLModelStructurePipeline(models)
    return compute_plan.MLModelStructure(network, program, pipeline)


def _layer(answer: dict[str, Any], layer: dict[str, Any]) -> compute_plan.MLModelStructureNeuralNetworkLayer:
    return compute_plan.MLModelStructureNeuralNetworkLayer(
        name=layer.get("name", ""),
        type=layer["kind"],
        input_names=layer["inputs"][""],
        output_names=[output["name"] for output in layer["outputs"]],
        __proxy__=_MLModelStructureNeuralNetworkLayerProxy(answer, layer),
    )


def _function(answer: dict[str, Any], function: dict[str, Any]) -> compute_plan.MLModelStructureProgramFunction:
    # What a function takes it takes itself, not its block.
    block = _block(answer, {**function, "inputs": []})
    return compute_plan.MLModelStructureProgramFunction(_values(function["inputs"]), block)


def _block(answer: dict[str, Any], block: dict[str, Any]) -> compute_plan.MLModelStructureProgramBlock:
    return compute_plan.MLModelStructureProgramBlock(
        inputs=_values(block["inputs"]),
        operations=[_operation(answer, op) for op in block["ops"]],
        output_names=block["outputs"],
    )


def _operation(answer: dict[str, Any], op: dict[str, Any]) -> compute_plan.MLModelStructureProgramOperation:
    return compute_plan.MLModelStructureProgramOperation(
        inputs={
            parameter: compute_plan.MLModelStructureProgramArgument([_binding(text) for text in texts])
            for parameter, texts in op["inputs"].items()
        },
        operator_name=op["kind"],
        outputs=_values(op["outputs"]),
        blocks=[_block(answer, block) for block in op.get("blocks", [])],
        __proxy__=_MLModelStructureProgramOperationProxy(answer, op),
    )


def _binding(text: str) -> compute_plan.MLModelStructureProgramBinding:
    if text.split(" ", 1)[0] == "constant":
        return compute_plan.MLModelStructureProgramBinding(None, compute_plan.MLModelStructureProgramValue())
    return compute_plan.MLModelStructureProgramBinding(text, None)


def _values(values: list[dict[str, Any]]) -> list[compute_plan.MLModelStructureProgramNamedValueType]:
    """coremltools' class of a type has no members, so types are lost here."""
    unknown = compute_plan.MLModelStructureProgramValueType()
    return [compute_plan.MLModelStructureProgramNamedValueType(value["name"], unknown) for value in values]
