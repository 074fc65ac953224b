"""What the figures of a tick say about the health of a run, in words, each once in a while."""

from collections.abc import Mapping

Stats = Mapping[str, Mapping[str, float]]

SURE, OVERFITS = 0.98, 0.6  # |sign of D|; sign of D(real), the target of ADA (arXiv 2006.06676)
SATURATED = 0.95  # p of the augmentation
COLLAPSED, HEEDLESS = 0.25, 1.5  # variety of fakes over that of reals; of conditions, over that by chance
AGAIN_AFTER = 50  # ticks until the same is said again


class Advice:
    """Remembers what was said."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}
        self._tick = 0

    def lines(self, stats: Stats) -> list[str]:
        """What to say of a tick; [] as a rule."""
        self._tick += 1
        found = dict(_findings(stats))
        new = [name for name in found if self._tick - self._said.get(name, -AGAIN_AFTER) >= AGAIN_AFTER]
        self._said |= dict.fromkeys(new, self._tick)
        return [found[name] for name in new]


def _findings(stats: Stats) -> list[tuple[str, str]]:
    def mean(name: str) -> float:
        return stats[name]["mean"] if name in stats else float("nan")

    signs, share, heed = "Loss/signs/", mean("Progress/variety"), mean("Progress/heed")
    bad = mean("Gradients/bad_steps")
    table = {
        "the discriminator tells real from fake without fail. Early in a run that passes; if not, lower --d-lr, use "
        "--aug=ada, or raise --gamma where there is one": mean(f"{signs}real") > SURE and mean(f"{signs}fake") < -SURE,
        "the augmentation is at its limit and the discriminator still overfits. More data, --mirror, --init-from "
        "or a larger --gamma, where there is one, help; longer training does not": mean("Progress/augment") > SATURATED
        and mean(f"{signs}real") > OVERFITS,
        f"fakes vary {share:.0%} as much as real images: the generator has collapsed, or has not begun. If it lasts, "
        "lower the learning rates, or raise --gamma where there is one": share < COLLAPSED,
        "fakes of different conditions are alike: the generator does not heed them, or not yet. If it goes on, "
        "look at neighbours (instance_tool.py report), or raise --map-lr where there is one": heed < HEEDLESS,
        f"{bad:.1%} of the steps had gradients that are not finite and were not taken; --fp32 or smaller learning "
        "rates help": bad > 0.01,
    }
    return [(str(number), f"advice: {text}") for number, (text, holds) in enumerate(table.items()) if holds]
