from __future__ import annotations

import pytest

from vnetpods_agent.sync.trust import Trust
from vnetpods_api import AgentReport, Interface, Status

PATIENCE = 60.0
NIC = Interface(name="nic", mac="m", subnet="s", addresses=("10.0.0.5",))


def told(trust: Trust, number: int) -> AgentReport:
    return AgentReport(instance=trust.instance, report=number, view=trust.view)


def status(agent: AgentReport | None = None, confirmed: str | None = None) -> Status:
    return Status(interfaces=(NIC,), agent=agent, confirmed_view=confirmed)


def test_a_list_is_used_once_it_is_confirmed() -> None:
    trust = Trust(PATIENCE, 0.0)
    assert not trust.hear(status(), None, 1.0)
    assert "not confirmed" in trust.cause(1.0)
    assert not trust.hear(status(told(trust, 1), "another"), None, 1.0)
    assert trust.hear(status(told(trust, 1), trust.view), told(trust, 1), 2.0)
    assert trust.current


def test_or_once_nobody_has_confirmed_it_in_time() -> None:
    trust = Trust(PATIENCE, 0.0)
    assert not trust.hear(status(), None, PATIENCE - 1)
    assert trust.hear(status(), None, PATIENCE)


def test_a_source_that_is_the_truth_needs_nobody() -> None:
    assert Trust(PATIENCE, 0.0, always=True).hear(status(), None, 0.0)


@pytest.mark.parametrize("lacks", ["older", "none", "anothers", "older-view"])
def test_a_list_that_lacks_our_last_report_needs_a_new_confirmation(lacks: str) -> None:
    trust = Trust(PATIENCE, 0.0)
    view, ours = trust.view, told(trust, 7)
    assert trust.hear(status(ours, view), ours, 0.0)
    found = {
        "older": told(trust, 6),
        "none": None,
        "anothers": AgentReport(instance="another", report=9, view=view),
        "older-view": AgentReport(instance=trust.instance, report=9, view="another"),
    }[lacks]
    assert not trust.hear(status(found, view), ours, 1.0)
    assert trust.view != view
    assert "lacks this agent's last report" in trust.cause(1.0)
    renewed = trust.view
    # until the next report: what is acknowledged is about the former view
    assert not trust.hear(status(found, view), ours, 2.0)
    assert trust.view == renewed
    assert trust.hear(status(told(trust, 8), renewed), told(trust, 8), 3.0)


def test_a_report_whose_answer_is_still_to_come_is_no_surprise() -> None:
    trust = Trust(PATIENCE, 0.0)
    assert trust.hear(status(told(trust, 8), trust.view), told(trust, 7), 0.0)


class TestRestart:
    """In the same boot, with a whole ledger."""

    def restarted(self) -> tuple[Trust, AgentReport]:
        former = Trust(PATIENCE, 0.0)
        former.hear(status(told(former, 7), former.view), told(former, 7), 0.0)
        trust = Trust(PATIENCE, 0.0)
        trust.resume(former.kept)
        return trust, former.kept

    def test_goes_on_where_it_was(self) -> None:
        trust, kept = self.restarted()
        later = AgentReport(instance=kept.instance, report=99, view=kept.view)
        assert trust.hear(status(later, kept.view), None, 0.0)

    def test_knows_its_own_report_before_the_answer(self) -> None:
        trust, kept = self.restarted()
        assert trust.hear(status(told(trust, 1), kept.view), None, 0.0)
        assert trust.hear(status(told(trust, 2), kept.view), told(trust, 1), 0.0)

    @pytest.mark.parametrize("found", [None, "older", "another"])
    def test_finds_that_the_source_went_back_meanwhile(self, found: str | None) -> None:
        trust, kept = self.restarted()
        instance = "another" if found == "another" else kept.instance
        agent = AgentReport(instance=instance, report=6, view=kept.view) if found else None
        assert not trust.hear(status(agent, kept.view), None, 0.0)
        assert trust.view != kept.view
