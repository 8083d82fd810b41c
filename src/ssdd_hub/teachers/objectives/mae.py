"""MAE: predicts the hidden patches of an image, for vision transformers."""

from math import lcm
from typing import Any

from lightly.models import utils
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from lightly.transforms import MAETransform
from timm.layers import PatchEmbed
from timm.models import VisionTransformer
from torch import Tensor, arange, cat, nn
from torch.nn import functional

from ssdd_hub.errors import InputError, require
from ssdd_hub.teachers.objectives.base import Count, Objective, Share, Views, in_full_precision


class MAE(Objective):
    """MAE: the pixels of hidden patches are predicted from the few visible ones.

    The backbone is trained as it was built or loaded: nothing of it is initialised anew, and its position embedding
    is learned, where the authors fix one of sines and cosines. A norm that timm's head has after its pooling
    (`fc_norm`, in models that average) sees no masked token and could not learn: it is frozen, and may be trained
    again when the backbone is fine-tuned. Attention pooling, which would stay random, is refused.
    """

    name = "mae"
    citation = "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv 2111.06377"
    needs = ("vision transformer",)
    optimizer = "adamw"
    min_batch = 1
    mask_ratio: Share = 0.75  # share of the patches that is hidden
    decoder_dim: Count = 512  # width of the decoder's tokens
    decoder_depth: Count = 8  # blocks of the decoder
    decoder_heads: Count = 16  # attention heads of the decoder
    normalise_patches: bool = True  # predict each patch with mean 0 and variance 1, not its pixels as they are

    def _build_parts(self) -> None:
        vit: Any = self.backbone
        vit.fc_norm.requires_grad_(False)
        self.image_size: int = vit.patch_embed.img_size[0]
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.num_patches: int = vit.patch_embed.num_patches
        self.num_prefix: int = vit.num_prefix_tokens
        visible = int(self.num_patches * (1 - self.mask_ratio))
        width, heads = self.decoder_dim, self.decoder_heads
        require(
            (
                0 < visible < self.num_patches,
                f"mae: mask_ratio {self.mask_ratio} leaves {visible} of {self.num_patches} patches visible: at least "
                "one must be, and one hidden",
            ),
            # A position embedding of sines and cosines in two dimensions has four parts.
            (
                width % lcm(4, heads) == 0,
                f"mae: decoder_dim must be a multiple of 4 and of decoder_heads, got {width} and {heads}",
            ),
        )
        self.embed = nn.Linear(vit.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            self.num_patches, width, self.decoder_depth, heads, self.num_prefix
        )
        self.predict = nn.Linear(width, vit.patch_embed.proj.in_channels * self.patch_size**2)

    @classmethod
    def check_backbone(cls, backbone: nn.Module) -> None:
        """Refuses what is not a plain timm vision transformer for square images."""
        embedding, kind = getattr(backbone, "patch_embed", None), type(backbone).__name__
        if not isinstance(backbone, VisionTransformer) or not isinstance(embedding, PatchEmbed):
            raise InputError(
                f"mae hides patches from a timm VisionTransformer, and a {kind} is none: take another objective or a "
                "backbone such as vit_tiny_patch16_224"
            )
        (height, width), patch = embedding.img_size, embedding.patch_size
        require(
            (
                backbone.pos_embed is not None and not hasattr(backbone, "dist_token"),
                "mae needs a vision transformer with a position embedding and no distillation token, which this "
                f"{kind} is not: take another backbone",
            ),
            (
                backbone.attn_pool is None,
                f"mae does not train the attention pooling that this {kind} makes its features with, "
                "global_pool='map': build it with global_pool='avg' or 'token'",
            ),
            (
                height == width and patch[0] == patch[1] and height % patch[0] == 0,
                f"mae needs square images that whole patches cover, got a backbone for {height}x{width} pixels with "
                f"patches of {patch[0]}x{patch[1]}: build it with another img_size or patch_size",
            ),
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        """Returns the loss of one view, `(B, C, H, W)` of the size that the backbone was built for."""
        (images,) = views
        keep, hide = utils.random_token_mask(
            (len(images), self.num_patches), self.mask_ratio, mask_class_token=True, device=images.device
        )
        prefix = arange(self.num_prefix, device=images.device).expand(len(images), -1)
        kept = cat([prefix, keep + self.num_prefix], 1)
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.num_prefix + self.num_patches))
        encoded = self.embed(self._encode(images, kept))
        decoded = self.decoder(utils.set_at_index(tokens.type_as(encoded), kept, encoded))
        predictions = self.predict(utils.get_at_index(decoded, hide + self.num_prefix))
        patches = utils.get_at_index(utils.patchify(images, self.patch_size), hide)
        if self.normalise_patches:
            patches = utils.normalize_mean_var(patches)
        return in_full_precision(functional.mse_loss, predictions, patches)

    def _encode(self, images: Tensor, kept: Tensor) -> Tensor:
        # lightly's wrapper is made for the call: as a submodule it would put the backbone into the state dict twice.
        wrapper = MaskedVisionTransformerTIMM(
            self.backbone, self.decoder.mask_token, weight_initialization="skip", pos_embed_initialization="skip"
        )
        encoded: Tensor = wrapper.encode(images, idx_keep=kept)
        return encoded

    def build_transform(self, normalize: dict[str, list[float]], image_size: int, **view_args: Any) -> Views:
        """Returns lightly's transform, one view that is cropped and flipped at random."""
        if image_size != self.image_size:
            raise InputError(
                f"mae needs a backbone built for the images' size, got one for {self.image_size} pixels with images "
                f"of {image_size}: build it with img_size={image_size}"
            )
        transform: Views = MAETransform(input_size=image_size, normalize=normalize, **view_args)
        return transform
