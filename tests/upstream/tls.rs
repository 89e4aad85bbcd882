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

/// Watches a server with this certificate; `ca` is what the exporter is told to trust.
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

/// It is down, and the log says `why` in plain words, in the line of the first failure.
fn assert_not_trusted((scrape, exporter): (Scrape, Exporter), why: &str) {
    assert!(scrape.down(), "{scrape:?}");
    assert!(scrape.errors_of("/health")["connect"] >= 3, "{scrape:?}");
    let lines = exporter.logged(&["endpoint=/health", "reason=connect"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("certificate"), "{lines:?}");
    assert!(lines[0].contains(why), "{lines:?}");
    // Nor do names of Rust's types mean anything to the reader.
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
fn a_server_whose_authority_is_given_is_read() {
    let authority = Authority::new();
    let (scrape, _exporter) = watched(authority.certify("127.0.0.1", 2100), Some(&authority));
    scrape.assert_up();
    scrape.assert_status("running");
    scrape.assert_value("llamacpp_slots_busy", 1.0);
    scrape.assert_errors(0);
}

#[test]
fn a_server_whose_authority_is_not_known_is_not_trusted() {
    assert_not_trusted(
        watched(Authority::new().certify("127.0.0.1", 2100), None),
        "--ca-file",
    );
}

#[test]
fn only_the_authority_that_was_given_is_trusted() {
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
fn a_certificate_that_is_over_is_not_trusted() {
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

/// What is told there is what helps: see the next test.
#[test]
fn a_servers_own_certificate_that_is_an_authoritys_is_told_how_to_make_anew() {
    let (config, path) = self_signed();
    assert_not_trusted(
        watched_with(config, Some(&path)),
        "-addext basicConstraints=critical,CA:FALSE",
    );
}

#[test]
fn a_servers_own_certificate_is_trusted_where_it_is_given() {
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
fn a_server_that_does_not_speak_tls_is_an_error_of_the_connection() {
    let server = Server::recorded(NEW, Stage::Busy);
    let exporter = Exporter::with_url(&format!("https://{}", server.authority())).start();
    // What a plain server makes of a greeting in TLS is nothing.
    let scrape = exporter.until("an error", |scrape| scrape.errors() > 0);
    assert!(scrape.down(), "{scrape:?}");
}

#[test]
fn tls_asked_of_a_server_that_answers_in_plain_http_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // As nginx does: the greeting in TLS is no request.
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let exporter = Exporter::with_url(&format!("https://{address}")).start();
    exporter.wait_for_log(&["the server is down", "speaks no TLS: use http://"]);
}

#[test]
fn plain_http_asked_of_a_server_that_speaks_tls_is_told() {
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
