//! Which certificates are trusted, and what is said where one is not.

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::settings::Settings;

/// Trusts the certificates in `--ca-file`, or the built-in roots.
///
/// # Errors
/// Names `--ca-file` when it holds no certificate.
pub fn config(settings: &Settings) -> Result<TlsConfig, String> {
    let builder = TlsConfig::builder();
    let Some(ca) = &settings.ca else {
        return Ok(builder.root_certs(RootCerts::WebPki).build());
    };
    let mut roots = Vec::new();
    for item in parse_pem(&ca.pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) if is_der(certificate.der()) => {
                roots.push(certificate);
            }
            Ok(PemItem::Certificate(_)) => {
                return Err(format!(
                    "--ca-file {:?}: holds a certificate that is none; give PEM text with -----BEGIN CERTIFICATE-----",
                    ca.path
                ));
            }
            Ok(_) => {}
            Err(error) => return Err(format!("--ca-file {:?}: is no PEM text: {error}", ca.path)),
        }
    }
    if roots.is_empty() {
        return Err(format!(
            "--ca-file {:?}: holds no certificate; give PEM text with -----BEGIN CERTIFICATE-----",
            ca.path
        ));
    }
    Ok(builder
        .root_certs(RootCerts::new_with_certs(&roots))
        .build())
}

/// Whether these bytes are one DER sequence as long as it says, as a certificate is.
fn is_der(bytes: &[u8]) -> bool {
    let (length, rest) = match bytes {
        [0x30, 0x81, length, rest @ ..] => (usize::from(*length), rest),
        [0x30, 0x82, high, low, rest @ ..] => {
            (usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        _ => return false,
    };
    rest.len() == length
}

/// What rustls says, by a part of it, and what that means to people.
const MEANINGS: [(&str, &str); 7] = [
    (
        "UnknownIssuer",
        "nobody that is trusted has signed its certificate: give that of its authority, or its own, \
         with --ca-file",
    ),
    // `openssl req -x509` makes such certificates. That of an authority cannot be a server's own:
    // there is no way to trust it by itself.
    (
        "CaUsedAsEndEntity",
        "its certificate is an authority's (CA:TRUE), and cannot be a server's as well: make it \
         anew with openssl req -x509 -addext basicConstraints=critical,CA:FALSE and the rest as \
         before, and give it to the server and with --ca-file",
    ),
    (
        "not valid for name",
        "its certificate is for other names than the one in --base-url: use one that it has, or \
         make it with -addext subjectAltName=DNS:NAME or IP:ADDRESS",
    ),
    ("certificate expired", "its certificate has expired"),
    (
        "not valid yet",
        "its certificate is not valid yet: is the clock of this machine right?",
    ),
    (
        "BadSignature",
        "its certificate is signed by another authority of the same name as one in --ca-file",
    ),
    (
        "peer is incompatible",
        "it has no version or cipher of TLS in common with this program: TLS 1.2 or 1.3 is wanted",
    ),
];

/// What a failure of TLS means, where `said` is one, as rustls says it.
pub fn explain(said: &str) -> Option<String> {
    let starts = [
        "invalid peer certificate",
        "peer ",
        "received ",
        "cannot decrypt",
    ];
    if !starts.iter().any(|start| said.starts_with(start)) {
        return None;
    }
    let known = MEANINGS.iter().find(|(part, _)| said.contains(part));
    let text = known.map_or_else(|| in_words(said), |(_, text)| (*text).to_owned());
    Some(format!("{PREFIX}{text}"))
}

/// How every text of [`explain`] begins.
pub const PREFIX: &str = "TLS: ";

/// A text of rustls without its types: `error: Other(OtherError(UnsupportedCertVersion))` is
/// `error: unsupported cert version`.
fn in_words(said: &str) -> String {
    let (start, end) = said.split_once(": ").unwrap_or(("", said));
    let innermost = end.rsplit(['(', '{']).next().unwrap_or(end);
    let innermost = innermost.trim_end_matches([')', '}', ' ']);
    let mut text = String::from(start);
    for c in format!(": {innermost}").chars() {
        if c.is_ascii_uppercase() && !text.ends_with(' ') {
            text.push(' ');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rustls_says_is_put_into_words() {
        for (said, part) in [
            ("invalid peer certificate: UnknownIssuer", "--ca-file"),
            (
                "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))",
                "-addext basicConstraints=critical,CA:FALSE",
            ),
            (
                "invalid peer certificate: certificate not valid for name \"a\"; certificate is only \
                 valid for DnsName(\"b\")",
                "subjectAltName",
            ),
            (
                "invalid peer certificate: Other(OtherError(UnsupportedCertVersion))",
                "TLS: invalid peer certificate: unsupported cert version",
            ),
            (
                "received fatal alert: HandshakeFailure",
                "TLS: received fatal alert: handshake failure",
            ),
        ] {
            let text = explain(said).unwrap();
            assert!(text.starts_with(PREFIX) && text.contains(part), "{text}");
            for name in ["Other", "Entity", "Issuer", "DnsName", "RequestError"] {
                assert!(!text.contains(name), "{text}");
            }
        }
        assert_eq!(explain("Connection refused (os error 111)"), None);
    }
}
