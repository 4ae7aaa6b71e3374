"""What a check asks of a good token: whose it is, roles and a level of people, scopes of machines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from authsvc.domain.errors import Forbidden, ScopeMissing, StepUpRequired
from authsvc.domain.tokens.access import AccessToken, MachineToken, Token
from authsvc.domain.tokens.checks import require_roles
from authsvc.domain.values.levels import Requirement

NO_LEVEL = Requirement()


class Admitted(Enum):
    """Whose tokens a check lets in."""

    PEOPLE = "people"
    MACHINES = "machines"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """
    Everything that one check asks for.

    Where both are admitted, a check that names roles alone lets in no machine, and one that names scopes
    alone no person: whoever wrote it had the other kind in mind.  A level says nothing to machines.
    """

    admitted: Admitted = Admitted.PEOPLE
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    level: Requirement = NO_LEVEL
    #: False while no token says anything of levels.
    has_levels: bool = False

    def require(self, token: Token, now_s: float) -> None:
        """
        Do nothing if *token* has at *now_s* (seconds since the epoch) what is asked for.

        Raises:
            Forbidden: the wrong kind, or without a role.
            ScopeMissing: without a scope.
            StepUpRequired: the level is not enough.
        """
        if isinstance(token, MachineToken):
            self._require_machine(token)
        else:
            self._require_person(token, now_s)

    def is_met_by(self, token: Token, now_s: float) -> bool:
        """The same, as an answer."""
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
