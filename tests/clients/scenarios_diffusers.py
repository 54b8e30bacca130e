"""What users of diffusers do, each function run in a process of its own: see `scenarios.py`."""

import sys
import tempfile
from typing import Any


def tiny_pipeline() -> Any:
    """A Stable Diffusion of random weights for images of 16 x 16."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.hub.serving import models

    torch.manual_seed(0)
    tokenizer: Any = models.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = 16
    text = CLIPTextConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=models.BEGIN,
        eos_token_id=models.END,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def painted(pipeline: Any) -> Any:
    """The image that `pipeline` makes of one prompt and one seed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return pipeline("a patch", num_inference_steps=2, output_type="np", generator=generator).images


def pipelines_and_loras(repo_id: str) -> None:
    import numpy
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
    from huggingface_hub import HfApi
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    api = HfApi()
    pipeline_id, lora_id = f"{repo_id}-sd", f"{repo_id}-lora"
    made = tiny_pipeline()
    plain = painted(made)
    made.push_to_hub(pipeline_id, private=True)
    loaded: Any = DiffusionPipeline.from_pretrained(pipeline_id)
    assert isinstance(loaded, StableDiffusionPipeline)
    numpy.testing.assert_allclose(painted(loaded), plain, atol=1e-5)
    assert api.model_info(pipeline_id).library_name == "diffusers"

    unet: Any = UNet2DConditionModel.from_pretrained(pipeline_id, subfolder="unet")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers: Any = get_peft_model_state_dict(unet)
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        here = tiny_pipeline()
        here.load_lora_weights(folder)
        expected = painted(here)
        api.create_repo(lora_id)
        api.upload_folder(repo_id=lora_id, folder_path=folder)
        api.upload_folder(repo_id=lora_id, folder_path=folder, path_in_repo="deep")
    assert numpy.abs(expected - plain).max() > 1e-3
    by_name = {"weight_name": "pytorch_lora_weights.safetensors"}
    for selection in ({}, by_name, {"subfolder": "deep", **by_name}):
        loaded.load_lora_weights(lora_id, **selection)
        numpy.testing.assert_allclose(painted(loaded), expected, atol=1e-5)
        loaded.unload_lora_weights()
        numpy.testing.assert_allclose(painted(loaded), plain, atol=1e-5)
    loaded.load_lora_weights(lora_id, adapter_name="style")
    loaded.set_adapters(["style"], adapter_weights=[0.0])
    numpy.testing.assert_allclose(painted(loaded), plain, atol=1e-5)
    unet.push_to_hub(f"{repo_id}-unet")
    assert api.model_info(f"{repo_id}-unet").library_name == "diffusers"


def textual_inversions_and_variants(repo_id: str) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import HfApi
    from safetensors.torch import save_file

    api = HfApi()
    word_id = f"{repo_id}-cat"
    with tempfile.TemporaryDirectory() as folder:
        tiny_pipeline().save_pretrained(folder, variant="fp16")
        api.create_repo(repo_id)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
        save_file({"<my cat>": torch.ones(16)}, f"{folder}/learned_embeds.safetensors")
        api.create_repo(word_id)
        api.upload_file(
            path_or_fileobj=f"{folder}/learned_embeds.safetensors",
            path_in_repo="learned_embeds.safetensors",
            repo_id=word_id,
        )
    assert api.model_info(repo_id).library_name == "diffusers"
    pipeline: Any = StableDiffusionPipeline.from_pretrained(repo_id, variant="fp16")
    pipeline.load_textual_inversion(word_id)
    [number] = pipeline.tokenizer.encode("<my cat>")
    torch.testing.assert_close(pipeline.text_encoder.get_input_embeddings().weight[number], torch.ones(16))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
