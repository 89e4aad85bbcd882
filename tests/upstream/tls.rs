//! Upstreams that speak `https`, with certificates made on the spot.

use crate::support::recordings::{NEW, Stage};
use crate::support::{Answer, Exporter, Scrape, Server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// A certificate authority of our own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as `--ca-file` takes it.
    file: tempfile::NamedTempFile,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(certificate.pem().as_bytes()).unwrap();
        Authority {
            issuer: Issuer::new(params, key),
            file,
        }
    }

    fn path(&self) -> &str {
        self.file.path().to_str().unwrap()
    }

    /// A certificate for `name` that ends with `last_year`, and its key.
    fn certify(&self, name: &str, last_year: i32) -> ServerConfig {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        serving(certificate.der().clone(), key)
    }
}

fn serving(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap()
}

/// Speaks TLS in front of a scripted server, until the test ends.
fn in_front_of(server: &Server, config: ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (config, behind) = (Arc::new(config), server.authority());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, behind) = (config.clone(), behind.clone());
            thread::spawn(move || {
                let session = ServerConnection::new(config).unwrap();
                // A client that does not trust us ends this with an error.
                let _ = pass_on(StreamOwned::new(session, stream.unwrap()), &behind);
            });
        }
    });
    address
}

fn pass_on(
    mut client: StreamOwned<ServerConnection, TcpStream>,
    behind: &str,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        let mut byte = [0];
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            let mut server = TcpStream::connect(behind)?;
            server.write_all(&head)?;
            server.shutdown(std::net::Shutdown::Write)?;
            let mut answer = Vec::new();
            server.read_to_end(&mut answer)?;
            client.write_all(&answer)?;
            head.clear();
        }
    }
}

/// Watches a server with this certificate; `ca` is its `--ca-file`.
fn watched(config: ServerConfig, ca: Option<&Authority>) -> (Scrape, Exporter) {
    watched_with(config, ca.map(Authority::path))
}

fn watched_with(config: ServerConfig, ca: Option<&str>) -> (Scrape, Exporter) {
    let server = Server::recorded(NEW, Stage::Busy);
    let address = in_front_of(&server, config);
    let mut start = Exporter::with_url(&format!("https://{address}"));
    if let Some(ca) = ca {
        start = start.args(&["--ca-file", ca]);
    }
    let exporter = start.start();
    (exporter.after_polls(3), exporter)
}

/// The server is down, and the log line of the first failure contains `why`.
fn assert_not_trusted((scrape, exporter): (Scrape, Exporter), why: &str) {
    assert!(scrape.down(), "{scrape:?}");
    assert!(scrape.errors_of("/health")["connect"] >= 3, "{scrape:?}");
    let lines = exporter.logged(&["endpoint=/health", "reason=connect"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("certificate"), "{lines:?}");
    assert!(lines[0].contains(why), "{lines:?}");
    // Names of Rust types mean nothing to the reader.
    for name in [
        "UnknownIssuer",
        "OtherError",
        "EndEntity",
        "DnsName",
        "IpAddress",
        "UNIX",
    ] {
        assert!(!exporter.output().contains(name), "{}", exporter.output());
    }
}

#[test]
fn a_certificate_of_the_given_authority_is_trusted() {
    let authority = Authority::new();
    let (scrape, _exporter) = watched(authority.certify("127.0.0.1", 2100), Some(&authority));
    scrape.assert_up();
    scrape.assert_status("running");
    scrape.assert_value("llamacpp_slots_busy", 1.0);
    scrape.assert_errors(0);
}

#[test]
fn a_certificate_of_an_unknown_authority_is_not_trusted() {
    assert_not_trusted(
        watched(Authority::new().certify("127.0.0.1", 2100), None),
        "--ca-file",
    );
}

#[test]
fn a_certificate_of_another_authority_is_not_trusted() {
    let config = Authority::new().certify("127.0.0.1", 2100);
    assert_not_trusted(watched(config, Some(&Authority::new())), "");
}

#[test]
fn a_certificate_for_another_name_is_not_trusted() {
    let authority = Authority::new();
    assert_not_trusted(
        watched(authority.certify("another.example", 2100), Some(&authority)),
        "other names",
    );
}

#[test]
fn an_expired_certificate_is_not_trusted() {
    let authority = Authority::new();
    assert_not_trusted(
        watched(authority.certify("127.0.0.1", 2021), Some(&authority)),
        "expired",
    );
}

/// A certificate that `openssl req -x509` made, and its key.
fn self_signed() -> (ServerConfig, String) {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/cases/13-tls-self-signed-ca-true/"
    );
    let path = format!("{folder}cert.pem");
    let certificate = CertificateDer::from_pem_file(&path).unwrap();
    let key = PrivateKeyDer::from_pem_file(format!("{folder}key.pem")).unwrap();
    (serving(certificate, key), path)
}

/// The next test makes a certificate by this advice.
#[test]
fn the_error_of_a_self_signed_ca_certificate_says_how_to_make_another() {
    let (config, path) = self_signed();
    assert_not_trusted(
        watched_with(config, Some(&path)),
        "-addext basicConstraints=critical,CA:FALSE",
    );
}

#[test]
fn a_self_signed_certificate_in_the_ca_file_is_trusted() {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(certificate.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = || serving(certificate.der().clone(), key.clone_key());
    let (scrape, _exporter) = watched_with(config(), file.path().to_str());
    scrape.assert_up();
    assert_not_trusted(watched_with(config(), None), "--ca-file");
}

#[test]
fn a_server_without_tls_is_a_connection_error() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::with_url(&format!("https://{}", server.authority())).start();
    let scrape = exporter.until("an error", |scrape| scrape.errors() > 0);
    assert!(scrape.down(), "{scrape:?}");
}

#[test]
fn https_to_a_plain_http_server_is_logged() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // As nginx does: a TLS handshake is no request.
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let exporter = Exporter::with_url(&format!("https://{address}")).start();
    exporter.wait_for_log(&["the server is down", "does not speak TLS: use http://"]);
}

#[test]
fn plain_http_to_a_tls_server_is_logged() {
    let server = Server::recorded(NEW, Stage::Busy);
    let address = in_front_of(&server, Authority::new().certify("127.0.0.1", 2100));
    let exporter = Exporter::with_url(&format!("http://{address}")).start();
    exporter.wait_for_log(&["the server is down", "use https://"]);

    // nginx's page.
    let server = Server::start();
    let page = "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>";
    server.answer_other_paths(Answer::new(400, "text/html", page));
    let exporter = Exporter::watching(&server).start();
    exporter.wait_for_log(&["the server is down", "speaks TLS: use https://"]);
}
