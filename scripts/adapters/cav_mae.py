"""CAV-MAE's embeddings of a split (github YuanGongND/cav-mae, `src` on PYTHONPATH).

    PYTHONPATH=cav-mae/src python scripts/adapters/cav_mae.py --weights audio_model.pth \
        --data DATA --split test --out cav_mae.npz
    scav evaluate --embeddings cav_mae.npz --data DATA --split test

As its retrieval does: the middle frame, log-mel of 1,024 frames, the mean of each stream's tokens.
`scav weights --from cav_mae` makes a model of ours of the same file, which needs no torch.
"""

import clips

LENGTH, MEAN, STD = 1024, -5.081, 4.4849
COLOURS = ((0.4850, 0.4560, 0.4060), (0.2290, 0.2240, 0.2250))


def main():
    arguments = clips.parse(__doc__)
    import models
    import torch
    import torchaudio
    import torchvision

    loaded = torch.load(arguments.weights, map_location="cpu", weights_only=True)
    model = models.CAVMAE(modality_specific_depth=11)
    model.load_state_dict({name.removeprefix("module."): v for name, v in loaded.items()})
    model = model.eval().to(arguments.device)
    crop = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(224, interpolation=3, antialias=True),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.Normalize(*COLOURS),
        ]
    )

    def picture(file):
        frames, _, _ = torchvision.io.read_video(str(file), output_format="TCHW", pts_unit="sec")
        return crop(frames[len(frames) // 2].float() / 255.0)

    def log_mel(file):
        wave, rate = torchaudio.load(str(file))
        options = {"htk_compat": True, "window_type": "hanning", "num_mel_bins": 128, "dither": 0.0}
        found = torchaudio.compliance.kaldi.fbank(
            wave - wave.mean(), sample_frequency=rate, frame_shift=10, **options
        )
        found = torch.nn.functional.pad(found, (0, 0, 0, max(LENGTH - len(found), 0)))[:LENGTH]
        return (found - MEAN) / STD

    @torch.no_grad()
    def encode(videos, sounds):
        pictures = torch.stack([picture(file) for file in videos]).to(arguments.device)
        mels = torch.stack([log_mel(file) for file in sounds]).to(arguments.device)
        audio, visual = model.forward_feat(mels, pictures)
        return visual.mean(dim=1).cpu().numpy(), audio.mean(dim=1).cpu().numpy()

    count = sum(parameter.numel() for parameter in model.parameters())
    clips.embed(
        arguments, encode, name="CAV-MAE", parameters=count, training="AudioSet-2M, ImageNet (MAE)"
    )


if __name__ == "__main__":
    main()
