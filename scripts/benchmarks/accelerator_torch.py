"""The paper's model in PyTorch, as who would write it there today: the peer of accelerator.py.

Towers as configs/vggsound.py has them (projection, pre-LN blocks with a relative position bias,
final norm), attention by `scaled_dot_product_attention`, bfloat16 by autocast, the sequential loss
by one product of all flattened latents, fused AdamW, `torch.compile`.
"""

import time

import torch
from torch import nn
from torch.nn import functional


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
    def __init__(self, features: int, hidden: int, blocks: int, e):
        super().__init__()
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


def step_seconds(encoders, widths, batch: int, steps: int, repeats: int, bfloat16: bool) -> dict:
    """Seconds of a compiled training step on the card, and of its first call."""
    torch.set_float32_matmul_precision("highest")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    towers = nn.ModuleList(
        Tower(widths[name], getattr(encoders, f"{name}_hidden"),
              getattr(encoders, f"{name}_blocks"), encoders)
        for name in ("visual", "audio")
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-4, fused=device == "cuda")
    features = [
        torch.randn(batch, steps, widths[name], device=device).half()
        for name in ("visual", "audio")
    ]

    def loss_of(visual, audio):
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            latents = [
                tower(x if bfloat16 else x.float())
                for tower, x in zip(towers, (visual, audio), strict=True)
            ]
        return sequential_loss(*latents)

    compiled = torch.compile(loss_of)

    def step():
        optimizer.zero_grad(set_to_none=True)
        compiled(*features).backward()
        optimizer.step()

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    begin = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - begin
    times = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"seconds": sorted(times)[len(times) // 2], "compile_s": first, "peak_bytes": peak}
