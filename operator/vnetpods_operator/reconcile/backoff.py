"""Maps each failure to a condition's reason and a back-off. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vnetpods_api import Reason
from vnetpods_operator import errors
from vnetpods_operator.planning.model import Problem

_MEANING: dict[type[errors.AzureError], tuple[Reason, bool, float, float]] = {
    # reason, a person must act, first and longest wait in seconds (doubled with each failure)
    errors.Changed: (Reason.CONFLICT, False, 0.5, 30.0),
    errors.Busy: (Reason.CONFLICT, False, 2.0, 60.0),
    errors.SubnetFull: (Reason.SUBNET_FULL, False, 30.0, 600.0),
    errors.AddressTaken: (Reason.ADDRESS_LOST, False, 15.0, 600.0),
    errors.NicFull: (Reason.AT_CAPACITY, False, 60.0, 1800.0),
    errors.Forbidden: (Reason.FORBIDDEN, True, 120.0, 1800.0),
    errors.SignInRefused: (Reason.SIGN_IN_REFUSED, True, 60.0, 600.0),
    errors.Gone: (Reason.MACHINE_NOT_FOUND, True, 60.0, 1800.0),
    errors.NoInterface: (Reason.NO_INTERFACE, True, 120.0, 1800.0),
    errors.Refused: (Reason.REFUSED, True, 60.0, 1800.0),
    errors.Unavailable: (Reason.AZURE_UNAVAILABLE, False, 1.0, 120.0),
}
_OURS = (Reason.INTERNAL_ERROR, True, 30.0, 600.0)
"""Any other exception is a fault of the operator."""


def problem_of(error: Exception) -> Problem:
    """The problem that the conditions report."""
    if isinstance(error, errors.Throttled):
        return Problem(Reason.THROTTLED, f"{error}; Azure asks to wait {error.seconds:.0f} s")
    if not isinstance(error, errors.AzureError):
        text = f"the operator itself fails at this node ({error!r:.300}); its log says where; please report it"
        return Problem(_OURS[0], text, _OURS[1])
    reason, stalled, _, _ = _MEANING[type(error)]
    message = str(error)
    if isinstance(error, errors.Forbidden) and error.action:
        message = f"the operator's identity needs {error.action} on {error.scope} ({message})"
    return Problem(reason, message, stalled)


def unwritable(pool: str, refusal: str, failures: int) -> tuple[Problem, float]:
    """The problem with a pool whose writes the API server has refused this many times in a row, and the back-off in
    seconds. Azure is not asked meanwhile: no agent would learn what it grants.
    """
    text = (
        f"the API server refuses what the operator writes to NodeIPPool {pool}, so its agent hears nothing new: "
        f"{refusal[:600]}. If the CRD is of an earlier version than the operator, upgrade the CRD: kubectl apply "
        "--server-side --force-conflicts -f crds/nodeippool.yaml; it is tried again within 5 minutes"
    )
    return Problem(Reason.POOL_REFUSED, text, stalled=True), min(240.0, 5.0 * 2.0 ** min(failures - 1, 20))


def given_up(asked: Sequence[str], refusal: str, before: int) -> Sequence[str]:
    """Lost addresses that are not requested again soon: the one named in Azure's refusal and some of those after it,
    twice as many each time (`before`: refusals in a row before this one). Azure names one at a time, and each costs a
    write; those before the named one may be available.
    """
    words = set(re.findall(r"[0-9.]*[0-9]", refusal))
    named = [place for place, address in enumerate(asked) if address in words]
    return asked[named[0] :][: 2**before] if named else asked


def wait_after(error: Exception, failures: int) -> float:
    """Back-off in seconds after this many failures in a row (this one included)."""
    if isinstance(error, errors.Throttled):
        return error.seconds
    _, _, first, longest = _MEANING[type(error)] if isinstance(error, errors.AzureError) else _OURS
    return min(longest, first * 2.0 ** min(failures - 1, 20))
