"""A certificate of the server's own (floor 5), for who has none: a browser asks once whether to trust it."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from control.errors import ConfigError, HostError
from control.web.users import write_private

VALID_DAYS = 397
"""The longest a browser takes (CA/Browser Forum, Baseline Requirements 6.3.2, before 2026)."""

RENEW_DAYS = 14


def ensure_certificate(directory: Path, names: Iterable[str]) -> tuple[Path, Path]:
    """Return certificate and key in `directory`, made for `names`; those there are kept while they are good for these.

    Raises:
        HostError: They cannot be written.
    """
    from cryptography import x509

    certificate, key = directory / "certificate.pem", directory / "key.pem"
    wanted = [_general_name(name) for name in dict.fromkeys(names)]
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        has = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_good = found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS) and key.exists()
        if is_good and all(name in list(has) for name in wanted):
            return certificate, key
    except (OSError, ValueError, x509.ExtensionNotFound):
        pass  # there is none, or none that is of use: it is made below
    _make(certificate, key, wanted)
    return certificate, key


def _make(certificate: Path, key: Path, names: list[object]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "unhinged web")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)  # type: ignore[arg-type]
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(key, pem.decode("ascii"))
    write_private(certificate, signed.public_bytes(serialization.Encoding.PEM).decode("ascii"))


def _general_name(name: str) -> object:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def open_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load a certificate and its key. Raises ConfigError for files that are none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            raise HostError(f"{path} cannot be read", hint="name a PEM file with --certificate and --key")
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{certificate} and {key} are no certificate and its key: {error}", key="--certificate"
        ) from error
    return context
