"""Networks of timm, torchvision and transformers by name, with random weights.

The author's module is the package's own; the blocks are those that `oracle` finds in it.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases.case import (
    NOT_TRIED,
    PARTLY,
    REFUSED,
    RIGHT,
    RIGHTLY_REFUSED,
    TOLERANCE,
    WRONG,
    Case,
    Row,
    difference,
    randomised,
)
from cases.oracle import Ran, logits, run
from torch import Tensor, nn

import gatepruner
from gatepruner.errors import GatePrunerError
from gatepruner.networks.graph import remarks_on

MOST = 100_000_000  # parameters
SIDES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 384)
Shape = tuple[int, int, int]


def compared(author: nn.Module, checkpoint: gatepruner.Checkpoint) -> Row:
    """How a checkpoint compares with its author's module.

    Whole, without one block, and without every second block, the author's module with the
    branches of these additions multiplied by 0.
    """
    shape = checkpoint.network.base.input_shape
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    expected, ran = run(author, images)
    with torch.no_grad():
        whole = difference(checkpoint.build()(images), expected)
    blocks = [block.name for block in checkpoint.network.blocks]
    theirs = Counter(inside(addition.path) for addition in ran)
    ours = Counter(name.partition(":")[0] for name in blocks)
    row: Row = {"blocks": len(blocks), "oracle": len(ran), "difference": whole}
    if foreign := ours - theirs:
        return {**row, "outcome": WRONG, "text": f"no additions: {', '.join(foreign)}"}
    known = [
        name for name in checkpoint.network.removable if ours[path(name)] == theirs[path(name)]
    ]
    plans = [known[len(known) // 2 :][:1], known[::2]]
    removed = [without(author, checkpoint, (images, ran), plan) for plan in plans if plan]
    row["removed"] = max(removed, default=None)
    if max([whole, *removed]) > TOLERANCE:
        return {**row, "outcome": WRONG, "text": "the logits differ"}
    missing = theirs - ours
    remarks = "; ".join(remarks_on(checkpoint.network.kept))
    return {**row, "outcome": PARTLY if missing else RIGHT, "text": remarks}


def inside(path: str) -> str:
    """The path of a module without what wraps the network."""
    return re.sub(r"^((module|_orig_mod)(\.|$))*", "", path) or "root"


def path(name: str) -> str:
    """The path in the name of a block."""
    return name.partition(":")[0]


def without(
    author: nn.Module,
    checkpoint: gatepruner.Checkpoint,
    ran: tuple[Tensor, list[Ran]],
    plan: list[str],
) -> float:
    """The difference of the logits without some blocks.

    Args:
        author: the module.
        checkpoint: its network.
        ran: images, and the additions that the module computes for them.
        plan: names of blocks.
    """
    images, additions = ran
    with torch.no_grad():
        small = gatepruner.remove(checkpoint, plan).build()(images)
    wanted = {(path(name), int(name.partition(":")[2] or 1)) for name in plan}
    seen, gone = Counter[str](), set[int]()
    for addition in additions:
        name = inside(addition.path)
        seen[name] += 1
        if (name, seen[name]) in wanted:
            gone.add(addition.index)

    def differing(tied: int) -> float:
        def cut(addition: Ran) -> int | None:
            if addition.index not in gone:
                return None
            return tied if addition.branch is None else addition.branch

        return difference(small, run(author, images, cut)[0])

    return min(differing(0), differing(1))


def by_name(name: str, make: Callable[[int], nn.Module]) -> Row:
    """A network by its name, or as a module where the name is refused."""
    author, side = smallest(make)
    if author is None:
        return {"outcome": NOT_TRIED, "text": side}
    shape = (3, side, side)
    try:
        network = gatepruner.Network.named(name, input_shape=shape)
        state = author.state_dict()
        weights = {key: state[key].clone() for key in network.state()}
        checkpoint, refusal = gatepruner.Checkpoint(network, weights), ""
    except GatePrunerError as error:
        refusal = str(error)
        checkpoint = None
    if checkpoint is None:
        try:
            checkpoint = gatepruner.Checkpoint.of(author, shape)
        except GatePrunerError as error:
            return unpruned(author, shape, str(error))
    row = compared(author, checkpoint)
    text = f"as a module; by name: {refusal}" if refusal else row.get("text", "")
    return {**row, "text": text, "side": side}


def as_module(make: Callable[[int], nn.Module]) -> Row:
    """A module that the caller has made."""
    author, side = smallest(make)
    if author is None:
        return {"outcome": NOT_TRIED, "text": side}
    try:
        checkpoint = gatepruner.Checkpoint.of(author, (3, side, side))
    except GatePrunerError as error:
        return unpruned(author, (3, side, side), str(error))
    return {**compared(author, checkpoint), "side": side}


def unpruned(author: nn.Module, shape: Shape, refusal: str) -> Row:
    """A network that is refused: rightly, if it has no residual addition."""
    ran = run(author, torch.randn(2, *shape))[1]
    outcome = REFUSED if ran else RIGHTLY_REFUSED
    return {"blocks": 0, "oracle": len(ran), "outcome": outcome, "text": refusal}


def smallest(make: Callable[[int], nn.Module]) -> tuple[nn.Module | None, Any]:
    """A module and the smallest side of images that it takes; None and why, if there is none."""
    reason = ""
    for side in SIDES:
        try:
            module = make(side)
            count = sum(parameter.numel() for parameter in module.parameters())
            if count > MOST:
                return None, f"{count / 1e6:.0f} M parameters; at most {MOST / 1e6:.0f} M are tried"
            randomised(module)
            with torch.no_grad():
                logits(module(torch.randn(2, 3, side, side)))
            return module, side
        except Exception as error:  # of another size
            reason = f"{type(error).__name__}: {error}"
    return None, f"no size of image works: {reason}"


def timm_module(name: str, side: int) -> nn.Module:
    """A module of timm for images of this side."""
    import timm

    torch.manual_seed(0)
    if side == 224:
        return timm.create_model(name)
    try:
        return timm.create_model(name, img_size=(side, side))
    except TypeError:
        return timm.create_model(name)


def torchvision_module(name: str, side: int) -> nn.Module:
    """A module of torchvision for images of this side."""
    from torchvision import models

    torch.manual_seed(0)
    sized = {"vit_": {"image_size": side}, "maxvit": {"input_size": (side, side)}}
    given = next((given for prefix, given in sized.items() if name.startswith(prefix)), {})
    return models.get_model(name, weights=None, **given)


def transformers_module(kind: str, given: dict[str, Any], side: int) -> nn.Module:
    """An image classifier of transformers from a small configuration."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES,
    )

    torch.manual_seed(0)
    name = NAMES[kind][0] if isinstance(NAMES[kind], tuple) else NAMES[kind]
    config = transformers.AutoConfig.for_model(kind, num_labels=7)
    vision = getattr(config, "vision_config", config)
    for key, value in {**SMALL, "image_size": side, **given}.items():
        if key in given or type(getattr(vision, key, None)) is int:
            setattr(vision, key, value)
    return getattr(transformers, name)(config)


