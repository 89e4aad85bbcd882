//! Trusted certificates, and explanations of TLS errors.

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::settings::Settings;

/// Configures TLS to trust the certificates in `--ca-file`, or else the built-in roots.
///
/// # Errors
/// `--ca-file` is not PEM text, or holds no valid certificate.
pub fn config(settings: &Settings) -> Result<TlsConfig, String> {
    let builder = TlsConfig::builder();
    if settings.discovered.is_some() {
        // A connection stays on this machine, and the peer check identifies the process. Its
        // certificate is for a name that is not known here.
        return Ok(builder.disable_verification(true).build());
    }
    let Some(ca) = &settings.ca else {
        return Ok(builder.root_certs(RootCerts::WebPki).build());
    };
    let error = |what: &str| format!("--ca-file {:?}: {what}", ca.path);
    let mut roots = Vec::new();
    for item in parse_pem(&ca.pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) if is_der(certificate.der()) => {
                roots.push(certificate);
            }
            Ok(PemItem::Certificate(_)) => {
                return Err(error(&format!("holds an invalid certificate; {PEM_FORM}")));
            }
            Ok(_) => {}
            Err(parse_error) => return Err(error(&format!("is not PEM text: {parse_error}"))),
        }
    }
    if roots.is_empty() {
        return Err(error(&format!("holds no certificate; {PEM_FORM}")));
    }
    Ok(builder
        .root_certs(RootCerts::new_with_certs(&roots))
        .build())
}

const PEM_FORM: &str = "give PEM text with -----BEGIN CERTIFICATE-----";

/// Whether the bytes are one DER sequence with the right length, like every certificate.
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

/// Errors of rustls, each identified by a part of its text, with explanations.
const MEANINGS: [(&str, &str); 7] = [
    (
        "UnknownIssuer",
        "the server's certificate is not signed by a trusted authority: give the authority's \
         certificate, or the server's own, with --ca-file",
    ),
    // `openssl req -x509` creates such certificates by default, and rustls never accepts one.
    (
        "CaUsedAsEndEntity",
        "the server's certificate is a certificate of an authority (CA:TRUE) and cannot be used by a \
         server: create it again with openssl req -x509 -addext \
         basicConstraints=critical,CA:FALSE and the other options as before, then give it to the \
         server and with --ca-file",
    ),
    (
        "not valid for name",
        "the server's certificate is for other names than the one in --base-url: use one of its \
         names, or create it again with -addext subjectAltName=DNS:NAME or IP:ADDRESS",
    ),
    (
        "certificate expired",
        "the server's certificate has expired",
    ),
    (
        "not valid yet",
        "the server's certificate is not valid yet: check the clock of this machine",
    ),
    (
        "BadSignature",
        "the server's certificate is signed by another authority that has the same name as one in \
         --ca-file",
    ),
    (
        "peer is incompatible",
        "the server shares no TLS version or cipher with this program, which needs TLS 1.2 or 1.3",
    ),
];

/// Explains an error of rustls; `None` if `text` is not one.
pub fn explain(text: &str) -> Option<String> {
    let starts = [
        "invalid peer certificate",
        "peer ",
        "received ",
        "cannot decrypt",
    ];
    if !starts.iter().any(|start| text.starts_with(start)) {
        return None;
    }
    let known = MEANINGS.iter().find(|(part, _)| text.contains(part));
    Some(known.map_or_else(|| in_words(text), |(_, meaning)| (*meaning).to_owned()))
}

/// An error text of rustls without the names of its types: `error:
/// Other(OtherError(UnsupportedCertVersion))` becomes `TLS: error: unsupported cert version`.
fn in_words(text: &str) -> String {
    let (start, end) = text.split_once(": ").unwrap_or(("", text));
    let innermost = end.rsplit(['(', '{']).next().unwrap_or(end);
    let innermost = innermost.trim_end_matches([')', '}', ' ']);
    let mut words = format!("TLS: {start}: ");
    for c in innermost.chars() {
        if c.is_ascii_uppercase() && !words.ends_with(' ') {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_rustls_are_explained() {
        for (error, part) in [
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
            let text = explain(error).unwrap();
            assert!(text.contains(part), "{text}");
            for name in ["Other", "Entity", "Issuer", "DnsName", "RequestError"] {
                assert!(!text.contains(name), "{text}");
            }
        }
        assert_eq!(explain("Connection refused (os error 111)"), None);
    }
}
