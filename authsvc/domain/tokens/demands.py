"""What a check demands of a valid token: its kind, roles and level for people, scopes for machines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from authsvc.domain.errors import Forbidden, ScopeMissing, StepUpRequired
from authsvc.domain.tokens.access import AccessToken, MachineToken, Token
from authsvc.domain.tokens.checks import require_roles
from authsvc.domain.values.levels import Requirement

NO_LEVEL = Requirement()


class Admitted(Enum):
    """Whose tokens a check accepts."""

    PEOPLE = "people"
    MACHINES = "machines"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """
    All demands of one check.

    If people and machines are admitted, a check with only roles accepts no machine, and one with only scopes
    accepts no person: the demand was meant for the other kind. Levels do not apply to machines.
    """

    admitted: Admitted = Admitted.PEOPLE
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    level: Requirement = NO_LEVEL
    #: False while tokens have no level.
    has_levels: bool = False

    def require(self, token: Token, now_s: float) -> None:
        """
        Return if *token* meets the demand at *now_s* (seconds since the epoch).

        Raises:
            Forbidden: the wrong kind, or a role is missing.
            ScopeMissing: a scope is missing.
            StepUpRequired: the level is too low.
        """
        if isinstance(token, MachineToken):
            self._require_machine(token)
        else:
            self._require_person(token, now_s)

    def is_met_by(self, token: Token, now_s: float) -> bool:
        """True if :meth:`require` would not raise."""
        try:
            self.require(token, now_s)
        except (Forbidden, ScopeMissing, StepUpRequired):
            return False
        return True

    def _require_machine(self, token: MachineToken) -> None:
        if self.admitted is Admitted.PEOPLE:
            raise Forbidden
        if self.roles and (self.admitted is Admitted.MACHINES or not self.scopes):
            raise Forbidden
        if not self.scopes.issubset(token.scopes):
            raise ScopeMissing

    def _require_person(self, token: AccessToken, now_s: float) -> None:
        if self.admitted is Admitted.MACHINES:
            raise Forbidden
        if self.scopes and (self.admitted is Admitted.PEOPLE or not self.roles):
            raise ScopeMissing
        if not (self.has_levels or self.level.is_nothing):
            raise Forbidden
        require_roles(token, self.roles)
        if not self.level.is_met_by(token.level, now_s):
            raise StepUpRequired(self.level)
