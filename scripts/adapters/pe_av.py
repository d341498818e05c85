"""PE-AV's embeddings of a split (Perception Encoder audio-visual, by transformers with torch).

python scripts/adapters/pe_av.py --data DATA --split test --out pe_av.npz
scav evaluate --embeddings pe_av.npz --data DATA --split test
"""

import clips

RATE_HZ = 48_000
FRAMES = 16


def main():
    arguments = clips.parse(__doc__)
    import soundfile
    import torch
    from transformers import AutoProcessor, PeAudioVideoModel
    from transformers.video_utils import load_video

    hub_id = arguments.weights or "facebook/pe-av-large"
    processor = AutoProcessor.from_pretrained(hub_id)
    model = PeAudioVideoModel.from_pretrained(hub_id).eval().to(arguments.device)

    @torch.no_grad()
    def encode(videos, sounds):
        frames = [load_video(str(file))[0] for file in videos]
        waves = [soundfile.read(str(file))[0] for file in sounds]
        inputs = {
            **processor.video_processor(frames, num_frames=FRAMES, return_tensors="pt"),
            **processor.feature_extractor(waves, sampling_rate=RATE_HZ, return_tensors="pt"),
        }
        found = model(**{name: value.to(arguments.device) for name, value in inputs.items()})
        return found.video_embeds.cpu().numpy(), found.audio_embeds.cpu().numpy()

    count = sum(parameter.numel() for parameter in model.parameters())
    clips.embed(
        arguments,
        encode,
        name="PE-AV",
        parameters=count,
        training="its authors' captioned videos",
        rate_hz=RATE_HZ,
    )


if __name__ == "__main__":
    main()
