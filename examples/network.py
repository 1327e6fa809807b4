"""What the two trained examples share: the block that their networks are made of, and the loop that trains them."""

import time

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn


class Block(nn.Module):
    """One layer of a vision network: look at the pixels around, mix the whole image, think about each pixel.

    Each of the three is added to what comes in. The mixer is any module (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels, mixer):
        super().__init__()
        self.around = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mix = nn.Sequential(nn.BatchNorm2d(channels), mixer)
        wider = nn.Conv2d(channels, 2 * channels, 1)
        self.think = nn.Sequential(nn.BatchNorm2d(channels), wider, nn.GELU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x):
        x = x + self.around(x)
        x = x + self.mix(x)
        return x + self.think(x)


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def train(name, model, loss_of_step, steps, rate):
    """Minimise loss_of_step(step) over the model's parameters; return the losses and the seconds."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    loss_column = TextColumn("loss {task.fields[loss]:.3f}")
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        loss_column,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    losses, start = [], time.perf_counter()
    model.train()
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, loss=float("nan"))
        for step in range(steps):
            optimiser.zero_grad()
            loss = loss_of_step(step)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            recent = losses[-20:]
            progress.update(task, advance=1, loss=sum(recent) / len(recent))
    model.eval()
    return losses, time.perf_counter() - start
