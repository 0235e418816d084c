"""Who is let in, and to what (floor 5): the token, sessions, tickets, shares and the pace of logins. No HTTP in here.

A browser shows the token or a password once and has a *session* from then on, a cookie. For each WebSocket its page
asks for a *ticket*, good once, for some seconds, and for that session, machine and purpose only. A *share* is a link
that lets whoever has it look at one machine. Of all of these only hashes are kept; sessions and shares outlive the
server, in `sessions.json`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from control.errors import ControlError, HostError
from control.web.users import Role, Users, write_private

TOKEN_USER = "token"  # noqa: S105 - a name
"""Who came with the printed token is an operator of this name."""

SESSION_S = 7 * 24 * 3600.0
TICKET_S = 30.0
SHARE_MAX_S = 30 * 24 * 3600.0
SESSIONS_MAX = 1000
TICKETS_MAX = 10_000
LOGIN_WINDOW_S = 60.0
LOGINS_PER_ADDRESS = 10
LOGINS_IN_ALL = 100
"""Failed logins within the window: from one address, and from all of them together."""


class AccessError(ControlError):
    """Somebody is not let in.

    Attributes:
        status: The HTTP status that says so.
        retry_s: When to try again, for those who tried too often; None for all others.
    """

    def __init__(self, message: str, status: int, *, hint: str = "", retry_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_s = retry_s


@dataclass(frozen=True)
class Session:
    """Somebody who was let in.

    Attributes:
        key: The hash of what their cookie holds.
        user: Their name; `share` for who came by a link.
        vm: The only machine they may see; empty when they may see all.
        token: The hash of the token they came with: it ends their sessions when it is changed; empty for others.
        expires: In seconds since the epoch.
    """

    key: str
    user: str
    role: Role
    vm: str
    expires: float
    token: str = ""

    def may_see(self, vm: str) -> bool:
        return not self.vm or self.vm == vm


@dataclass(frozen=True)
class _Ticket:
    session: str
    vm: str
    purpose: str
    expires: float


@dataclass(frozen=True)
class _Share:
    vm: str
    by: str
    expires: float


@dataclass
class _Failures:
    times: deque[float] = field(default_factory=deque)


class Access:
    """All of the above for one server.

    Args:
        token: What is printed at the start.
        store: Where sessions and shares are kept.
    """

    def __init__(self, token: str, users: Users, store: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.users = users
        self._token = digest(token)
        self._store = store
        self._clock = clock
        self._tickets: dict[str, _Ticket] = {}
        self._failures: dict[str, _Failures] = {}
        self._sessions, self._shares = self._load()

    # -- coming in -------------------------------------------------------------------------------------------------

    def log_in_by_token(self, token: str, address: str) -> str:
        """Return the cookie of a new session. Raises AccessError."""
        self._check_pace(address)
        if not self.is_token(token):
            self._note_failure(address)
            raise AccessError(
                "this token is not the one", 403, hint="it is in the line that `unhinged web` printed at its start"
            )
        return self._open(TOKEN_USER, "operator", "", SESSION_S, self._token)

    def log_in_by_password(self, name: str, password: str, address: str) -> str:
        """Return the cookie of a new session. Slow on purpose: call it in a thread. Raises AccessError."""
        self._check_pace(address)
        # Counted before it is known: else as many as like could be tried while the first is still looked at.
        self._note_failure(address)
        user = self.users.check(name, password)
        if user is None:
            raise AccessError("name or password is wrong", 403)
        self._forget_failure(address)
        return self._open(user.name, user.role, "", SESSION_S)

    def log_in_by_share(self, link: str, address: str) -> tuple[str, str]:
        """Return the cookie of a new session, and the machine it may look at. Raises AccessError."""
        self._check_pace(address)
        share = self._shares.get(digest(link))
        if share is None or share.expires < self._clock():
            self._note_failure(address)
            raise AccessError("this link leads nowhere any more", 403, hint="ask for a new one")
        return self._open("share", "viewer", share.vm, share.expires - self._clock()), share.vm

    def is_token(self, token: str) -> bool:
        return hmac.compare_digest(digest(token), self._token)

    def find_session(self, cookie: str) -> Session | None:
        """The session whose cookie this is, with the role its user has now."""
        session = self._sessions.get(digest(cookie)) if cookie else None
        if session is None or session.expires < self._clock():
            return None
        if session.token:
            return session if hmac.compare_digest(session.token, self._token) else None
        if session.vm:
            return session
        role = self.users.find_role(session.user)
        return Session(session.key, session.user, role, "", session.expires) if role is not None else None

    def check_bearer(self, token: str, address: str) -> Session:
        """The session of a program that shows the token with each request. Raises AccessError."""
        self._check_pace(address)
        if not self.is_token(token):
            self._note_failure(address)
            raise AccessError("this token is not the one", 401, hint="unhinged web --show-token prints it")
        return Session(self._token, TOKEN_USER, "operator", "", self._clock() + SESSION_S, self._token)

    def log_out(self, session: Session) -> None:
        if self._sessions.pop(session.key, None) is not None:
            self._save()

    def _open(self, user: str, role: Role, vm: str, lasts_s: float, token: str = "") -> str:
        cookie, now = secrets.token_urlsafe(32), self._clock()
        for key in [key for key, session in self._sessions.items() if session.expires < now]:
            del self._sessions[key]
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[digest(cookie)] = Session(digest(cookie), user, role, vm, now + lasts_s, token)
        self._save()
        return cookie

    # -- tickets and shares ----------------------------------------------------------------------------------------

    def issue_ticket(self, session: Session, vm: str, purpose: str) -> str:
        """Return a ticket for one WebSocket."""
        ticket, now = secrets.token_urlsafe(24), self._clock()
        for key in [key for key, each in self._tickets.items() if each.expires < now]:
            del self._tickets[key]
        while len(self._tickets) >= TICKETS_MAX:
            del self._tickets[next(iter(self._tickets))]
        self._tickets[digest(ticket)] = _Ticket(session.key, vm, purpose, now + TICKET_S)
        return ticket

    def redeem_ticket(self, ticket: str, session: Session, vm: str, purpose: str) -> None:
        """Take a ticket, which is good for nothing afterwards. Raises AccessError when it is not for this."""
        found = self._tickets.pop(digest(ticket), None)
        if found is None:
            raise AccessError("this ticket is not known, or was used before", 403, hint="ask for a new one")
        if found.expires < self._clock():
            raise AccessError("this ticket has expired", 403, hint=f"use it within {TICKET_S:.0f} s")
        if not hmac.compare_digest(found.session, session.key) or (found.vm, found.purpose) != (vm, purpose):
            raise AccessError("this ticket is for something else", 403, hint="ask for one of your own, for this")

    def share(self, vm: str, by: str, lasts_s: float) -> str:
        """Return the secret of a link by which whoever has it may look at `vm` for so long."""
        link, now = secrets.token_urlsafe(24), self._clock()
        self._shares = {key: each for key, each in self._shares.items() if each.expires > now}
        self._shares[digest(link)] = _Share(vm, by, now + min(lasts_s, SHARE_MAX_S))
        self._save()
        return link

    def end_shares(self, vm: str) -> int:
        """End all links to `vm`, and the sessions of those who came by them; return how many links there were."""
        before = len(self._shares)
        self._shares = {key: each for key, each in self._shares.items() if each.vm != vm}
        self._sessions = {key: each for key, each in self._sessions.items() if each.vm != vm}
        self._save()
        return before - len(self._shares)

    # -- pace ------------------------------------------------------------------------------------------------------

    def _check_pace(self, address: str) -> None:
        now = self._clock()
        for key in list(self._failures):
            times = self._failures[key].times
            while times and times[0] < now - LOGIN_WINDOW_S:
                times.popleft()
            if not times:
                del self._failures[key]
        mine = self._failures.get(address, _Failures()).times
        total = sum(len(each.times) for each in self._failures.values())
        if len(mine) >= LOGINS_PER_ADDRESS or total >= LOGINS_IN_ALL:
            oldest = mine[0] if len(mine) >= LOGINS_PER_ADDRESS else now
            wait = max(1.0, oldest + LOGIN_WINDOW_S - now)
            raise AccessError("too many failed logins", 429, hint=f"wait {wait:.0f} s", retry_s=wait)

    def _note_failure(self, address: str) -> None:
        self._failures.setdefault(address, _Failures()).times.append(self._clock())

    def _forget_failure(self, address: str) -> None:
        if (failures := self._failures.get(address)) is not None and failures.times:
            failures.times.pop()

    # -- on disk ---------------------------------------------------------------------------------------------------

    def _load(self) -> tuple[dict[str, Session], dict[str, _Share]]:
        try:
            plain = json.loads(self._store.read_text(encoding="utf-8"))
            sessions = {row["key"]: Session(**row) for row in plain["sessions"]}
            return sessions, {key: _Share(**row) for key, row in plain["shares"].items()}
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}, {}  # all of them log in again: nothing else is lost

    def _save(self) -> None:
        plain = {
            "sessions": [asdict(session) for session in self._sessions.values()],
            "shares": {key: asdict(share) for key, share in self._shares.items()},
        }
        write_private(self._store, json.dumps(plain) + "\n")


def read_or_make_token(path: Path, *, renew: bool = False) -> str:
    """Return the token that is kept at `path`, the same from start to start; a new one when there is none.

    Raises:
        HostError: It cannot be kept.
    """
    if not renew:
        try:
            token = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            token = ""
        except (OSError, ValueError) as error:
            raise HostError(f"{path} cannot be read: {error}", hint="remove it") from error
        if token:
            return token
    token = secrets.token_urlsafe(32)
    write_private(path, token + "\n")
    return token


def digest(secret: str) -> str:
    """What is kept of a secret, and compared: hashes tell a timing nothing of what they are of."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
