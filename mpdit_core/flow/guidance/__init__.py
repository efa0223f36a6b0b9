"""Guidance: the velocity for a sampler, combined from two evaluations of networks.

    velocity = weak + w(t)·(strong - weak)

strong is the network with the label; weak is the network with the null label (classifier-free guidance), a second,
weaker model with the label (autoguidance, arXiv 2406.02507), or defined by the rule. Some rules change the formula.

    strength.py  how strongly and when: scale, interval, schedule
    velocity.py  the velocity function of one batch, which counts what it computes
    rule.py      the base of all rules
    cfg.py · cfg_zero.py · apg.py · skip_tokens.py   the rules

To add a rule: a file here with a subclass of `GuidanceRule` whose fields are its options (cfg.py is the shortest), a
line in `GUIDANCE_RULES`, and its name in `GuidanceName` of config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpdit_core.config import GuidanceName
from mpdit_core.flow.guidance.apg import AdaptiveProjected
from mpdit_core.flow.guidance.cfg import ClassifierFree
from mpdit_core.flow.guidance.cfg_zero import CFGZero
from mpdit_core.flow.guidance.rule import GuidanceRule
from mpdit_core.flow.guidance.skip_tokens import SkipTokens
from mpdit_core.flow.guidance.strength import Guidance
from mpdit_core.flow.guidance.velocity import GuidedVelocity
from mpdit_core.settings import validate

__all__ = ["GUIDANCE_RULES", "Guidance", "GuidanceRule", "GuidedVelocity", "load_rule"]

GUIDANCE_RULES: dict[GuidanceName, type[GuidanceRule]] = {
    "cfg": ClassifierFree,
    "cfg-zero": CFGZero,
    "apg": AdaptiveProjected,
    "skip-tokens": SkipTokens,
}


def load_rule(name: GuidanceName, options: Mapping[str, Any]) -> GuidanceRule:
    """The rule of this name. Raises `UserError` for an unknown option or an invalid value."""
    return validate(GUIDANCE_RULES[name], options, origin=f"guidance {name}")
