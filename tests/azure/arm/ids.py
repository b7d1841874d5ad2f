"""Resource ids: parsing, comparison, and the type.

ARM compares ids without regard to case and returns them as they were first written, so a ResourceId keeps the text and
compares by `key`. Pure; used everywhere in this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tests.azure.arm.errors import ArmError


@dataclass(frozen=True, slots=True)
class ResourceId:
    """`/subscriptions/S/resourceGroups/G/providers/P/T1/N1/T2/N2…` taken apart; types and names have the same
    length."""

    text: str
    key: str
    subscription: str
    group: str
    provider: str
    types: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[-1]

    @property
    def type(self) -> str:
        """As ARM writes it in a body: `Microsoft.Network/virtualNetworks/subnets`."""
        return "/".join((self.provider, *self.types))

    @property
    def kind(self) -> str:
        """The type in lower case, for look-ups."""
        return self.type.lower()

    @property
    def parent(self) -> ResourceId:
        """The id one level up (`…/virtualNetworks/V` of a subnet)."""
        if len(self.types) < 2:
            raise ValueError(f"{self.text} has no parent")
        return parse(self.text.rsplit("/", 2)[0])

    def child(self, kind: str, name: str) -> ResourceId:
        return parse(f"{self.text}/{kind}/{name}")

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=65536)
def parse(text: str) -> ResourceId:
    """Raises ArmError(InvalidResourceReference-like 400) when the text is no resource id."""
    parts = text.strip("/").split("/")
    fixed = [part.lower() for part in parts[0:6:2]]
    odd = len(parts) < 8 or len(parts) % 2 or fixed != ["subscriptions", "resourcegroups", "providers"] or "" in parts
    if odd:
        raise ArmError(
            400, "LinkedInvalidPropertyId", f"Property id '{text}' is invalid. Expect fully qualified resource Id."
        )
    return ResourceId(
        text="/" + "/".join(parts),
        key="/" + "/".join(parts).lower(),
        subscription=parts[1],
        group=parts[3],
        provider=parts[5],
        types=tuple(parts[6::2]),
        names=tuple(parts[7::2]),
    )


def key(text: str) -> str:
    """The form in which two spellings of one id are equal."""
    return "/" + text.strip("/").lower()
