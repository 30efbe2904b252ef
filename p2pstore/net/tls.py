"""TLS 1.3 between nodes that nobody certifies: each end proves its Ed25519 key, no more.

The standard library has no verify callback and takes no self-signed client certificate. So a
*carrier CA*, whose private key is derived from a public constant, signs every node's Ed25519 leaf,
and both ends load that CA and insist on a certificate. The CA gives no trust: TLS proves that the
peer has the leaf's private key, and the caller compares that key with the node that it expects.
Leaves of any other kind are refused. There is no session resumption: each link proves its key anew.
"""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from blake3 import blake3
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey

from p2pstore.errors import RemoteProtocolError
from p2pstore.ids import PublicKey

ALPN = "p2pstore/1"
SERVER_NAME = "p2pstore"  # SNI: the same for all, so that it says nothing about the node
CA_CONTEXT = "p2pstore 2026 carrier CA"
MAX_CERTIFICATE = 4096  # a leaf of ours has about 400 bytes

# Far in both directions: a wrong clock must not cut a node off, and the key is what counts.
_NOT_BEFORE = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC)


def _carrier_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(blake3(b"", derive_key_context=CA_CONTEXT).digest())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@cache
def carrier_ca() -> x509.Certificate:
    """The CA's certificate: the same bytes on every node."""
    key = _carrier_key()
    public = key.public_key()
    usage = _usage(sign_certificates=True)
    return (
        x509.CertificateBuilder()
        .subject_name(_name("p2pstore carrier"))
        .issuer_name(_name("p2pstore carrier"))
        .public_key(public)
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, None)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def leaf_certificate(public: Ed25519PublicKey) -> x509.Certificate:
    """A node's certificate for its key, signed by the carrier CA."""
    ca = carrier_ca()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    issuer = _carrier_key().public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(_name("p2pstore node"))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(int.from_bytes(identifier.digest[:16]) | 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(_carrier_key(), None)
    )


def _context(identity: SigningKey, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols([ALPN])
    context.load_verify_locations(
        cadata=carrier_ca().public_bytes(serialization.Encoding.PEM).decode()
    )
    key = Ed25519PrivateKey.from_private_bytes(bytes(identity))
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem += leaf_certificate(key.public_key()).public_bytes(serialization.Encoding.PEM)
    with _as_file(pem) as path:
        context.load_cert_chain(path)
    return context


def server_context(identity: SigningKey) -> ssl.SSLContext:
    context = _context(identity, ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return context


def client_context(identity: SigningKey) -> ssl.SSLContext:
    return _context(identity, ssl.PROTOCOL_TLS_CLIENT)


@contextmanager
def _as_file(secret: bytes) -> Iterator[str]:
    """A path for a library that reads secrets from files only; in memory where that exists."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("p2pstore", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, secret)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory() as private:  # mode 0700
            path = os.path.join(private, "identity.pem")
            with open(path, "wb") as file:
                file.write(secret)
            yield path


def peer_key(finished: ssl.SSLObject | ssl.SSLSocket) -> PublicKey:
    """The Ed25519 key that the peer proved; RemoteProtocolError when it did anything else."""
    if finished.selected_alpn_protocol() != ALPN:
        raise RemoteProtocolError("What answers there does not speak p2pstore's protocol.")
    return key_of_certificate(finished.getpeercert(True))


def key_of_certificate(leaf: bytes | None) -> PublicKey:
    if not leaf or len(leaf) > MAX_CERTIFICATE:
        raise RemoteProtocolError("The peer shows no certificate, or one that is too long.")
    try:
        public = x509.load_der_x509_certificate(leaf).public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise RemoteProtocolError("The peer's certificate cannot be read.") from exc
    if not isinstance(public, Ed25519PublicKey):
        raise RemoteProtocolError("The peer's key is not Ed25519.")
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return PublicKey(raw)