# What a configuration has of these gets these values.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "patch_size": 16,
}

# The smallest model of each module of timm; modules without a model of their own are left out.
FAMILIES = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "tinynet_e",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
POPULAR = (
    *("resnet18", "resnet34", "resnet50", "resnet26d", "resnet50d", "resnet18d", "resnet10t"),
    *("resnetblur50", "resnetaa50", "seresnet50", "ecaresnet50d", "ecaresnet26t", "skresnet18"),
    *("skresnet50", "seresnext26d_32x4d", "resnext50_32x4d", "resnext26ts", "eca_resnet33ts"),
    *("gcresnet33ts", "gcresnext26ts", "gluon_resnet50_v1b", "resnetrs50", "resnest14d"),
    *("res2net50_26w_4s", "resnetv2_50", "resnetv2_50x1_bit", "resnetv2_50d_gn", "nf_resnet26"),
    *("nf_resnet50", "nf_regnet_b0", "eca_nfnet_l0", "dm_nfnet_f0", "nfnet_l0", "wide_resnet50_2"),
    *("regnetx_002", "regnetx_008", "regnety_002", "regnety_016", "regnetz_b16", "regnetv_040"),
    *("efficientnet_b0", "efficientnet_b2", "efficientnet_lite0", "tf_efficientnet_b0"),
    *("tf_efficientnet_lite0", "tf_efficientnetv2_b0", "efficientnetv2_rw_t"),
    *("gc_efficientnetv2_rw_t", "mixnet_s", "mnasnet_100", "fbnetc_100", "spnasnet_100"),
    *("tinynet_a", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100"),
    *("mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "mobilenetv1_100", "lcnet_050"),
    *("hardcorenas_a", "ghostnet_100", "ghostnetv2_100", "semnasnet_075", "rexnet_100"),
    *("convnext_atto", "convnext_tiny", "convnextv2_atto", "convnextv2_tiny", "convnext_nano_ols"),
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224"),
    *("vit_relpos_small_patch16_224", "vit_srelpos_small_patch16_224", "vit_tiny_r_s16_p8_224"),
    *("vit_small_r26_s32_224", "vit_medium_patch16_gap_240", "vit_pwee_patch16_reg1_gap_256"),
    *("vit_betwixt_patch16_reg4_gap_256", "vit_wee_patch16_reg1_gap_256"),
    *("vit_little_patch16_reg4_gap_256", "deit_tiny_patch16_224", "deit_small_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "cait_xxs24_224"),
    *("cait_s24_224", "xcit_nano_12_p16_224", "xcit_tiny_12_p8_224"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224"),
    *("swin_s3_tiny_224", "maxvit_tiny_tf_224", "maxvit_rmlp_pico_rw_256", "coatnet_nano_rw_224"),
    *("coatnet_rmlp_nano_rw_224", "coat_tiny", "coat_lite_tiny", "mvitv2_tiny", "pvt_v2_b0"),
    *("pvt_v2_b2_li", "twins_pcpvt_small", "twins_svt_small", "poolformer_s12", "poolformerv2_s12"),
    *("caformer_s18", "convformer_s18", "edgenext_small", "mobilevit_s", "mobilevitv2_100"),
    *("tiny_vit_5m_224", "tiny_vit_21m_224", "efficientformer_l1", "efficientformerv2_s0"),
    *("levit_128s", "levit_conv_128s", "crossvit_9_240", "crossvit_tiny_240", "visformer_tiny"),
    *("convit_tiny", "convmixer_768_32", "mixer_s16_224", "mixer_s32_224", "resmlp_12_224"),
    *("gmlp_ti16_224", "gmixer_24_224", "repvgg_a0", "repvit_m1", "fastvit_t8", "mobileone_s0"),
    *("densenet121", "dla34", "dpn68", "hrnet_w18_small", "darknet53", "cspresnet50"),
    *("cspdarknet53", "cs3darknet_s", "cspresnext50", "selecsls42b", "vovnet39a"),
    *("ese_vovnet19b_dw", "xception41", "inception_v4", "halonet26t", "botnet26t_256"),
    *("bat_resnext26ts", "lambda_resnet26t", "lamhalobotnet50ts_256", "sebotnet33ts_256"),
    *("eva02_tiny_patch14_224", "beit_base_patch16_224", "volo_d1_224", "davit_tiny"),
    *("focalnet_tiny_srf", "gcvit_xxtiny", "hiera_tiny_224", "inception_next_atto", "nest_tiny"),
    *("pit_ti_224", "pit_s_distilled_224", "sequencer2d_s", "tnt_s_legacy_patch16_224"),
    *("tresnet_m", "samvit_base_patch16_224", "sam2_hiera_tiny", "starnet_s1", "swiftformer_xs"),
)
TORCHVISION = (
    *("alexnet", "convnext_tiny", "convnext_small", "densenet121", "efficientnet_b0"),
    *("efficientnet_b4", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("regnet_x_400mf", "regnet_y_400mf", "regnet_y_3_2gf", "resnet18", "resnet34", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x2_0", "squeezenet1_0", "swin_t"),
    *("swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16", "wide_resnet50_2"),
)
# Those that take pixels, with a configuration beside SMALL where that does not do.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    name: {}
    for name in (
        *(
            "beit",
            "bit",
            "clip",
            "cvt",
            "data2vec-vision",
            "deit",
            "dinov2",
            "focalnet",
            "hgnet_v2",
        ),
        *("dinov2_with_registers", "ijepa", "levit", "metaclip_2", "mobilenet_v1", "mobilenet_v2"),
        *("poolformer", "pp_lcnet", "pvt", "pvt_v2", "regnet", "resnet", "segformer", "siglip"),
        *("swiftformer", "textnet", "timm_wrapper", "vit", "vit_msn"),
    )
} | {
    "convnext": {"patch_size": 4, "num_hidden_layers": 4},
    "convnextv2": {"patch_size": 4, "num_hidden_layers": 4},
    "donut-swin": {"patch_size": 4, "num_hidden_layers": 4},
    "efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "hiera": {"depths": [1, 2, 3, 1]},
    "mobilevit": {"patch_size": 2},
    "mobilevitv2": {"patch_size": 2},
    "swin": {"patch_size": 4, "num_hidden_layers": 4},
    "swinv2": {"patch_size": 4, "num_hidden_layers": 4},
}


def _cases() -> Iterator[Case]:
    for family, name in FAMILIES.items():
        work = functools.partial(by_name, f"timm:{name}", functools.partial(timm_module, name))
        yield Case("timm, one of each module", f"{family}: {name}", work)
    for name in POPULAR:
        if name not in FAMILIES.values():
            work = functools.partial(by_name, f"timm:{name}", functools.partial(timm_module, name))
            yield Case("timm, popular", name, work)
    for name in TORCHVISION:
        make = functools.partial(torchvision_module, name)
        yield Case("torchvision", name, functools.partial(by_name, f"torchvision:{name}", make))
    for kind, given in TRANSFORMERS.items():
        make = functools.partial(transformers_module, kind, given)
        yield Case("transformers, as a module", kind, functools.partial(as_module, make))


CASES = tuple(_cases())
