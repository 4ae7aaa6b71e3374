"""What the service must do, in the simplest words: accounts, their logins, and the tokens of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from tests.rig import PASSWORD

#: Of one account; few, so that the oldest has to give way now and then.
MOST_LOGINS = 3

_ticks = count(1)


@dataclass(slots=True, eq=False)
class Account:
    """Somebody, as they should be now."""

    id: str
    email: str
    password: str = PASSWORD
    roles: tuple[str, ...] = ("user",)
    exists: bool = True
    is_active: bool = True
    #: How often their earlier access tokens were cut off.
    cuts: int = 0
    preferences: dict[str, object] = field(default_factory=dict)
    logins: list[Login] = field(default_factory=list)

    def begin(self, pair: dict[str, str]) -> Login:
        """A login more, by its first token *pair*; beyond MOST_LOGINS the one unused for longest is over."""
        login = Login(self, pair["session_id"])
        others = sorted(self.alive(), key=lambda other: other.used_at)
        for oldest in others[: max(0, len(others) - MOST_LOGINS + 1)]:
            oldest.is_over = True
        self.logins.append(login)
        login.take(pair)
        return login

    def alive(self) -> list[Login]:
        """The logins that are not over."""
        return [login for login in self.logins if login.is_alive]

    def end_all(self, *, keep: Login | None = None) -> None:
        """Every login but *keep* is over; without *keep* every access token is cut off, too."""
        for login in self.logins:
            login.is_over = login.is_over or login is not keep
        if keep is None:
            self.cuts += 1

    def appoint(self, roles: tuple[str, ...]) -> None:
        """Other roles cut the user's access tokens off; the same ones change nothing."""
        if roles != self.roles:
            self.roles = roles
            self.cuts += 1

    def switch(self, *, is_active: bool) -> None:
        """Disabled, they are out; enabled again, their old tokens stay dead."""
        if is_active != self.is_active:
            self.is_active = is_active
            self.cuts += 1
            for login in self.logins:
                login.is_over = login.is_over or not is_active

    def close(self) -> None:
        """They are gone, and everything of theirs."""
        self.end_all()
        self.exists = False


@dataclass(slots=True, eq=False)
class Login:
    """One session with every token that it ever had."""

    account: Account
    id: str
    is_over: bool = False
    used_at: int = 0
    #: The last one is current, the one before it its parent.
    refresh_tokens: list[str] = field(default_factory=list)
    access_tokens: list[Access] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        """Not over, and its owner may have one."""
        return not self.is_over and self.account.exists and self.account.is_active

    @property
    def newest(self) -> Access:
        """The access token that its owner would use."""
        return self.access_tokens[-1]

    def take(self, pair: dict[str, str]) -> None:
        """A token pair of this login arrived; a successor that was known is no use of the session."""
        self.access_tokens.append(Access(pair["access_token"], self, self.account.cuts, self.account.roles))
        if pair["refresh_token"] not in self.refresh_tokens:
            self.refresh_tokens.append(pair["refresh_token"])
            self.used_at = next(_ticks)


@dataclass(slots=True, eq=False)
class Access:
    """One access token, and how many cuts its owner had when it was issued."""

    text: str
    login: Login
    cuts: int
    roles: tuple[str, ...]

    @property
    def is_live(self) -> bool:
        """It must be accepted; otherwise it must be refused."""
        return self.login.is_alive and self.cuts == self.login.account.cuts
