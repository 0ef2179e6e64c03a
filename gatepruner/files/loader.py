"""Loads a network that gatepruner has exported to safetensors. Needs no gatepruner.

model = load("small.safetensors")  # small.safetensors.config.json says what to construct
"""

import importlib
import json
import operator

import torch
from safetensors.torch import load_file
from torch import fx

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
LIBRARIES = {"torchvision": ("torchvision.models", "get_model"), "timm": ("timm", "create_model")}


def load(path):  # type: ignore[no-untyped-def]
    """The network in evaluation mode."""
    with open(f"{path}.config.json", encoding="utf-8") as file:
        how = json.load(file)["construct"]
    library, construct = LIBRARIES[how["library"]]
    construct = getattr(importlib.import_module(library), construct)
    model = fx.symbolic_trace(construct(how["name"], **how["arguments"]).eval())
    additions = [node for node in model.graph.nodes if node.target in ADDITIONS]
    for index, operand in how["operands"]:  # of some additions, one operand is left
        additions[index].replace_all_uses_with(additions[index].args[operand])
    model.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    model = fx.GraphModule(model, model.graph)  # with what is left
    missing = model.load_state_dict(load_file(path), strict=False).missing_keys
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return model.eval()
