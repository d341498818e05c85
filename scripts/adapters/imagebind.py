"""ImageBind's embeddings of a split (github facebookresearch/ImageBind, in its own environment).

python scripts/adapters/imagebind.py --data DATA --split test --out imagebind.npz
scav evaluate --embeddings imagebind.npz --data DATA --split test
"""

import clips


def main():
    arguments = clips.parse(__doc__)
    import torch
    from imagebind import data
    from imagebind.models import imagebind_model
    from imagebind.models.imagebind_model import ModalityType

    model = imagebind_model.imagebind_huge(pretrained=True).eval().to(arguments.device)

    @torch.no_grad()
    def encode(videos, sounds):
        found = model(
            {
                ModalityType.VISION: data.load_and_transform_video_data(
                    [str(file) for file in videos], arguments.device
                ),
                ModalityType.AUDIO: data.load_and_transform_audio_data(
                    [str(file) for file in sounds], arguments.device
                ),
            }
        )
        return [found[one].cpu().numpy() for one in (ModalityType.VISION, ModalityType.AUDIO)]

    count = sum(parameter.numel() for parameter in model.parameters())
    clips.embed(
        arguments,
        encode,
        name="ImageBind",
        parameters=count,
        training="AudioSet and image-paired data",
    )


if __name__ == "__main__":
    main()
