"""
Settings of accounts: tokens, passwords, sessions, limits, mail, registration.  A setting is one field.

:mod:`authsvc.settings.infrastructure` says what a field holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, cast

from authsvc.settings import kinds, locations
from authsvc.settings.declaration import ReadSoFar, optional, setting
from authsvc.settings.development import KEYS_DIR

if TYPE_CHECKING:
    from pathlib import Path

    from authsvc.settings.kinds import LimitSetting, Secret

YEAR_S = 365 * 86_400

_STRONG = kinds.hidden(kinds.STRONG_SECRET)


class MailTransport(StrEnum):
    """Where mails go."""

    OFF = "off"
    SMTP = "smtp"
    FILE = "file"


class SmtpTls(StrEnum):
    """How the connection to the relay is encrypted."""

    STARTTLS = "starttls"
    IMPLICIT = "implicit"
    NONE = "none"


class EmailVerification(StrEnum):
    """Whether somebody with an address that is not proven may log in."""

    OPTIONAL = "optional"
    REQUIRED = "required"


class RegistrationMode(StrEnum):
    """Who can make an account, and when it exists."""

    OPEN = "open"
    QUIET = "quiet"
    INVITED = "invited"
    OFF = "off"


def _own_address(known: ReadSoFar) -> str:
    return f"http://127.0.0.1:{known.read['PORT']}"


def _account_limit(known: ReadSoFar, *, times: int) -> LimitSetting | None:
    limit = cast("LimitSetting | None", known.read["RATE_LIMIT_LOGIN_ACCOUNT"])
    return replace(limit, quota=limit.quota * times) if limit else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Access tokens, and the secret under refresh tokens (None in development without one)."""

    title: ClassVar = "Tokens and keys"

    issuer: str = setting(
        "JWT_ISSUER",
        locations.issuer(),
        "`iss` of every token: the URL that clients know the service by",
        is_required=True,
        otherwise="development: `http://127.0.0.1:<PORT>`",
        computed=_own_address,
    )
    audience: str = setting(
        "JWT_AUDIENCE",
        kinds.printable(),
        "`aud` of every token, and the only one that is accepted",
        is_required=True,
        development="authsvc-dev",
    )
    keys_dir: Path = setting(
        "JWT_KEYS_DIR",
        locations.directory(),
        "Folder of PEM files: all verify and are published, the newest that is old enough signs",
        is_required=True,
        development=str(KEYS_DIR),
    )
    access_ttl_s: int = setting(
        "REDIS_AUTH_TOKEN_TTL", kinds.whole(1, YEAR_S), "Seconds an access token lives", default="3600"
    )
    roles: tuple[str, ...] = setting(
        "ROLES",
        kinds.role_names(),
        "Roles beside `user` and `admin`, which there always are; one that is taken out is in no new token",
        default="",
    )
    secret: Secret | None = optional(
        "TOKEN_SECRET",
        _STRONG,
        "Authenticates refresh tokens; changing it ends every session",
        is_required=True,
        otherwise="development: made on first start",
    )
    has_client_id: bool = setting(
        "JWT_CLIENT_ID_CLAIM",
        kinds.switch(),
        "Tokens carry `client_id`, as RFC 9068 requires; `off` only while version 0.1.0 reads them, too",
        default="on",
    )
    #: Clocks of other services may differ from ours by so much.
    leeway_s: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSettings:
    """Policy and cost; ``pepper`` is None in development without one."""

    title: ClassVar = "Passwords"

    pepper: Secret | None = optional(
        "PASSWORD_PEPPER",
        _STRONG,
        "Keys every password hash; whoever loses it loses every password",
        is_required=True,
        otherwise="development: made on first start",
    )
    min_length: int = setting(
        "PASSWORD_MIN_LENGTH", kinds.whole(8, 256), "Code points of a new password", default="15"
    )
    bcrypt_cost: int = setting(
        "BCRYPT_COST",
        kinds.whole(4, 15),
        "Log2 of bcrypt's rounds; production refuses less than 10",
        default="12",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How long and how many; within ``refresh_grace_s`` the parent yields the same successor."""

    title: ClassVar = "Sessions"

    idle_ttl_s: int = setting(
        "SESSION_IDLE_TTL",
        kinds.whole(1, YEAR_S),
        "Seconds a session lives without login or refresh",
        default="604800",
    )
    max_ttl_s: int = setting(
        "SESSION_MAX_TTL", kinds.whole(1, YEAR_S), "Seconds a session lives at most", default="2592000"
    )
    max_per_user: int = setting(
        "SESSION_MAX_PER_USER",
        kinds.whole(1, 1_000_000),
        "Live sessions of one user; the one unused for longest gives way",
        default="10",
    )
    refresh_grace_s: int = setting(
        "REFRESH_GRACE_SECONDS",
        kinds.whole(0, 3_600),
        "Seconds in which the refresh token just used yields the same successor again",
        default="10",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Attempts per window by rule; None is ``off``."""

    title: ClassVar = "Limits"

    login_ip: LimitSetting | None = setting(
        "RATE_LIMIT_LOGIN_IP", kinds.limit(), "Login attempts of one address", default="100/15minutes"
    )
    login_account: LimitSetting | None = setting(
        "RATE_LIMIT_LOGIN_ACCOUNT", kinds.limit(), "Failed logins of one account", default="10/15minutes"
    )
    login_device: LimitSetting | None = setting(
        "RATE_LIMIT_LOGIN_DEVICE",
        kinds.limit(),
        "Failed logins of one device that logged in before (`off`: it counts as a stranger)",
        default="5/15minutes",
    )
    password_session: LimitSetting | None = setting(
        "RATE_LIMIT_PASSWORD_SESSION",
        kinds.limit(),
        "Wrong current passwords of one session, for a change of password or the end of the account",
        otherwise="that of `RATE_LIMIT_LOGIN_ACCOUNT`",
        computed=lambda known: _account_limit(known, times=1),
    )
    password_account: LimitSetting | None = setting(
        "RATE_LIMIT_PASSWORD_ACCOUNT",
        kinds.limit(),
        "The same of all sessions of one account together",
        otherwise="twice as many as `RATE_LIMIT_LOGIN_ACCOUNT`: no session alone can use them up",
        computed=lambda known: _account_limit(known, times=2),
    )
    register_ip: LimitSetting | None = setting(
        "RATE_LIMIT_REGISTER_IP", kinds.limit(), "Registrations of one address", default="20/hour"
    )
    refresh: LimitSetting | None = setting(
        "RATE_LIMIT_REFRESH", kinds.limit(), "Refreshes of one session", default="60/minute"
    )
    mail_ip: LimitSetting | None = setting(
        "RATE_LIMIT_MAIL_IP", kinds.limit(), "Mails that one caller asks for", default="20/hour"
    )
    mail_address: LimitSetting | None = setting(
        "RATE_LIMIT_MAIL_ADDRESS",
        kinds.limit(),
        "Mails that anybody asked for, to one address; beyond it none is sent, and nobody is told",
        default="5/hour",
    )
    code_ip: LimitSetting | None = setting(
        "RATE_LIMIT_CODE_IP", kinds.limit(), "Wrong codes and links of one caller", default="50/15minutes"
    )
    second_factor: LimitSetting | None = setting(
        "RATE_LIMIT_SECOND_FACTOR",
        kinds.limit(),
        "Wrong second factors of one account; a device that logged in before has its own count",
        default="5/15minutes",
    )
    export: LimitSetting | None = setting(
        "RATE_LIMIT_EXPORT", kinds.limit(), "Exports of one account's data", default="5/day"
    )
    token_client: LimitSetting | None = setting(
        "RATE_LIMIT_TOKEN_CLIENT", kinds.limit(), "Tokens that one client gets", default="60/minute"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """Whether services get tokens of their own, and how long these live."""

    title: ClassVar = "Machines"

    is_on: bool = setting(
        "MACHINES",
        kinds.switch(),
        "Services get access tokens of their own (client credentials), and gateways check them",
        default="off",
    )
    ttl_s: int = setting(
        "MACHINE_TOKEN_TTL", kinds.whole(1, YEAR_S), "Seconds such a token lives", default="600"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """Whether mails are sent, by which relay, from whom, and where their links lead."""

    title: ClassVar = "Mail"

    transport: MailTransport = setting(
        "MAIL_TRANSPORT",
        kinds.choice(MailTransport),
        "How mails leave; `file` writes them to `.authsvc/mail/`, in development alone",
        default="off",
        development="file",
    )
    from_address: str | None = optional(
        "MAIL_FROM",
        locations.mailbox(),
        "Address that mails come from; needed for `smtp`",
        development="authsvc@example.com",
    )
    from_name: str = setting(
        "MAIL_FROM_NAME",
        kinds.matching(
            r"[A-Za-z0-9][A-Za-z0-9 ._&+'-]{0,99}", "1 to 100 letters, digits, spaces, `. _ & + ' -`"
        ),
        "Name beside it, and in the texts",
        default="authsvc",
    )
    reply_to: str | None = optional("MAIL_REPLY_TO", locations.mailbox(), "Address that answers go to")
    smtp_host: str | None = optional("SMTP_HOST", locations.host(), "The relay; needed for `smtp`")
    smtp_port: int = setting("SMTP_PORT", kinds.port(), "Its port", default="587")
    smtp_tls: SmtpTls = setting(
        "SMTP_TLS",
        kinds.choice(SmtpTls),
        "Encryption; chain and name are verified. `none` is refused with a user name",
        default="starttls",
    )
    smtp_username: str | None = optional("SMTP_USERNAME", kinds.printable(), "User at the relay")
    smtp_password: Secret | None = optional(
        "SMTP_PASSWORD", kinds.hidden("a password"), "That user's password"
    )
    smtp_ca_file: Path | None = optional(
        "SMTP_CA_FILE",
        locations.absolute("file"),
        "PEM file of the authorities to trust",
    )
    max_per_minute: int = setting(
        "MAIL_MAX_PER_MINUTE", kinds.whole(1, 100_000), "Mails that one worker sends at most", default="120"
    )
    templates_dir: Path | None = optional(
        "MAIL_TEMPLATES_DIR",
        locations.absolute("directory"),
        "Folder of templates that replace single ones",
    )
    link_url: str | None = optional(
        "LINK_URL",
        locations.link_url(),
        "Where the pages of the application are that links in mails lead to",
        otherwise="none: mails carry codes alone",
    )

    @property
    def is_on(self) -> bool:
        """True where mails leave at all."""
        return self.transport is not MailTransport.OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationSettings:
    """Who may register, and whether an address must be proven."""

    title: ClassVar = "Registration"

    mode: RegistrationMode = setting(
        "REGISTRATION",
        kinds.choice(RegistrationMode),
        "`quiet`: no account before its address is proven; `invited`: admins invite;"
        " `off`: command line, batch and import alone. `quiet` and `invited` need mail",
        default="open",
    )
    email_verification: EmailVerification = setting(
        "EMAIL_VERIFICATION",
        kinds.choice(EmailVerification),
        "`required`: no login before the address is proven; needs mail",
        default="optional",
    )
