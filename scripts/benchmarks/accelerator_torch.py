"""The paper's model in PyTorch, as who would write it there today: the peer of accelerator.py.

Towers as configs/vggsound.py has them (projection, pre-LN blocks with a relative position bias,
final norm), attention by `scaled_dot_product_attention`, bfloat16 by autocast, the sequential loss
by one product of all flattened latents, fused AdamW, `torch.compile`.
"""

import time
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

GIB = 2**30
REPEATS, MOST_S = 10, 8.0  # of the timed steps
WIDTH, GAMMA, CLIPS = 512, 0.1, 32  # of the latents that soft-DTW compares


class Sizes(NamedTuple):
    """Of the towers, as plain numbers, so that none of the project is needed.

    Attributes:
      width, heads, feedforward, dropout, position_buckets: of every block.
      features: widths of the visual and the audio features.
      hidden, blocks: of the visual and the audio tower.
    """

    width: int
    heads: int
    feedforward: int
    dropout: float
    position_buckets: int
    features: tuple[int, int]
    hidden: tuple[int, int]
    blocks: tuple[int, int]


SMALL = Sizes(32, 4, 64, 0.1, 320, features=(16, 24), hidden=(32, 32), blocks=(1, 1))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.scale = nn.Linear(width // heads, 8), nn.Parameter(torch.ones(heads, 1, 1))
        self.wide, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def forward(self, x, bias):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        gates = torch.sigmoid(self.gate(q).float().view(b, self.heads, t, 2, 4).sum(-1))
        gain = gates[..., :1] * (gates[..., 1:] * self.scale - 1.0) + 2.0
        rate = self.rate if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=(gain * bias).to(q.dtype), dropout_p=rate
        )
        mixed = self.out(mixed.transpose(1, 2).reshape(b, t, c))
        x = x + functional.dropout(mixed, rate)
        y = self.narrow(functional.gelu(self.wide(self.norms[1](x))))
        return x + functional.dropout(y, rate)


class Tower(nn.Module):
    def __init__(self, e: Sizes, stream: int):
        super().__init__()
        features, hidden, blocks = e.features[stream], e.hidden[stream], e.blocks[stream]
        self.rate = e.dropout
        self.into, self.onto = nn.Linear(features, hidden), nn.Linear(hidden, e.width)
        self.table = nn.Parameter(0.02 * torch.randn(e.position_buckets, e.heads))
        self.blocks = nn.ModuleList(
            Block(e.width, e.heads, e.feedforward, e.dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(e.width)

    def forward(self, x):
        steps = torch.arange(x.shape[1], device=x.device)
        buckets = (steps[:, None] - steps[None]) + len(self.table) // 2
        bias = self.table[buckets].permute(2, 0, 1)
        x = functional.dropout(functional.gelu(self.into(x)), self.rate if self.training else 0.0)
        x = functional.dropout(self.onto(x), self.rate if self.training else 0.0)
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x.float())


def sequential_loss(visual, audio):
    """Cross-entropy over z-scored distances, both ways, by one product."""
    v, a = visual.flatten(1), audio.flatten(1)
    squares = (v * v).sum(1)[:, None] + (a * a).sum(1)[None] - 2 * v @ a.T
    distances = squares / v.shape[1]
    scores = -(distances - distances.mean()) / distances.std()
    own = torch.arange(len(v), device=v.device)
    both = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
    return both / 2


# -- rows of accelerator.py -----------------------------------------------------------------------


def step(quick: bool, batch: int, steps: tuple[int, int], bfloat16: bool, towers: dict) -> dict:
    """A compiled training step on so many visual and audio steps, which have to be as many."""
    sizes = SMALL if quick else Sizes(**towers)
    batch, steps = (8, (6, 6)) if quick else (batch, steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    both = nn.ModuleList(Tower(sizes, stream) for stream in range(2)).to(device)
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-4, fused=device == "cuda")
    features = [
        torch.randn(batch, n, width, device=device).half()
        for n, width in zip(steps, sizes.features, strict=True)
    ]

    def loss_of(visual, audio):
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            latents = [
                tower(x if bfloat16 else x.float())
                for tower, x in zip(both, (visual, audio), strict=True)
            ]
        return sequential_loss(*latents)

    compiled = torch.compile(loss_of)

    def call():
        optimizer.zero_grad(set_to_none=True)
        compiled(*features).backward()
        optimizer.step()

    first, seconds = timed(call, device, 2 if quick else REPEATS)
    return {
        "ms": 1e3 * seconds,
        "clips_per_s": batch / seconds,
        "first_s": first,
        "in_use_gib": torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None,
    }


def soft_dtw(quick: bool, visual_steps: int) -> dict:
    """All pairs of 32 clips by pytorch-softdtw-cuda, whose `soft_dtw_cuda.py` is on PYTHONPATH.

    Behind a batched product: its own costs would write all differences of all pairs.
    """
    import soft_dtw_cuda

    device = "cuda" if torch.cuda.is_available() else "cpu"
    of_pairs = soft_dtw_cuda._SoftDTWCUDA if device == "cuda" else soft_dtw_cuda._SoftDTW
    clips, width = (4, 8) if quick else (CLIPS, WIDTH)
    shapes = (9, 6) if quick else (visual_steps, 62)
    latents = [torch.randn(clips, n, width, device=device, requires_grad=True) for n in shapes]

    def call():
        x, y = (z / width**0.5 for z in latents)
        squares = (x * x).sum(-1)[:, None, :, None] + (y * y).sum(-1)[None, :, None, :]
        costs = squares - 2.0 * torch.einsum("qnc,kmc->qknm", x, y)
        of_pairs.apply(costs.reshape(-1, *shapes).contiguous(), GAMMA, 0.0).sum().backward()

    first, seconds = timed(call, device, 2 if quick else REPEATS)
    return {"ms": 1e3 * seconds, "first_s": first}


def timed(call, device: str, repeats: int) -> tuple[float, float]:
    """Seconds of the first call, and the median of the others."""
    times = []
    while len(times) < 2 or (len(times) <= repeats and sum(times[1:]) < MOST_S):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return times[0], sorted(times[1:])[(len(times) - 1) // 2]
