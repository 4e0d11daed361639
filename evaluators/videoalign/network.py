"""VideoReward's network: Qwen2-VL without its language head, and a linear reward head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.api import BenchError

if TYPE_CHECKING:
    from transformers import Qwen2VLModel


class RewardModel(nn.Module):
    """Qwen2-VL without its language head, and a linear map from the last hidden state to rewards."""

    def __init__(self, backbone: Qwen2VLModel, output_dim: int, hidden: int):
        super().__init__()
        self.backbone = backbone
        self.rm_head = nn.Linear(hidden, output_dim, bias=False)

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        at: Int[Tensor, "b 3"],
        pixels: Float[Tensor, "p 1176"],
        grid: Int[Tensor, "b 3"],
        video_id: int,
    ) -> Float[Tensor, "b 3"]:
        """Raw VQ, MQ and TA in float32.

        `at`: positions of the reward tokens; `grid`: frame pairs, rows and columns of patches per video.
        """
        decoder = self.backbone.language_model
        embeds = decoder.embed_tokens(ids)
        features = self.features(pixels.to(embeds.dtype), grid)
        is_video = ids == video_id
        if features.shape != (int(is_video.sum()), embeds.shape[-1]):
            raise BenchError(
                f"the vision tower gave features of shape {tuple(features.shape)} for {int(is_video.sum())} tokens: "
                "install the transformers version of requirements.lock."
            )
        embeds[is_video] = features.to(embeds.dtype)
        positions = self.positions(ids, grid)
        hidden = decoder(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
        rewards: Tensor = self.rm_head(hidden[torch.arange(len(ids), device=ids.device)[:, None], at]).float()
        return rewards[..., 0] if rewards.shape[-1] == 1 else rewards.diagonal(dim1=1, dim2=2)

    def features(self, pixels: Float[Tensor, "p 1176"], grid: Int[Tensor, "b 3"]) -> Float[Tensor, "m h"]:
        """One visual feature per 2 x 2 patches and frame pair, after the merger (not the tower's last state)."""
        merged: Tensor = self.backbone.visual(pixels, grid_thw=grid).pooler_output
        return merged

    def positions(self, ids: Int[Tensor, "b l"], grid: Int[Tensor, "b 3"]) -> Int[Tensor, "3 b l"]:
        """0 to l-1 on all three rotary axes, as in training. Qwen2-VL's own positions, which need `grid`, differ."""
        return torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
